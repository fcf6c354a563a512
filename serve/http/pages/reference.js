"use strict";

// What a video starts from: a picture or clip of the user, or an earlier video that is continued or made again.

const MAX_UPLOAD_BYTES = 64 * 2 ** 20;
const EXPECTED = "a picture (PNG, JPEG, WebP) or a clip (mp4, mov, WebM, Matroska)";
const UNIT = 16, MAX_SIDE = 4096;  // of the sides of a video, in pixels

let source = null;       // { how: "file", file, url, ... } or { how: "extend" or "remix", video }
let lost = "";           // what a reload did not keep

const startsFromFile = () => source?.how === "file" && !image;

async function takeFiles(files) {
  if (!model?.pictures || !files.length) return;
  const [file] = files;
  if (files.length > 1) return refuseSource("input_reference: got two files, expected one picture or one clip");
  if (file.size > MAX_UPLOAD_BYTES) return refuseSource(`input_reference: got a file of more than ${MAX_UPLOAD_BYTES / 2 ** 20} MiB, expected at most that`);
  const kind = await kindOf(file);
  if (!kind) return refuseSource(`input_reference: got '${file.type || file.name}', expected ${EXPECTED}, because other files cannot be read`);
  chooseKind(false);
  setSource({ how: "file", file, url: URL.createObjectURL(file), clip: kind === "clip" });
  await showFile(source);
}

// What the first bytes of a file say that it is, as the server finds it; the server then reads the whole file.
async function kindOf(file) {
  const start = await file.slice(0, 12).arrayBuffer().catch(() => new ArrayBuffer(0));
  const head = String.fromCharCode(...new Uint8Array(start));
  return /^(\x89PNG|\xff\xd8\xff|RIFF....WEBP)/s.test(head) ? "picture" : /^(....(ftyp|moov|mdat|wide|free|skip)|\x1a\x45\xdf\xa3)/s.test(head) ? "clip" : null;
}

function refuseSource(message) {
  $("zone-error").textContent = message;
  $($("choose").hidden ? "unset" : "choose").focus();
}

function setSource(next) {
  sending?.abort();
  if (source?.url) URL.revokeObjectURL(source.url);
  source = next;
  lost = "";
  $("zone-error").textContent = "";
  const file = source?.how === "file", earlier = source !== null && !file;
  $("settings").disabled = $("settings").hidden = $("what").hidden = $("choose").hidden = earlier;
  $("seconds").disabled = $("more-seconds").hidden = source?.how !== "extend";
  $("unset").hidden = source === null;
  $("unset").textContent = earlier ? "Make a new video instead" : "Remove";
  $("choose").textContent = file ? "Choose another" : "Choose a picture or clip";
  $("look").replaceChildren();
  useOwnRatio(startsFromFile());
  changed();
}

// Without a size, a video has the ratio of its picture. A size of the user's own stays, and so does the only one that
// the model knows.
function useOwnRatio(wanted) {
  const sides = [$("width"), $("height")], usual = model.defaults;
  const fixed = sides.some((side) => model.guide?.fixed_fields.includes(side.name));
  const untouched = sides.every((side) => side.valueAsNumber === usual[side.name]);
  for (const side of sides) {
    if (wanted && untouched && !fixed) side.value = "";
    if (!wanted && side.value === "") side.value = usual[side.name];
    side.required = !wanted;
  }
}

async function showFile(of) {
  const element = of.clip ? document.createElement("video") : new Image();
  const loaded = new Promise((resolve, reject) => Object.assign(element, { onload: resolve, onloadeddata: resolve, onerror: reject }));
  Object.assign(element, of.clip ? { muted: true, playsInline: true, preload: "auto" } : { alt: "" }, { src: of.url });
  const readable = await loaded.then(() => true, () => false);
  if (source !== of) return;
  of.width = element.naturalWidth || element.videoWidth;
  of.height = element.naturalHeight || element.videoHeight;
  of.hidden = !readable || !of.width || !of.height;
  if (!of.hidden) $("look").replaceChildren(element, Object.assign(document.createElement("span"), { className: "kept" }));
  changed();
}

function showSource() {
  const latents = $("condition_frame_indexes_vision"), keep = $("condition_video_keep");
  $("zone").hidden = source?.how === "extend" || source?.how === "remix" ? false : !model?.pictures || image;
  $("zone-hint").hidden = source !== null;
  $("zone-title").textContent = { extend: "Continue a video", remix: "Make a video again" }[source?.how] ?? "Start from a picture or clip";
  $("of-reference").hidden = latents.disabled = !startsFromFile();
  $("keeps").hidden = keep.disabled = !startsFromFile() || !source.clip;
  const facts = source === null ? lost : source.how === "file" ? aboutFile() : aboutEarlier();
  if ($("zone-facts").textContent !== facts) $("zone-facts").textContent = facts;
  const size = sizeInUse();
  for (const side of ["width", "height"]) $(side).placeholder = size?.own ? size[side] : "";
  $("make").textContent = { extend: "Continue the video", remix: "Make it again" }[source?.how] ?? `Make the ${image ? "image" : "video"}`;
}

