// The service, as the page needs it. Every failure is an ApiError whose message can be shown.

import { edits, images } from "./state.js";
import { file } from "./uploads.js";

export class ApiError extends Error {
  constructor(status, { type, message }, wait) {
    super(message);
    Object.assign(this, { status, type, wait });
  }

  get busy() {
    return this.status === 429 || this.status === 503;
  }
}

async function ask(path, options) {
  let reply, body;
  try {
    reply = await fetch(path, options);
    body = await reply.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const message = reply ? `The server answered ${reply.status}.` : "The server does not answer. Is it still running?";
    throw new ApiError(reply?.status ?? 0, { type: "server", message });
  }
  if (reply.ok) return body;
  const error = body.error ?? { type: "server", message: `The server answered ${reply.status}.` };
  throw new ApiError(reply.status, error, Number(reply.headers.get("Retry-After")) || 1);
}

const pathOf = (id) => `v1/images/${id.split("/").map(encodeURIComponent).join("/")}`;
export const imageOf = (id, gallery) => `${pathOf(id)}?${new URLSearchParams({ gallery })}`;
export const thumbnailOf = (id, gallery) => `${pathOf(id)}/thumbnail?${new URLSearchParams({ gallery })}`;

export const information = () => ask("v1/info");

// What is sent for a state, name by name; the snippets to copy show the same.
export function fields(state, extra = {}) {
  const step = state.steps.at(-1);
  const texts = edits(step).map((text) => ["texts", text]);
  const without = state.without.split(",").map((part) => part.trim()).filter(Boolean);
  return [
    ...images(step).map(({ upload, id }, at) => (upload ? ["reference_images", file(upload, at)] : ["reference_ids", id])),
    ...texts,
    ...without.map((part) => ["negative_texts", part]),
    ...state.minus.map((each) => ["negative_ids", each]),
    ...(Object.keys(state.where).length ? [["where", JSON.stringify(state.where)]] : []),
    // Without words there is only the image to be like.
    ...(texts.length && state.balance === 0.5 ? [] : [["balance", String(texts.length ? state.balance : 0)]]),
    ["gallery", state.gallery],
    ...Object.entries(extra).map(([name, value]) => [name, String(value)]),
  ];
}

export function query(state, extra, signal) {
  const body = new FormData();
  for (const [name, value] of fields(state, extra)) body.append(name, value);
  return ask("v1/query", { method: "POST", body, signal });
}

function list(state, offset, limit, signal) {
  const asked = { gallery: state.gallery, where: JSON.stringify(state.where), offset, limit };
  return ask(`v1/images?${new URLSearchParams(asked)}`, { signal });
}

// Images from several places of the gallery: neighbours by name are often alike.
export async function shelf(state, count, signal) {
  const places = 8;
  const each = Math.ceil(count / places);
  const { total, images } = await list(state, 0, 1, signal);
  if (total <= 4 * count) return total > 1 ? shuffled((await list(state, 0, total, signal)).images).slice(0, count) : images;
  const span = Math.floor(total / places);
  const parts = Array.from({ length: places }, async (_, place) => {
    const start = place * span + Math.floor(Math.random() * (span - 4 * each + 1));
    const found = await list(state, start, 4 * each, signal);
    return shuffled(found.images).slice(0, each);
  });
  return shuffled((await Promise.all(parts)).flat()).slice(0, count);
}

function shuffled(items) {
  const keyed = items.map((item) => [Math.random(), item]);
  return keyed.sort(([a], [b]) => a - b).map(([, item]) => item);
}
