// What is asked, shown: the reference, the steps that led to it, suggestions, filters, and what to leave out.

import { imageOf, thumbnailOf } from "./api.js";
import { find, make } from "./dom.js";
import { MOST, images, said } from "./state.js";
import { has, urlOf } from "./uploads.js";

const BALANCES = [
  [0.2, "like the image"],
  [0.45, "more like the image"],
  [0.55, "both"],
  [0.8, "more like the words"],
  [1.01, "like the words"],
];

export const balanceSaid = (value) => BALANCES.find(([most]) => value < most)[1];

const sourceOf = ({ id, upload }, gallery, source) => (upload ? urlOf(upload) : source(id, gallery));
const nameOf = ({ id, upload }) => (upload ? "your image" : id);

export function showReference(state) {
  const step = state.steps.at(-1);
  if (!step || (step.upload && !has(step.upload))) return hideReference();
  const image = find("#reference-image");
  const source = sourceOf(step, state.gallery, imageOf);
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = `the reference: ${nameOf(step)}`;
  image.hidden = false;
  find("#reference").classList.add("full");
  find("#reference .choose strong").textContent = "Change";
}

export function hideReference() {
  find("#reference-image").hidden = true;
  find("#reference-image").removeAttribute("src");
  find("#reference").classList.remove("full");
  find("#reference .choose strong").textContent = "Choose an image";
}

export function showSteps(state, back) {
  const nav = find("#steps");
  nav.hidden = state.steps.length < 2;
  const items = state.steps.map((step, at) => {
    const last = at === state.steps.length - 1;
    const names = images(step).map(nameOf).join(" and ");
    const label = `step ${at + 1}: ${[names, said(step)].filter(Boolean).join(", ")}`;
    const seen = images(step).map((each) => imageIn(each, state.gallery));
    const button = make("button", { type: "button", title: names, "aria-label": label }, ...seen);
    if (last) button.setAttribute("aria-current", "step");
    button.addEventListener("click", () => back(at));
    return make("li", {}, button, ...(said(step) ? [make("span", { className: "said" }, said(step))] : []));
  });
  find("ol", nav).replaceChildren(...items);
  nav.scrollLeft = nav.scrollWidth;
}

function imageIn(each, gallery) {
  const source = sourceOf(each, gallery, thumbnailOf);
  return source ? make("img", { src: source, alt: "" }) : make("span", { className: "lost" }, "?");
}

// The other images that the answer is to be like, and the edits that are done; each is taken away by a click.
export function showMore(state, remove) {
  const step = state.steps.at(-1);
  const items = (step?.more ?? []).map((each, at) => {
    const named = { title: `${nameOf(each)}: take it away`, "aria-label": `not like ${nameOf(each)} any more` };
    const button = make("button", { ...named, type: "button" }, imageIn(each, state.gallery));
    button.addEventListener("click", () => remove(at));
    return make("li", {}, button);
  });
  find("#more ul").replaceChildren(...items);
  find("#more").hidden = !step;
  find("#more").classList.toggle("some", items.length > 0);
  find("#more .add").hidden = items.length + 1 >= MOST;
}

export function showEdits(state, remove) {
  const step = state.steps.at(-1);
  const items = (step?.edits ?? []).map((text, at) => {
    const button = make("button", { type: "button", className: "chip edit", "aria-label": `take away: ${text}` }, text);
    button.addEventListener("click", () => remove(at));
    return make("li", {}, button);
  });
  find("#edits").replaceChildren(...items);
  find("#edits").hidden = !items.length;
  find("#another").hidden = !step?.text.trim() || items.length + 1 >= MOST;
}

