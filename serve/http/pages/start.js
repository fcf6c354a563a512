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
      showGuide(model.guide);
      $("rewriting").hidden = $("prompt_upsampling").disabled = !model.prompt_upsampling;
      fill({ ...model.defaults, ...(before.model === model.id && before.fields), prompt: $("prompt").value });
      setSource(null);
      chooseKind(Boolean(before.image));
      break;
    } catch (error) {
      $("form-error").textContent = error.message;
      if (error.status === 401) return;
      await pause(REFRESH_MS);
    }
  }
  $("form-error").textContent = "";
  await restoreSource(before.source);
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
$("as-video").addEventListener("click", () => chooseKind(false));
$("as-image").addEventListener("click", () => chooseKind(true));
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { takeFiles([...$("file").files]); $("file").value = ""; });
$("unset").addEventListener("click", () => { setSource(null); $("choose").focus(); });
$("stop-sending").addEventListener("click", () => sending?.abort());
const hasFiles = (event) => event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();  // otherwise the browser would leave the page for the file
  $("zone").classList.add("over");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("zone").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("zone").classList.remove("over");
  takeFiles([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  if (!files.length || types.includes("text/plain")) return;  // copied text can come with a picture of itself
  event.preventDefault();
  takeFiles([...files]);
});
$("cancel").addEventListener("click", () => remove(shown));
$("delete").addEventListener("click", () => remove(shown));
$("extend").addEventListener("click", () => startFrom(shown, "extend"));
$("remix").addEventListener("click", () => startFrom(shown, "remix"));
$("num_frames").addEventListener("change", framesChosen);
$("reuse").addEventListener("click", () => { useSettings(shown); $("prompt").focus(); });
$("more").addEventListener("click", () => { limit = Math.min(MOST, limit + PAGE); refresh(); });
setInterval(showToGo, 1000);
start();