function aboutFile() {
  const { file, clip, width, height, hidden } = source, kind = clip ? "clip" : "picture";
  const name = `${file.name} · ${megabytes(file.size)}`;
  if (hidden) return `${name}\nThis browser cannot show the file. The server will check it.`;
  if (!width) return name;
  const size = sizeInUse();
  const parts = [`${name} · ${width}×${height}\n`];
  if (size) parts.push(`The video will be ${size.width}×${size.height}${size.own ? `, the ${kind}’s own ratio` : ""}.`, showCrop(size, kind));
  return parts.concat(clip ? showEnd() : []).join(" ").replace("\n ", "\n");
}

// Marks the part of the picture that covers the video, as the server cuts it: scaled to cover, from the centre.
function showCrop({ width, height }, kind) {
  const scale = Math.max(width / source.width, height / source.height);
  const [across, down] = [width / scale / source.width, height / scale / source.height];
  const part = Math.round(across * down * 100), whole = part > 99, frame = $("look").querySelector(".kept");
  frame.hidden = whole;
  Object.assign(frame.style, { width: `${across * 100}%`, height: `${down * 100}%`, left: `${(1 - across) * 50}%`, top: `${(1 - down) * 50}%` });
  return whole ? `It shows the whole ${kind}.` : `It shows the part in the frame, ${part} % of the ${kind}.`;
}

function showEnd() {
  const player = $("look").querySelector("video"), last = $("condition_video_keep").value === "last";
  const time = last ? player.duration : 0;
  if (Number.isFinite(time) && player.currentTime !== time) player.currentTime = time;
  const latents = ($("condition_frame_indexes_vision").value || "0,1").split(",").map(Number);
  return `It begins with the clip’s ${last ? "last" : "first"} ${4 * Math.max(...latents) + 1} frames.`;
}

function aboutEarlier() {
  const { how, video } = source, about = `“${video.prompt.slice(0, 80)}” (${brief(video)})`;
  if (how === "remix") return `Again with another prompt: ${about}. Size, length, seed and all other settings stay the same.`;
  return `Continues ${about}. The result has its frames and then the new ones, in the same size and with the same settings.`;
}

// An earlier video, to be continued or to be made again with another prompt.
async function startFrom(video, how) {
  setSource({ how, video });
  $("prompt").value = video.prompt;
  $("seconds").value = Number((video.num_frames / video.fps).toFixed(2));
  changed();
  $("form").scrollIntoView({ block: "nearest" });
  $("prompt").focus();
  $("prompt").select();
  await showFirst(source);
}

// The settings of an earlier video. A file in the form stays there; the server does not give out the video's own.
function useSettings(video) {
  if (source && source.how !== "file") setSource(null);
  lost = video.input_reference ? "The video started from a file that is not in this form. Choose it again." : "";
  fill(video);
}

async function showFirst(of) {
  try {
    const file = await media(of.video.id, "thumbnail");
    if (source !== of) return;
    of.url = URL.createObjectURL(file);
    $("look").replaceChildren(Object.assign(new Image(), { alt: "", src: of.url }));
  } catch { /* the words say which video it is */ }
}

// The size that the video will have; null while only one side is given, or if it is unknown.
function sizeInUse() {
  const [width, height] = [$("width").valueAsNumber, $("height").valueAsNumber];
  if (width && height) return { width, height, own: false };
  if ($("width").value || $("height").value || !startsFromFile() || !source.width) return null;
  return { ...naturalSize(source.width, source.height, model.defaults.width * model.defaults.height), own: true };
}

// The rule of the server's natural_size.
function naturalSize(width, height, area) {
  const near = (side) => [0, UNIT].map((more) => Math.min(MAX_SIDE, Math.max(UNIT, Math.floor((side + 1e-6) / UNIT) * UNIT + more)));
  const [widths, heights] = [near(Math.sqrt(area * (width / height))), near(Math.sqrt(area * (height / width)))];
  const sizes = widths.flatMap((w) => heights.map((h) => ({ width: w, height: h }))).filter((size) => size.width * size.height <= area);
  const off = (size) => Math.abs(Math.log(size.width / size.height * height / width));
  const better = (one, other) => off(one) - off(other) || other.width * other.height - one.width * one.height;
  return sizes.sort(better)[0] ?? { width: widths[0], height: heights[0] };
}

function megabytes(bytes) {
  return bytes < 1e5 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/* ---- a reload ---- */

// A file cannot be kept over a reload; an earlier video can.
function rememberedSource() {
  if (source === null) return null;
  return source.how === "file" ? { how: "file", name: source.file.name } : { how: source.how, id: source.video.id, seconds: $("seconds").value };
}

async function restoreSource(before) {
  if (!before) return;
  if (before.how === "file") lost = `${before.name} was not kept over the reload. Choose it again.`;
  if (before.how === "file") return changed();
  const video = await ask(`v1/videos/${before.id}`).catch(() => null);
  if (video?.status !== "completed" || source !== null) return;
  setSource({ how: before.how, video });
  $("seconds").value = before.seconds;
  changed();
  await showFirst(source);
}
