"use strict";

// How long a request will take, and sending it.

const TYPING_MS = 500;
const LONG_S = 3600;     // a longer video is started only after a confirmation
const PREVIEWS = 3;      // looks at a video while it is made
const LARGE = 16;        // so is one of this many times the default work, if there is no estimate

let sent = null;         // a request without a response yet, with its idempotency key
let sending = null;      // aborts an upload
let typing = null;       // timer of the next estimate
let estimating = null;   // aborts the previous estimate

function estimateSoon() {
  clearTimeout(typing);
  estimating?.abort();
  estimating = new AbortController();
  const { signal } = estimating;
  typing = setTimeout(() => showEstimate(signal), TYPING_MS);
}

async function showEstimate(signal) {
  if (!model) return;
  let text = "";
  if ([...FIELDS, "seconds"].every((name) => name === "prompt" || !$(name).willValidate || $(name).validity.valid)) {
    try {
      text = inWords(await estimate({ ...comparable(), prompt: "-" }, signal));
    } catch (error) {
      if (error.status === 400) text = error.message;
    }
  }
  if (!signal.aborted) $("estimate").textContent = text;
}

// A request that takes about as long and needs no file.
function comparable() {
  if (source?.how === "extend" || source?.how === "remix") {
    const { width, height, num_frames, num_inference_steps, fps, generate_sound, guidance_scale } = source.video;
    const length = source.how === "remix" ? { num_frames } : { seconds: $("seconds").value };
    return { width, height, num_inference_steps, fps, generate_sound, guidance_scale, ...length };
  }
  const { condition_frame_indexes_vision: _, condition_video_keep: __, ...fields } = request();
  const { width, height } = sizeInUse() ?? {};
  return width ? { ...fields, width, height } : fields;
}

const estimate = (fields, signal) => ask("v1/videos/estimate", { method: "POST", body: JSON.stringify(fields), headers: { "Content-Type": "application/json" }, signal });

function inWords({ eta_s: eta, queue_position: position, relative_work: work }) {
  const before = position > 1 ? `, with ${position - 1} in the queue before it` : "";
  if (eta !== null) return `Will take about ${duration(Math.max(1, Math.round(eta)))}${before}.`;
  const known = work >= 2 ? ` It is ${Number(work.toPrecision(2)).toLocaleString("en")} times the work of a video with the default settings.` : "";
  return `No estimate: no video of a similar size has finished on this server.${known}`;
}

// Whether to start; asks the user only if it may take hours. A failed estimate does not stop the request.
async function agreed(fields) {
  const known = await estimate(fields).catch(() => null);
  const long = known && (known.eta_s === null ? known.relative_work > LARGE : known.eta_s > LONG_S);
  return !long || confirm(`${inWords(known)} Make it anyway?`);
}

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Where the request goes, and its fields.
function wanted() {
  const prompt = $("prompt").value, choice = $("prompt_upsampling");
  const fields = { prompt, previews: PREVIEWS, ...(choice.disabled ? {} : { prompt_upsampling: choice.value }) };
  if (source?.how === "remix") return ["v1/videos/" + source.video.id + "/remix", fields];
  if (source?.how === "extend") return ["v1/videos/extensions", { ...fields, video: { id: source.video.id }, seconds: $("seconds").value }];
  return ["v1/videos", image ? request() : { ...request(), previews: PREVIEWS }];
}

async function submit() {
  if ($("make").disabled) return;
  const [path, fields] = wanted(), file = startsFromFile() ? source.file : null;
  const body = JSON.stringify([path, fields]);
  if (sent?.body !== body || sent.file !== file) sent = { body, file, key: newKey() };
  $("form-error").textContent = $("zone-error").textContent = "";
  for (const name of [...FIELDS, "seconds"]) $(name).removeAttribute("aria-invalid");
  $("make").disabled = true;
  try {
    if (!await agreed({ ...comparable(), prompt: "-" })) return;
    const video = await (file ? sendForm(path, fields, file) : sendJson(path, fields));
    sent = null;
    if (source && source.how !== "file") setSource(null);
    select(video);
    reveal();
    refresh();
    estimateSoon();
  } catch (error) {
    if (error.final) sent = null;
    if (error.name !== "AbortError") mark(error);
  } finally {
    $("make").disabled = false;
  }
}

const sendJson = (path, fields) => ask(path, { method: "POST", body: JSON.stringify(fields), headers: { "Content-Type": "application/json", "Idempotency-Key": sent.key } });

async function sendForm(path, fields, file) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("input_reference", file);
  sending = new AbortController();
  const onProgress = (part) => {
    $("sending").hidden = false;
    $("sending-progress").value = part;
    $("sending-text").textContent = part < 1 ? `Uploading, ${Math.floor(part * 100)} %` : "Uploaded; the server checks the file";
  };
  try {
    return await ask(path, { method: "POST", body, headers: { "Idempotency-Key": sent.key }, signal: sending.signal, onProgress });
  } finally {
    sending = null;
    $("sending").hidden = true;
  }
}

// Shows an error, at its field if it has one.
function mark({ message, param }) {
  if (["input_reference", "video"].includes(param)) return refuseSource(message);
  $("form-error").textContent = message;
  const field = param === "size" ? $("width") : param === "seconds" || FIELDS.includes(param) ? $(param) : null;
  if (!field) return;
  field.closest("details")?.setAttribute("open", "");
  field.setAttribute("aria-invalid", "true");
  field.focus();
}
