// The evidence of a hit: the query's own words, ticked or struck through, and where in the image they are.

import { make } from "./dom.js";
import { say } from "./strings.js";

const VEIL_OPACITY = 0.62;

// A word with less than half an even share of the weight says little; one near the boundary is not sure.
export function verdict({ weight, matched }, count) {
  if (matched === null || Math.abs(weight) * count < 0.5) return "neutral";
  return matched ? "matched" : "mismatched";
}

export function wordLabel({ word, weight, matched }) {
  const label = say(isPresent({ weight, matched }) ? "inImage" : "notInImage", { word });
  return weight < 0 ? say(matched ? "asWanted" : "notAsWanted", { label }) : label;
}

// An excluded word (a negative weight) matches where it is absent.
export const isPresent = ({ weight, matched }) => (weight < 0 ? !matched : matched);

// The sentence under a hit; `show(index of a word, or null)` is called as words are pointed at. `texts` hold what of each
// text was not read; the negative ones are last.
export function evidenceSentence(evidence, texts, show, tabIndex = -1) {
  const words = evidence.map((item, index) => {
    const kind = verdict(item, evidence.length);
    if (kind === "neutral") return make("span", { className: "word neutral" }, item.word);
    const properties = { type: "button", className: `word ${kind}`, tabIndex, "aria-label": wordLabel(item) };
    const word = make("button", properties, kind === "matched" ? item.word : make("s", {}, item.word));
    for (const event of ["pointerenter", "focus", "click"]) word.addEventListener(event, () => show(index));
    for (const event of ["pointerleave", "blur"]) word.addEventListener(event, () => show(null));
    return word;
  });
  const parts = orderWords(words, texts);
  return make("p", { className: "evidence" }, ...parts.flatMap((part) => [part, " "]));
}

// The words of the evidence, with unknown words where they stood, words after the model's limit, and "without" before the
// first negative text.
export function orderWords(words, texts) {
  let start = 0;
  const first = texts.findIndex(({ negative }) => negative);
  return texts.flatMap(({ words: count, unknown, unread }, index) => {
    const own = words.slice(start, (start += count)).map((word) => [word]);
    own.push([]);
    for (const item of unknown.toReversed()) {
      own[Math.min(item.position, own.length - 1)].unshift(unreadWord(item.word, unknownHint(item)));
    }
    const label = index === first && index > 0 ? [make("span", { className: "negative-label" }, say("without"))] : [];
    return [...label, ...own.flat(), ...unread.map((word) => unreadWord(word, say("unreadWord", { word })))];
  });
}

const unreadWord = (word, title) => make("span", { className: "word unread", title }, word);
export const unknownHint = ({ word, nearest }) =>
  [say("unknownWord", { word }), ...(nearest ? [say("didYouMean", { word: nearest })] : [])].join("; ");

// Darken an image where a word is not, and return the caption. `regions` are rows × columns of the word's correspondence
// less the boundary. A word may be in the image as a whole and in none of its parts.
export function showHeatmap(canvas, image, { word, weight, matched, regions }, grid) {
  const somewhere = Math.max(...regions) > 0;
  const whole = !somewhere && isPresent({ weight, matched });
  darken(canvas, image, whole ? regions.map(() => 1) : regions, grid);
  return somewhere ? word : say(whole ? "wholeImage" : "nowhere", { word });
}

function darken(canvas, image, regions, [rows, columns]) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const density = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * density, height: height * density });
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const { shown, padded } = layout(image, width, height, columns / rows);
  context.beginPath();
  context.rect(shown.x, shown.y, shown.width, shown.height);
  context.clip();
  context.imageSmoothingQuality = "high";
  context.drawImage(veil(regions, rows, columns), padded.x, padded.y, padded.width, padded.height);
}

function veil(regions, rows, columns) {
  const cells = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const context = cells.getContext("2d");
  const image = context.createImageData(columns, rows);
  const most = Math.max(...regions);
  regions.forEach((value, index) => {
    const light = most > 0 ? Math.max(0, value / most) : 0;
    image.data.set([12, 14, 16, 255 * VEIL_OPACITY * (1 - Math.sqrt(light))], 4 * index);
  });
  context.putImageData(image, 0, 0);
  return cells;
}

// Where a contained image is `shown`, and where it is `padded` to the model's own aspect, as the model saw it.
export function layout({ naturalWidth, naturalHeight }, width, height, aspect) {
  const scale = Math.min(width / naturalWidth, height / naturalHeight);
  const shown = centred(naturalWidth * scale, naturalHeight * scale, width, height);
  const wide = Math.max(shown.width, shown.height * aspect);
  return { shown, padded: centred(wide, wide / aspect, width, height) };
}

function centred(wide, high, width, height) {
  return { x: (width - wide) / 2, y: (height - high) / 2, width: wide, height: high };
}
