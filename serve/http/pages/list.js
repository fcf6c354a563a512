"use strict";

// The list of videos.

const PAGE = 20, MOST = 100;  // the largest page of the API
const REFRESH_MS = 3000;

let limit = PAGE;
let refreshing = null;
const tiles = new Map();
const removing = new Set();

async function refresh() {
  clearTimeout(refreshing);
  try {
    const { data, has_more: more } = await ask(`v1/videos?limit=${limit}`);
    $("earlier").hidden = data.length === 0;
    $("more").hidden = !more || limit >= MOST;
    arrange(data);
    if (data.some((video) => !ENDS.includes(video.status))) refreshing = setTimeout(refresh, REFRESH_MS);
    return data;
  } catch (error) {
    if (error.status !== 401) refreshing = setTimeout(refresh, REFRESH_MS);
    return [];
  }
}

function arrange(videos) {
  const ids = videos.map((video) => video.id);
  for (const [id, tile] of tiles) if (!ids.includes(id)) dropTile(id, tile);
  for (const video of videos) updateTile(tiles.get(video.id) ?? newTile(video), video);
  const inOrder = ids.every((id, place) => $("list").children[place] === tiles.get(id).item);
  if (!inOrder) $("list").replaceChildren(...ids.map((id) => tiles.get(id).item));  // otherwise the focus stays
}

function newTile(video) {
  const item = document.createElement("li");
  const button = Object.assign(element("button", "tile", item), { type: "button" });
  const thumb = element("span", "thumb", button);
  element("span", "name", button).textContent = video.prompt;
  const state = element("span", "facts", button);
  const drop = Object.assign(element("button", "drop", item), { type: "button", textContent: "✕", title: "Delete" });
  drop.setAttribute("aria-label", `Delete: ${video.prompt.slice(0, 80)}`);
  const tile = { item, button, thumb, state, video, image: null };
  button.addEventListener("click", () => { select(tile.video); reveal(); });
  drop.addEventListener("click", () => remove(tile.video));
  button.setAttribute("aria-current", String(video.id === shown?.id));
  tiles.set(video.id, tile);
  return tile;
}

function updateTile(tile, video) {
  tile.video = video;
  const busy = video.status === "queued" ? `queued, number ${video.queue_position}` : `${video.progress} %`;
  tile.state.textContent = video.status === "failed" ? "failed" : brief(video);
  if (video.status === "completed" && !tile.image) showThumbnail(tile);
  else if (!tile.image) tile.thumb.textContent = ENDS.includes(video.status) ? `no ${noun(video)}` : busy;
}

async function showThumbnail(tile) {
  tile.image = Object.assign(new Image(), { alt: "" });
  try {
    tile.image.src = URL.createObjectURL(await media(tile.video.id, "thumbnail"));
    tile.thumb.replaceChildren(tile.image);
  } catch {
    tile.thumb.textContent = "no picture";
  }
}

function dropTile(id, tile) {
  if (tile.image) URL.revokeObjectURL(tile.image.src);
  tile.item.remove();
  tiles.delete(id);
}

async function remove(video) {
  if (removing.has(video.id)) return;  // pressed twice
  if (ENDS.includes(video.status) && !confirm(`Delete this ${noun(video)}?`)) return;
  removing.add(video.id);
  const cancelled = !ENDS.includes(video.status);
  if (video.id === shown?.id) watch.abort();
  try {
    await call(`v1/videos/${video.id}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) {  // already deleted
      if (video.id === shown?.id) select(shown);
      return void ($("video-error").textContent = error.message);
    }
  } finally {
    removing.delete(video.id);
  }
  removed(video.id, cancelled ? "Cancelled." : "Deleted.");
}

function removed(id, news) {
  if (id === shown?.id) {
    shown = null;
    setScreen(news);
    $("screen").firstElementChild.ariaHidden = "true";  // the status announces it
    $("run").hidden = $("about").hidden = true;
    $("video-error").textContent = "";
    $("prompt").focus();
  }
  say(news);
  refresh();
}
