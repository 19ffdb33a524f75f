// The query as shown: references, steps, suggestions, filters, and what to exclude.

import { imageUrl, thumbnailUrl } from "./api.js";
import { find, make } from "./dom.js";
import { MAX_PARTS, imagesOf, textOf } from "./state.js";
import { say } from "./strings.js";
import { hasUpload, uploadUrl } from "./uploads.js";

const BALANCES = [
  [0.2, "theImage"],
  [0.45, "theImageMore"],
  [0.55, "both"],
  [0.8, "theWordsMore"],
  [1.01, "theWords"],
];

export const balanceLabel = (value) => say(BALANCES.find(([below]) => value < below)[1]);

const urlOf = ({ id, upload }, gallery, galleryUrl) => (upload ? uploadUrl(upload) : galleryUrl(id, gallery));
const nameOf = ({ id, upload }) => (upload ? say("yourImage") : id);

export function showReference(state) {
  const step = state.steps.at(-1);
  const isShown = step?.id || (step?.upload && hasUpload(step.upload));
  if (!isShown) return hideReference();
  const image = find("#reference-image");
  const url = urlOf(step, state.gallery, imageUrl);
  if (image.getAttribute("src") !== url) image.src = url;
  image.alt = say("reference", { name: nameOf(step) });
  image.hidden = false;
  find("#reference").classList.add("full");
  find("#reference .choose strong").textContent = say("changeImage");
}

export function hideReference() {
  find("#reference-image").hidden = true;
  find("#reference-image").removeAttribute("src");
  find("#reference").classList.remove("full");
  find("#reference .choose strong").textContent = say("chooseImage");
}

export function showSteps(state, goTo) {
  const nav = find("#steps");
  nav.hidden = state.steps.length < 2;
  const items = state.steps.map((step, index) => {
    const last = index === state.steps.length - 1;
    const names = imagesOf(step).map(nameOf).join(" + ") || say("wordsAlone");
    const label = say("stepLabel", { step: index + 1, names: [names, textOf(step)].filter(Boolean).join(", ") });
    const thumbnails = imagesOf(step).map((image) => thumbnail(image, state.gallery));
    if (!thumbnails.length) thumbnails.push(make("span", { className: "missing-image" }, "Aa"));
    const button = make("button", { type: "button", title: names, "aria-label": label }, ...thumbnails);
    if (last) button.setAttribute("aria-current", "step");
    button.addEventListener("click", () => goTo(index));
    return make("li", {}, button, ...(textOf(step) ? [make("span", { className: "step-text" }, textOf(step))] : []));
  });
  find("ol", nav).replaceChildren(...items);
  nav.scrollLeft = nav.scrollWidth;
}

function thumbnail(image, gallery) {
  const url = urlOf(image, gallery, thumbnailUrl);
  return url ? make("img", { src: url, alt: "" }) : make("span", { className: "missing-image" }, "?");
}

// The extra reference images and the finished texts; a click removes one.
export function showExtraImages(state, remove) {
  const step = state.steps.at(-1);
  const items = (step?.extraImages ?? []).map((image, index) => {
    const label = say("removeImage", { name: nameOf(image) });
    const button = make("button", { title: label, "aria-label": label, type: "button" }, thumbnail(image, state.gallery));
    button.addEventListener("click", () => remove(index));
    return make("li", {}, button);
  });
  find("#extra-images ul").replaceChildren(...items);
  find("#extra-images").hidden = !step || !imagesOf(step).length;
  find("#extra-images label").hidden = items.length + 1 >= MAX_PARTS;
}

export function showEdits(state, remove) {
  const step = state.steps.at(-1);
  const items = (step?.edits ?? []).map((text, index) => {
    const button = make("button", { type: "button", className: "chip edit", "aria-label": say("removeText", { text }) }, text);
    button.addEventListener("click", () => remove(index));
    return make("li", {}, button);
  });
  find("#edits").replaceChildren(...items);
  find("#edits").hidden = !items.length;
  find("#add-text").hidden = !step?.text.trim() || items.length + 1 >= MAX_PARTS;
}

// What was not read of the query, with suggestions: `on.correct(unknown)` and `on.exclude(word)` are called on a click.
export function showUnread(texts, maxWords, on) {
  const listed = new Set();
  const first = ({ word }) => !listed.has(word) && listed.add(word);
  const lines = texts.flatMap(({ unknown, unread, ignored_negation: ignored }) => [
    ...unknown.filter(first).map((item) => {
      const button = item.nearest ? [suggestion(say("didYouMean", { word: item.nearest }), () => on.correct(item))] : [];
      return [say("unknownWord", { word: item.word }), ...button];
    }),
    ...(unread.length ? [[say("unreadWords", { count: maxWords, words: unread.join(" ") })]] : []),
    ...(ignored ? [ignoredLine(ignored, on.exclude)] : []),
  ]);
  const list = find("#unread");
  const before = new Map([...list.children].map((item) => [item.textContent, item])); // an item that stays does not blink
  const items = lines.map((parts) => make("li", {}, ...parts.flatMap((part) => [part, " "])));
  list.replaceChildren(...items.map((item) => before.get(item.textContent) ?? item));
  list.hidden = !lines.length;
}

