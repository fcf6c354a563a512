"use strict";

// The start, and what every button does.

async function start() {
  const before = remembered();
  $("prompt").value = before.fields?.prompt ?? "";
  for (;;) {
    try {
      ({ data: [model] } = await ask("v1/models"));
      $("model").textContent = model.id;
      $("model").hidden = false;
      $("generate_sound").disabled = !model.sound;
      showGuide(model.guide);
      fill({ ...model.defaults, ...(before.model === model.id && before.fields), prompt: $("prompt").value });
      break;
    } catch (error) {
      $("form-error").textContent = error.message;
      if (error.status === 401) return;
      await pause(REFRESH_MS);
    }
  }
  $("form-error").textContent = "";
  const [newest] = await refresh();
  if (newest && !shown) select(newest);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("form").addEventListener("input", (event) => { event.target.removeAttribute("aria-invalid"); changed(); });
$("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("cancel").addEventListener("click", () => remove(shown));
$("delete").addEventListener("click", () => remove(shown));
$("reuse").addEventListener("click", () => { fill(shown); $("prompt").focus(); });
$("more").addEventListener("click", () => { limit = Math.min(MOST, limit + PAGE); refresh(); });
setInterval(showToGo, 1000);
start();