// What was not read of the question, and what to say instead: `on.correct(unknown)` and `on.exclude(word)` are called for
// what is offered.
export function showUnread(texts, most, on) {
  const told = new Set();
  const first = ({ word }) => !told.has(word) && told.add(word);
  const lines = texts.flatMap(({ unknown, unread, ignored_negation: ignored }) => [
    ...unknown.filter(first).map((each) => {
      const offer = each.nearest ? [offered(`did you mean ${each.nearest}?`, () => on.correct(each))] : [];
      return [`unknown word: ${each.word}`, ...offer];
    }),
    ...(unread.length ? [[`not read, after the first ${most} words: ${unread.join(" ")}`]] : []),
    ...(ignored ? [[`not followed: “${ignored.phrase}”`, offered(`exclude ${ignored.word}`, () => on.exclude(ignored.word))]] : []),
  ]);
  const list = find("#unread");
  const before = new Map([...list.children].map((item) => [item.textContent, item])); // what stays does not blink
  const items = lines.map((parts) => make("li", {}, ...parts.flatMap((part) => [part, " "])));
  list.replaceChildren(...items.map((item) => before.get(item.textContent) ?? item));
  list.hidden = !lines.length;
}

function offered(said, act) {
  const button = make("button", { type: "button" }, said);
  button.addEventListener("click", act);
  return button;
}

export function showChips(suggestions, take) {
  const chips = suggestions.slice(0, 8).map((text) => {
    const chip = make("button", { type: "button", className: "chip" }, text);
    chip.addEventListener("click", () => take(text));
    return chip;
  });
  find("#chips").replaceChildren(...chips);
}

export function showBalance(value) {
  const slider = find("#balance");
  slider.value = value;
  slider.setAttribute("aria-valuetext", balanceSaid(value));
  for (const end of document.querySelectorAll(".ends button")) {
    end.classList.toggle("on", end.textContent === balanceSaid(value));
  }
}

export function showMinus(state, remove) {
  const box = find("#minus");
  box.hidden = !state.minus.length;
  const items = state.minus.map((id) => {
    const image = make("img", { src: thumbnailOf(id, state.gallery), alt: "" });
    const named = { title: `${id}: allow it again`, "aria-label": `allow ${id} again` };
    const button = make("button", { ...named, type: "button" }, image);
    button.addEventListener("click", () => remove(id));
    return make("li", {}, button);
  });
  find("ul", box).replaceChildren(...items);
}

// One pill a column, which opens into its values; a column with a single value tells nothing apart.
export function showFilters(columns, state, change) {
  const box = find("#filters");
  const open = find("details[open]", box)?.dataset.column;
  const focused = document.activeElement?.closest?.("#filters label")?.textContent;
  const telling = Object.entries(columns).filter(([, values]) => Object.keys(values).length > 1);
  const pills = telling.map(([column, values]) => {
    const on = state.where[column] ?? [];
    const name = make("summary", { className: on.length ? "on" : "" }, [column, on.join(", ")].filter(Boolean).join(": "));
    const choices = Object.entries(values).map(([value, count]) => choice(value, count, on.includes(value), change, column));
    const pill = make("details", { name: "filter", open: column === open }, name, make("div", { className: "choices" }, ...choices));
    pill.dataset.column = column;
    return pill;
  });
  box.replaceChildren(...pills);
  const labels = [...box.querySelectorAll("details[open] label")];
  labels.find(({ textContent }) => textContent === focused)?.control.focus();
}

function choice(value, count, checked, change, column) {
  const check = make("input", { type: "checkbox", checked });
  check.addEventListener("change", () => change(column, value, check.checked));
  return make("label", {}, check, make("span", {}, value || "none"), make("small", {}, String(count)));
}

export function showGalleries(names, current, change) {
  const select = find("#galleries");
  select.replaceChildren(...names.map((name) => make("option", { value: name, selected: name === current }, name)));
  select.closest("label").hidden = names.length < 2;
  select.onchange = () => change(select.value);
}

const STAGES = { queue: "waiting", decode: "reading", image: "image", text: "words", stage1: "search", stage2: "evidence" };

export function showSpeed(timings, device) {
  const parts = Object.entries(STAGES).filter(([name]) => timings[name] > 0);
  const bars = parts.map(([name]) => {
    const bar = make("i", { className: name });
    bar.style.flexGrow = timings[name];
    return bar;
  });
  find("#speed .bar").replaceChildren(...bars);
  find("#speed").hidden = false;
  const split = parts.map(([name, said]) => `${said} ${timings[name].toFixed(1)}`).join(" · ");
  const total = make("b", {}, `${timings.total.toFixed(1)} ms`);
  find("#speed .times").replaceChildren(total, make("span", {}, split), ` on ${device}`);
}