function ignoredLine({ phrase, word }, exclude) {
  return [say("notFollowed", { phrase }), suggestion(say("excludeWord", { word }), () => exclude(word))];
}

function suggestion(text, act) {
  const button = make("button", { type: "button" }, text);
  button.addEventListener("click", act);
  return button;
}

export function showSuggestions(suggestions, use) {
  const chips = suggestions.slice(0, 8).map((text) => {
    const chip = make("button", { type: "button", className: "chip" }, text);
    chip.addEventListener("click", () => use(text));
    return chip;
  });
  find("#suggestions").replaceChildren(...chips);
}

export function showBalance(value) {
  const slider = find("#balance");
  slider.value = value;
  slider.setAttribute("aria-valuetext", balanceLabel(value));
  for (const button of document.querySelectorAll(".balance-ends button")) {
    button.classList.toggle("on", button.textContent === balanceLabel(value));
  }
}

export function showNegativeImages(state, remove) {
  const row = find("#negative-images");
  row.hidden = !state.negativeIds.length;
  const items = state.negativeIds.map((id) => {
    const image = make("img", { src: thumbnailUrl(id, state.gallery), alt: "" });
    const label = say("allowAgain", { name: id });
    const button = make("button", { title: label, "aria-label": label, type: "button" }, image);
    button.addEventListener("click", () => remove(id));
    return make("li", {}, button);
  });
  find("ul", row).replaceChildren(...items);
}

// One pill a column, which opens into its values; a column with a single value filters nothing.
export function showFilters(columns, state, change) {
  const filters = find("#filters");
  const open = find("details[open]", filters)?.dataset.column;
  const focused = document.activeElement?.closest?.("#filters label")?.textContent;
  const useful = Object.entries(columns).filter(([, values]) => Object.keys(values).length > 1);
  const pills = useful.map(([column, values]) => {
    const selected = state.where[column] ?? [];
    const label = [column, selected.join(", ")].filter(Boolean).join(": ");
    const name = make("summary", { className: selected.length ? "on" : "" }, label);
    const choices = Object.entries(values).map(([value, count]) =>
      choice(value, count, selected.includes(value), change, column),
    );
    const list = make("div", { className: "choices" }, ...choices);
    const pill = make("details", { name: "filter", open: column === open }, name, list);
    pill.dataset.column = column;
    return pill;
  });
  filters.replaceChildren(...pills);
  const labels = [...filters.querySelectorAll("details[open] label")];
  labels.find(({ textContent }) => textContent === focused)?.control.focus();
}

function choice(value, count, checked, change, column) {
  const check = make("input", { type: "checkbox", checked });
  check.addEventListener("change", () => change(column, value, check.checked));
  return make("label", {}, check, make("span", {}, value || say("none")), make("small", {}, String(count)));
}

export function showGalleries(names, current, change) {
  const select = find("#galleries");
  select.replaceChildren(...names.map((name) => make("option", { value: name, selected: name === current }, name)));
  select.closest("label").hidden = names.length < 2;
  select.onchange = () => change(select.value);
}

const STAGES = ["queue", "decode", "image", "text", "stage1", "stage2"];

export function showSpeed(timings, device) {
  const stages = STAGES.filter((name) => timings[name] > 0);
  const bars = stages.map((name) => {
    const bar = make("i", { className: name });
    bar.style.flexGrow = timings[name];
    return bar;
  });
  find("#speed .bar").replaceChildren(...bars);
  find("#speed").hidden = false;
  const total = say("timingOn", { total: timings.total.toFixed(1), device });
  find("#speed .times").textContent = [total, ...stages.map((name) => `${say(name)} ${timings[name].toFixed(1)}`)].join(" · ");
}

// What cannot be taken as an image, at the place where it was dropped; "" for nothing.
export function showProblem(message) {
  find("#problem").textContent = message;
  find("#problem").hidden = !message;
}

// A line above the images with one thing to do about it; `null` for none.
export function showNotice(message, action, act) {
  const notice = find("#notice");
  notice.hidden = message === null;
  find("span", notice).textContent = message ?? "";
  Object.assign(find("button", notice), { textContent: action ?? "", onclick: act ?? null });
}
