// Requests to the service. Every failure is an ApiError whose message can be shown.

import { imagesOf, textsOf } from "./state.js";
import { say } from "./strings.js";
import { uploadFile } from "./uploads.js";

export class ApiError extends Error {
  constructor(status, { type, message }, retryAfter) {
    super(message);
    Object.assign(this, { status, type, retryAfter });
  }

  get busy() {
    return this.status === 429 || this.status === 503;
  }

  // Whether no server answered, or a proxy in its place.
  get gone() {
    return [0, 502, 504].includes(this.status);
  }
}

async function request(path, options) {
  let response, body;
  try {
    response = await fetch(path, options);
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const message = response ? say("serverAnswered", { status: `${response.status}` }) : say("serverGone");
    throw new ApiError(response?.status ?? 0, { type: "server", message });
  }
  if (response.ok) return body;
  const error = body.error ?? { type: "server", message: say("serverAnswered", { status: `${response.status}` }) };
  throw new ApiError(response.status, error, Number(response.headers.get("Retry-After")) || 1);
}

const imagePath = (id) => `v1/images/${id.split("/").map(encodeURIComponent).join("/")}`;
export const imageUrl = (id, gallery) => `${imagePath(id)}?${new URLSearchParams({ gallery })}`;
export const thumbnailUrl = (id, gallery) => `${imagePath(id)}/thumbnail?${new URLSearchParams({ gallery })}`;

export const fetchInfo = () => request("v1/info");

// The form fields of a query, as pairs; the snippets to copy show the same.
export function queryFields(state, extra = {}) {
  const step = state.steps.at(-1);
  const texts = textsOf(step).map((text) => ["texts", text]);
  const negativeTexts = state.negativeText.split(",").map((text) => text.trim()).filter(Boolean);
  return [
    ...imagesOf(step).map(({ upload, id }, index) =>
      upload ? ["reference_images", uploadFile(upload, index)] : ["reference_ids", id],
    ),
    ...texts,
    ...negativeTexts.map((text) => ["negative_texts", text]),
    ...state.negativeIds.map((id) => ["negative_ids", id]),
    ...(Object.keys(state.where).length ? [["where", JSON.stringify(state.where)]] : []),
    // Without a text only the image counts.
    ...(texts.length && state.balance === 0.5 ? [] : [["balance", String(texts.length ? state.balance : 0)]]),
    ["gallery", state.gallery],
    ...Object.entries(extra).map(([name, value]) => [name, String(value)]),
  ];
}

export function query(state, extra, signal) {
  const body = new FormData();
  for (const [name, value] of queryFields(state, extra)) body.append(name, value);
  return request("v1/query", { method: "POST", body, signal });
}

// Add an image to a gallery under the name of its file.
export function postImage(file, gallery, signal) {
  const body = new FormData();
  for (const [name, value] of [["image", file], ["id", file.name], ["gallery", gallery]]) body.append(name, value);
  return request("v1/images", { method: "POST", body, signal });
}

function listImages(state, offset, limit, signal) {
  const params = { gallery: state.gallery, where: JSON.stringify(state.where), offset, limit };
  return request(`v1/images?${new URLSearchParams(params)}`, { signal });
}

// `count` images from several parts of the gallery: neighbours by name are often alike.
export async function sampleImages(state, count, signal) {
  const partCount = 8;
  const perPart = Math.ceil(count / partCount);
  const { total, images } = await listImages(state, 0, 1, signal);
  if (total <= 1) return images;
  if (total <= 4 * count) return shuffle((await listImages(state, 0, total, signal)).images).slice(0, count);
  const span = Math.floor(total / partCount);
  const parts = Array.from({ length: partCount }, async (_, part) => {
    const start = part * span + Math.floor(Math.random() * (span - 4 * perPart + 1));
    const listed = await listImages(state, start, 4 * perPart, signal);
    return shuffle(listed.images).slice(0, perPart);
  });
  return shuffle((await Promise.all(parts)).flat()).slice(0, count);
}

function shuffle(items) {
  const keyed = items.map((item) => [Math.random(), item]);
  return keyed.sort(([a], [b]) => a - b).map(([, item]) => item);
}
