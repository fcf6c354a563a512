"use strict";

// The screen: the selected video, its progress and its facts.

const STAGES = { prompt_upsampler: "Rewriting the prompt", denoiser: "Denoising", decoders: "Decoding picture and sound", storing: "Storing" };
const ENDS = ["completed", "failed", "deleted"];

let shown = null;        // the selected video
let watch = null;        // aborts following it
let endsAt = null;       // when the shown video should be ready

function select(video) {
  watch?.abort();
  watch = new AbortController();
  shown = video;
  endsAt = null;
  $("video-error").textContent = "";
  $("about").hidden = false;
  $("shown-prompt").textContent = video.prompt;
  showState(video);
  if (!ENDS.includes(video.status)) follow(video.id, watch.signal);
  for (const [id, tile] of tiles) tile.button.setAttribute("aria-current", String(id === video.id));
}

function reveal() {
  $("screen").scrollIntoView({ block: "nearest" });  // below the form on a phone
}

function showState(video) {
  const ended = ENDS.includes(video.status), completed = video.status === "completed";
  $("run").hidden = ended;
  $("cancel").hidden = ended;
  $("delete").hidden = !ended;
  $("save").hidden = $("remix").hidden = !completed;
  $("extend").hidden = !completed || video.num_frames === 1 || !model?.pictures;
  $("facts").textContent = facts(video);
  $("revised").hidden = !video.revised_prompt;
  $("revised-prompt").textContent = video.revised_prompt ?? "";
  $("not-revised").textContent = video.prompt_upsampling_error ?? "";
  $("screen").style.aspectRatio = `${video.width} / ${video.height}`;
  if (completed) return play(video);
  if (ended) return failed(video.error?.message ?? `The ${noun(video)} was deleted.`);
  setScreen(`${video.progress} %`, true);
  $("progress").value = video.progress;
  place(video.stage ?? video.status, video);
}

function setScreen(text, busy = false) {
  const old = $("screen").querySelector("video, img");
  if (old) URL.revokeObjectURL(old.src);
  const line = document.createElement("p");
  line.textContent = text;
  $("screen").classList.toggle("busy", busy);
  $("screen").replaceChildren(line);
}

function failed(message) {
  setScreen(`No ${noun(shown)}`);
  $("video-error").textContent = message;
}

async function play(video) {
  setScreen("Loading");
  const { signal } = watch;
  try {
    const file = await media(video.id, null, signal);
    if (signal.aborted) return;
    const url = URL.createObjectURL(file), still = file.type.startsWith("image/");
    Object.assign($("save"), { href: url, download: `${video.id}.${still ? "png" : "mp4"}` });
    if (still) return $("screen").replaceChildren(Object.assign(new Image(), { src: url, alt: video.prompt }));
    const player = Object.assign(document.createElement("video"), { src: url, controls: true, loop: true, playsInline: true });
    player.setAttribute("aria-label", video.prompt);
    $("screen").replaceChildren(player);
    await player.play().catch(() => {});  // the browser may require a click first
  } catch (error) {
    if (!signal.aborted) failed(error.message);
  }
}

function showEvent(event) {
  if (event.type === "deleted") return removed(shown.id, `The ${noun(shown)} was deleted.`);
  if (event.video) {
    shown = event.video;
    say(event.type === "completed" ? `The ${noun(shown)} is finished.` : "");  // a failure is an alert of its own
    showState(shown);
    estimateSoon();
    return refresh();
  }
  if (event.type === "preview") return showPreview();
  const percent = event.progress ?? 0;
  $("screen").firstElementChild.textContent = `${percent} %`;
  $("progress").value = percent;
  place(event.stage ?? event.type, event);
}

// What the unfinished video will look like. Without it the page works as well.
async function showPreview() {
  const { signal } = watch;
  const file = await media(shown.id, "preview", signal).catch(() => null);
  if (!file || signal.aborted || ENDS.includes(shown.status)) return;
  const old = $("screen").querySelector("img");
  if (old) URL.revokeObjectURL(old.src);
  old?.remove();
  const alt = "Four moments of the unfinished video";
  $("screen").append(Object.assign(new Image(), { src: URL.createObjectURL(file), alt, className: "preview" }));
}

function place(stage, { queue_position: position, step, steps, num_inference_steps: all, eta_s: eta }) {
  const total = steps ?? all;
  const text = stage === "queued" ? `Queued, number ${position}` : STAGES[stage] ?? "Starting";
  $("stage").textContent = stage === "denoiser" ? `${text}, step ${step} of ${total}` : text;
  say(text);
  endsAt = eta == null ? null : Date.now() + eta * 1000;
  showToGo();
}

function showToGo() {
  const seconds = endsAt === null ? null : Math.max(0, Math.round((endsAt - Date.now()) / 1000));
  $("to-go").textContent = seconds === null ? "" : `about ${duration(seconds)} left`;
}

function duration(seconds) {
  return seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function say(news) {
  if ($("news").textContent !== news) $("news").textContent = news;
}

const noun = (video) => video.num_frames === 1 ? "image" : "video";

function brief(video) {
  const parts = [`${video.width}×${video.height}`, video.num_frames === 1 ? "image" : `${video.duration_s.toFixed(1)} s`];
  return parts.concat(video.generate_sound ? "sound" : []).join(" · ");
}

function startOf({ input_reference: start }) {
  if (!start) return [];
  return [start.continued ? "continues a video" : start.kind === "image" ? "from a picture" : "from a clip"];
}

function facts(video) {
  const { queue, ...stages } = video.stage_durations ?? {};
  const made = Object.values(stages).reduce((sum, seconds) => sum + seconds, 0);
  const parts = [brief(video), ...startOf(video), `${video.num_inference_steps} steps`, `seed ${video.seed}`];
  return parts.concat(made ? `made in ${made.toFixed(1)} s` : []).join(" · ");
}

// With fetch, because EventSource cannot send a key.
async function follow(id, signal) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const response = await call(`v1/videos/${id}/events`, { signal, headers });
      for await (const message of messages(response.body)) {
        if (message.data === undefined) continue;  // a keepalive comment
        last = message.id ?? last;
        const event = JSON.parse(message.data);
        if (signal.aborted) return;
        showEvent(event);
        if (ENDS.includes(event.type)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.final) { $("video-error").textContent = error.message; return; }
    }
    if (signal.aborted) return;
    $("stage").textContent = "Connection lost; reconnecting";
    await pause(RECONNECT_MS);
  }
}
