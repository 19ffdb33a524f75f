// Images from this device. They are never kept by the server, so the page keeps them for as long as its tab lives.

const LONGEST = 768;
const SMALL = 300_000;
const files = new Map();

// Keep an image and return its name in the address. Large ones are made smaller first: they are sent with every letter.
export async function keep(blob) {
  const small = await shrunk(blob);
  const key = Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  files.set(key, { blob: small, url: URL.createObjectURL(small) });
  try {
    sessionStorage.setItem(`upload ${key}`, await dataUrl(small));
  } catch {
    // The tab's store is full: the image works until the page is left.
  }
  return key;
}

export const has = (key) => restored(key) !== undefined;
export const urlOf = (key) => restored(key)?.url;

// The `at`th image of a question, by a name of its own.
export function file(key, at) {
  const { blob } = restored(key);
  return new File([blob], `reference${at ? `-${at + 1}` : ""}.${blob.type.split("/")[1] ?? "img"}`, { type: blob.type });
}

function restored(key) {
  if (files.has(key)) return files.get(key);
  const saved = sessionStorage.getItem(`upload ${key}`);
  if (!saved) return undefined;
  const [head, data] = saved.split(",");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const blob = new Blob([bytes], { type: head.slice(5, head.indexOf(";")) });
  files.set(key, { blob, url: URL.createObjectURL(blob) });
  return files.get(key);
}

async function shrunk(blob) {
  let image;
  try {
    image = await createImageBitmap(blob);
  } catch {
    return blob; // not an image for the browser; perhaps one for the server, which says so if not
  }
  const scale = Math.min(1, LONGEST / Math.max(image.width, image.height));
  if (scale === 1 && blob.size <= SMALL) return blob;
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
