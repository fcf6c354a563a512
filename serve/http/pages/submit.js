"use strict";

// How long a request will take, and sending it.

const TYPING_MS = 500;
const LONG_S = 3600;     // a longer video is started only after a confirmation
const LARGE = 16;        // so is one of this many times the default work, if there is no estimate

let sent = null;         // a request without a response yet, with its idempotency key
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
  if (FIELDS.every((name) => name === "prompt" || $(name).validity.valid)) {
    try {
      text = inWords(await estimate({ ...request(), prompt: "-" }, signal));
    } catch (error) {
      if (error.status === 400) text = error.message;
    }
  }
  if (!signal.aborted) $("estimate").textContent = text;
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

async function submit() {
  if ($("make").disabled) return;
  const body = JSON.stringify(request());
  if (sent?.body !== body) sent = { body, key: newKey() };
  $("form-error").textContent = "";
  for (const name of FIELDS) $(name).removeAttribute("aria-invalid");
  $("make").disabled = true;
  try {
    if (!await agreed(request())) return;
    const headers = { "Content-Type": "application/json", "Idempotency-Key": sent.key };
    const video = await ask("v1/videos", { method: "POST", body, headers });
    sent = null;
    select(video);
    reveal();
    refresh();
    estimateSoon();
  } catch (error) {
    if (error.final) sent = null;
    $("form-error").textContent = error.message;
    mark(error.param);
  } finally {
    $("make").disabled = false;
  }
}

function mark(param) {
  const field = param === "size" ? $("width") : FIELDS.includes(param) ? $(param) : null;
  if (!field) return;
  field.closest("details")?.setAttribute("open", "");
  field.setAttribute("aria-invalid", "true");
  field.focus();
}
