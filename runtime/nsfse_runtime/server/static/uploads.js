// Images from this device. The server never stores them, so the page does, for as long as its tab is open.

const MAX_SIDE = 768; // pixels
const SMALL_BYTES = 300_000;
// Images to which browsers give no type; whether the server reads them it says itself.
const SUFFIXES = /\.(hei[cf]|avif|tiff?|jp2|j2k|webp|bmp|gif|jpe?g|png)$/i;
const files = new Map();

// Store an image and return its key in the address. Large ones are shrunk first: they are sent with every letter.
export async function saveUpload(blob) {
  const small = await shrink(blob);
  const key = Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  files.set(key, { blob: small, url: URL.createObjectURL(small) });
  try {
    sessionStorage.setItem(`upload ${key}`, await dataUrl(small));
  } catch {
    // The storage of the tab is full: the image lasts until the page is left.
  }
  return key;
}

export const isImage = ({ name, type }) => type.startsWith("image/") || (!type && SUFFIXES.test(name));

export const hasUpload = (key) => restore(key) !== undefined;
export const uploadUrl = (key) => restore(key)?.url;

// An image as a file; `index` among the query's images gives it a name of its own.
export function uploadFile(key, index) {
  const { blob } = restore(key);
  return new File([blob], `reference${index ? `-${index + 1}` : ""}.${blob.type.split("/")[1] ?? "img"}`, { type: blob.type });
}

function restore(key) {
  if (files.has(key)) return files.get(key);
  const saved = sessionStorage.getItem(`upload ${key}`);
  if (!saved) return undefined;
  const [head, data] = saved.split(",");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const blob = new Blob([bytes], { type: head.slice(5, head.indexOf(";")) });
  files.set(key, { blob, url: URL.createObjectURL(blob) });
  return files.get(key);
}

async function shrink(blob) {
  let image;
  try {
    image = await createImageBitmap(blob);
  } catch {
    return blob; // not an image for the browser; perhaps one for the server, which refuses it if not
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(image.width, image.height));
  if (scale === 1 && blob.size <= SMALL_BYTES) return blob;
  const canvas = Object.assign(document.createElement("canvas"), {
    width: Math.max(1, Math.round(image.width * scale)),
    height: Math.max(1, Math.round(image.height * scale)),
  });
  const context = canvas.getContext("2d");
  Object.assign(context, { fillStyle: "#fff", imageSmoothingQuality: "high" });
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((small) => done(small ?? blob), "image/jpeg", 0.92));
}

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}
