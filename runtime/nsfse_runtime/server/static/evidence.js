// The evidence of a hit: the question's own words, ticked or struck through, and where in the image they are.

import { make } from "./dom.js";

const VEIL = 0.62;

// A word that has less than half an even share of the text says little.
export function verdict({ weight, matched }, count) {
  if (Math.abs(weight) * count < 0.5) return "silent";
  return matched ? "matched" : "mismatched";
}

export function said({ word, weight, matched }) {
  const there = found({ weight, matched }) ? "" : "not ";
  return `${word}: ${there}in the image${weight < 0 ? `, ${matched ? "as" : "not as"} asked` : ""}`;
}

export const found = ({ weight, matched }) => (weight < 0 ? !matched : matched);

// The sentence under a hit; `show(word index or null)` is called as words are looked at. `texts` say what of each text
// was not read; those that must not be there come last.
export function sentence(evidence, texts, show) {
  const words = evidence.map((each, at) => {
    const kind = verdict(each, evidence.length);
    if (kind === "silent") return make("span", { className: "word silent" }, each.word);
    const properties = { type: "button", className: `word ${kind}`, tabIndex: -1, "aria-label": said(each) };
    const word = make("button", properties, kind === "matched" ? each.word : make("s", {}, each.word));
    for (const event of ["pointerenter", "focus", "click"]) word.addEventListener(event, () => show(at));
    for (const event of ["pointerleave", "blur"]) word.addEventListener(event, () => show(null));
    return word;
  });
  const parts = inOrder(words, texts);
  return make("p", { className: "evidence" }, ...parts.flatMap((part) => [part, " "]));
}

// The words of the evidence, with those that are unknown in their places, those after the model's limit, and "without"
// before the first text that must not be there.
function inOrder(words, texts) {
  let start = 0;
  const first = texts.findIndex(({ negative }) => negative);
  return texts.flatMap(({ words: count, unknown, unread }, at) => {
    const own = words.slice(start, (start += count)).map((word) => [word]);
    own.push([]);
    for (const each of unknown.toReversed()) own[Math.min(each.position, own.length - 1)].unshift(unreadWord(each.word, hintOf(each)));
    const label = at === first && at > 0 ? [make("span", { className: "without-these" }, "without")] : [];
    return [...label, ...own.flat(), ...unread.map((word) => unreadWord(word, `${word}: not read, the text is too long`))];
  });
}

const unreadWord = (word, title) => make("span", { className: "word unread", title }, word);
export const hintOf = ({ word, nearest }) => `unknown word: ${word}${nearest ? `; did you mean ${nearest}?` : ""}`;

// Darken an image where a word is not, and return what to write on it. `regions` are rows × columns of the word's
// correspondence less the boundary. A word may be found in the image as a whole and in none of its parts.
export function spotlight(canvas, image, each, grid) {
  const somewhere = Math.max(...each.regions) > 0;
  const whole = !somewhere && found(each);
  darken(canvas, image, whole ? each.regions.map(() => 1) : each.regions, grid);
  return somewhere ? each.word : `${each.word}: ${whole ? "the image as a whole" : "nowhere"}`;
}

function darken(canvas, image, regions, [rows, columns]) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const density = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * density, height: height * density });
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const { shown, whole } = places(image, width, height, columns / rows);
  context.beginPath();
  context.rect(shown.x, shown.y, shown.width, shown.height);
  context.clip();
  context.imageSmoothingQuality = "high";
  context.drawImage(veil(regions, rows, columns), whole.x, whole.y, whole.width, whole.height);
}

function veil(regions, rows, columns) {
  const cells = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const context = cells.getContext("2d");
  const image = context.createImageData(columns, rows);
  const most = Math.max(...regions);
  regions.forEach((value, at) => {
    const light = most > 0 ? Math.max(0, value / most) : 0;
    image.data.set([12, 14, 16, 255 * VEIL * (1 - Math.sqrt(light))], 4 * at);
  });
  context.putImageData(image, 0, 0);
  return cells;
}

// Where a contained image is `shown`, and the `whole` that the model saw: it pads to its own aspect.
function places({ naturalWidth, naturalHeight }, width, height, aspect) {
  const scale = Math.min(width / naturalWidth, height / naturalHeight);
  const shown = centred(naturalWidth * scale, naturalHeight * scale, width, height);
  const wide = Math.max(shown.width, shown.height * aspect);
  return { shown, whole: centred(wide, wide / aspect, width, height) };
}

function centred(wide, high, width, height) {
  return { x: (width - wide) / 2, y: (height - high) / 2, width: wide, height: high };
}
