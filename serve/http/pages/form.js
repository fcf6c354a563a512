"use strict";

// The form: its fields, what a reload keeps, and the notes about them.

const FIELDS = ["prompt", "prompt_upsampling", "width", "height", "num_frames", "num_inference_steps", "generate_sound", "seed", "fps", "guidance_scale", "negative_prompt", "condition_frame_indexes_vision", "condition_video_keep"];
const FORM = "cosmos3-form";

let model = null;        // its card, once it is loaded
let image = false;       // whether the form is for an image

// The fields of a new video or image. Empty ones are the server's choice.
function request() {
  const fields = {};
  for (const name of FIELDS) {
    const field = $(name);
    if (field.disabled) continue;
    if (field.type === "checkbox") fields[name] = field.checked;
    else if (field.type === "number" && field.value !== "") fields[name] = field.valueAsNumber;
    else if (field.type !== "number" && (name === "prompt" || field.value.trim())) fields[name] = field.value;
  }
  return image ? { ...fields, num_frames: 1 } : fields;
}

// Whether to make an image, which is a video of one frame without sound.
function chooseKind(wanted) {
  image = wanted;
  $("as-video").setAttribute("aria-pressed", String(!image));
  $("as-image").setAttribute("aria-pressed", String(image));
  $("frames").hidden = $("rate").hidden = $("sound").hidden = image;
  $("num_frames").disabled = $("fps").disabled = image;
  $("generate_sound").disabled = image || !model?.sound;
  if (model) useOwnRatio(startsFromFile());
  changed();
}

// One frame is an image as soon as the user has finished typing.
function framesChosen() {
  if ($("num_frames").value !== "1" || !model) return;
  $("num_frames").value = model.defaults.num_frames;
  chooseKind(true);
}

function fill(values) {
  for (const name of FIELDS) {
    if (name === "prompt" && values.prompt === undefined) continue;
    if (name === "num_frames" && values.num_frames === 1) continue;
    if ($(name).type === "checkbox") $(name).checked = Boolean(values[name]) && model.sound;
    else $(name).value = values[name] ?? "";
  }
  chooseKind(values.num_frames === 1);
}

// The settings that differ from the defaults, for this tab alone: they survive a reload.
function remember() {
  const old = remembered();
  const chosen = model ? FIELDS.filter((name) => String(setting(name)) !== String(model.defaults[name] ?? "")) : ["prompt"];
  const fields = Object.fromEntries(chosen.map((name) => [name, setting(name)]));
  sessionStorage.setItem(FORM, JSON.stringify(model ? { model: model.id, fields, image, source: rememberedSource() } : { ...old, fields: { ...old.fields, ...fields } }));
}

function remembered() {
  return JSON.parse(sessionStorage.getItem(FORM)) ?? {};
}

function setting(name) {
  return $(name).type === "checkbox" ? $(name).checked : $(name).value;
}

function changed() {
  remember();
  showSource();
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
  const usual = model.defaults, now = { ...request(), ...sizeInUse() };
  const fixed = guide.fixed_fields.filter((name) => !image || !["num_frames", "fps"].includes(name));
  const odd = !$("settings").disabled && fixed.some((name) => now[name] !== usual[name]);
  $("size-note").textContent = odd ? `This model was trained on ${usual.width}×${usual.height} with ${usual.num_frames} frames at ${usual.fps} per second only. Anything else may look wrong.` : "";
}

function showLength() {
  const seconds = $("num_frames").value / $("fps").value;
  $("length").textContent = Number.isFinite(seconds) ? `${seconds.toFixed(1)} s` : "";
}
