"use strict";

// The server: requests with its key, files, event streams.

const $ = (id) => document.getElementById(id);
const KEY = "cosmos3-api-key";
const RECONNECT_MS = 1000;
const SILENCE_MS = 45000;  // three times the longest silence of the server

let asking = null;       // the dialog for the key

class Refusal extends Error {
  constructor(message, status, param = null) { super(message); this.status = status; this.param = param; }
  // An error in another form comes from a proxy while the server starts or stops.
  get final() { return this.status !== null && this.status < 500 && this.status !== 429; }
}

async function call(path, options = {}) {
  const key = localStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await (options.onProgress ? upload : fetch)(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached.", null);
  }
  if (response.status === 401) {
    if (localStorage.getItem(KEY) === key) await (asking ??= askKey(key).finally(() => { asking = null; }));
    return call(path, options);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

// What fetch does, with the share of the body that is sent.
function upload(path, { method, body, headers, signal, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
    request.onload = () => {
      const wait = request.getResponseHeader("Retry-After");
      resolve(new Response(request.response, { status: request.status, headers: wait ? { "Retry-After": wait } : {} }));
    };
    request.onerror = () => reject(new TypeError());
    request.onabort = () => reject(new DOMException("", "AbortError"));
    signal.onabort = () => request.abort();
    request.send(body);
  });
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  if (!error) return new Refusal(`The server returned ${response.status}.`, null);
  const wait = response.headers.get("Retry-After");
  return new Refusal(error.message + (wait ? ` (in ${wait} s)` : ""), response.status, error.param);
}

function askKey(wrong) {
  const dialog = $("key-dialog");
  $("key-error").textContent = wrong ? "The server does not know this key." : "";
  $("key").value = "";
  dialog.returnValue = "cancelled";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    $("key-form").onsubmit = () => localStorage.setItem(KEY, $("key").value.trim());
    dialog.onclose = () => dialog.returnValue === "cancelled" ? reject(new Refusal("This server requires an API key.", 401)) : resolve();
  });
}

const ask = async (path, options) => (await call(path, options)).json();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A file, by default the video or the image itself; retried while the server is unavailable.
async function media(id, variant, signal) {
  for (;;) {
    try {
      return await (await call(`v1/videos/${id}/content${variant ? `?variant=${variant}` : ""}`, { signal })).blob();
    } catch (error) {
      if (error.final || signal?.aborted) throw error;
      await pause(RECONNECT_MS);
    }
  }
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const dead = setTimeout(() => reader.cancel(), SILENCE_MS);  // ends the stream
    const { value, done } = await reader.read().finally(() => clearTimeout(dead));
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
  }
}

function element(tag, className, parent) {
  const made = Object.assign(document.createElement(tag), { className });
  parent.append(made);
  return made;
}
