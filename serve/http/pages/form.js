"use strict";

// The form: its fields, what a reload keeps, and the notes about them.

const FIELDS = ["prompt", "width", "height", "num_frames", "num_inference_steps", "generate_sound", "seed", "fps", "guidance_scale", "negative_prompt"];
const FORM = "cosmos3-form";

let model = null;        // its card, once it is loaded

function request() {
  const fields = {};
  for (const name of FIELDS) {
    const field = $(name);
    fields[name] = field.type === "checkbox" ? field.checked : field.type === "number" ? field.valueAsNumber : field.value;
  }
  if (!fields.negative_prompt.trim()) delete fields.negative_prompt;
  if (Number.isNaN(fields.seed)) delete fields.seed;
  return fields;
}

function fill(values) {
  for (const name of FIELDS) {
    if (name === "prompt" && values.prompt === undefined) continue;
    if ($(name).type === "checkbox") $(name).checked = Boolean(values[name]) && !$(name).disabled;
    else $(name).value = values[name] ?? "";
  }
  changed();
}

// The settings that differ from the defaults, for this tab alone: they survive a reload.
function remember() {
  const old = remembered();
  const chosen = model ? FIELDS.filter((name) => String(setting(name)) !== String(model.defaults[name] ?? "")) : ["prompt"];
  const fields = Object.fromEntries(chosen.map((name) => [name, setting(name)]));
  sessionStorage.setItem(FORM, JSON.stringify(model ? { model: model.id, fields } : { ...old, fields: { ...old.fields, ...fields } }));
}

function remembered() {
  return JSON.parse(sessionStorage.getItem(FORM)) ?? {};
}

function setting(name) {
  return $(name).type === "checkbox" ? $(name).checked : $(name).value;
}

function changed() {
  remember();
  showLength();
  showNotes();
  estimateSoon();
}

function showGuide(guide) {
  $("guide").hidden = !guide;
  if (!guide) return;
  $("prompt").placeholder = guide.examples[0];
  $("guide-summary").textContent = guide.summary;
  for (const prompt of guide.examples) {
    const button = Object.assign(element("button", "", element("li", "", $("examples"))), { type: "button", textContent: prompt });
    button.addEventListener("click", () => { $("prompt").value = prompt; changed(); $("prompt").focus(); });
  }
  for (const [topic, choices] of Object.entries(guide.topics)) {
    element("dt", "", $("topics")).textContent = topic;
    element("dd", "", $("topics")).textContent = choices.join("; ");
  }
}

function showNotes() {
  const guide = model?.guide;
  if (!guide) return;
  const strange = new Set(($("prompt").value.toLowerCase().match(/\p{L}+/gu) ?? []).filter((word) => !guide.words.includes(word)));
  $("prompt-note").textContent = strange.size ? `This model was never trained on: ${[...strange].slice(0, 12).join(", ")}. The video may show something else.` : "";
  const usual = model.defaults, odd = guide.fixed_fields.some((name) => Number($(name).value) !== usual[name]);
  $("size-note").textContent = odd ? `This model was trained on ${usual.width}×${usual.height} with ${usual.num_frames} frames at ${usual.fps} per second only. Anything else may look wrong.` : "";
}

function showLength() {
  const seconds = $("num_frames").value / $("fps").value;
  $("length").textContent = Number.isFinite(seconds) ? `${seconds.toFixed(1)} s` : "";
}
