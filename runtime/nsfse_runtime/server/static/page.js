// The page: an event changes the state, the state is shown, the service is asked, the answer is shown.

import { ApiError, information, query, shelf, thumbnailOf } from "./api.js";
import { copy, curl, python } from "./copy.js";
import { find, later, still } from "./dom.js";
import { listenForImages } from "./drop.js";
import { Grid, fly } from "./grid.js";
import * as panel from "./panel.js";
import { MOST, altered, begun, empty, filtered, images, read, said, stepped, write } from "./state.js";
import { has, keep } from "./uploads.js";

const HITS = 24;
const START = ["Find it with an image and a few words", "Drop an image, paste one, or start with one of these."];
const LOST = [
  "Your image stayed where it was",
  "This address begins with an image from a device, and such images are kept nowhere else. " +
    "Choose it again, or start with another one.",
];
const BARE = ["This gallery is empty", "Take images into it with: nsfse index GALLERY FOLDER"];
const GONE = ["This image is not here", "It may have been renamed or taken out. Start with another one."];
const text = find("#text");
let info, state, answer, asking;

const grid = new Grid(find("#grid"), {
  take: (id, image) => take({ id }, image),
  minus: (id) => go({ ...state, minus: [...state.minus, id].slice(-MOST) }),
  more: (id) => addImage({ id }),
  regions: () => (answer.regions ??= query(answer.state, { k: answer.hits.length, heatmaps: 1 })),
  thumbnail: (id) => thumbnailOf(id, state.gallery),
});

const gallery = () => info.galleries.find(({ name }) => name === state.gallery);
const extra = () => ({ k: Math.min(HITS, info.limits.k) });

// --- from one state to the next

function go(next, { keepAddress = false } = {}) {
  const galleryChanged = next.gallery !== state?.gallery;
  state = next;
  if (galleryChanged) grid.tiles.clear();
  if (!keepAddress) remember();
  showQuestion();
  return ask();
}

function remember(replace = false) {
  rememberSoon.cancel();
  const address = `${location.pathname}${write(state, info.galleries[0].name)}`;
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
}

// Browsers allow few changes of the address a second: letters are remembered when typing pauses.
const rememberSoon = later(400, () => remember(true));

function change(part) {
  state = { ...state, ...part };
  rememberSoon();
  panel.showBalance(state.balance);
  panel.showSteps(state, back);
  showParts();
  return ask();
}

const typed = (value) => {
  if (!state.steps.length) return tell(value.trim() ? "Now choose an image to start from." : "");
  return change(altered(state, () => ({ text: value })));
};

// What is typed is one edit, and the next is begun.
function anotherEdit() {
  if (!state.steps.at(-1)?.text.trim() || state.steps.at(-1).edits.length + 1 >= MOST) return;
  go(altered(state, (step) => ({ edits: [...step.edits, step.text.trim()], text: "" })));
  text.focus({ preventScroll: true });
}

// The last edit is typed on.
function lastEdit() {
  go(altered(state, (step) => ({ edits: step.edits.slice(0, -1), text: step.edits.at(-1) })));
}

const without = (list, at) => list.filter((_, place) => place !== at);

function addImage(image) {
  if (state.steps.at(-1).more.length + 1 < MOST) go(altered(state, (step) => ({ more: [...step.more, image] })));
}

function take(chosen, image, afresh = !answer) {
  const waiting = afresh ? text.value : ""; // what is written already is meant for the first image
  const from = image?.getBoundingClientRect();
  remember(true);
  go(stepped(afresh ? { ...state, steps: [] } : state, begun(chosen, waiting)));
  if (from) fly(from);
  scrollTo({ top: 0, behavior: still() ? "auto" : "smooth" });
  if (matchMedia("(pointer: fine)").matches) text.focus({ preventScroll: true });
}

async function takeFile(file) {
  const key = await keep(file);
  take({ upload: key }, undefined, true);
}

const back = (at) => go({ ...state, steps: state.steps.slice(0, at + 1) });

// --- asking

async function ask() {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  busy(true);
  const step = state.steps.at(-1);
  const asked = state;
  try {
    const lost = step && images(step).some(({ upload }) => upload && !has(upload));
    if (step && !lost) showAnswer({ ...(await query(asked, extra(), signal)), state: asked });
    else showShelf(await shelf(asked, HITS, signal), ...(lost ? LOST : gallery().images ? START : BARE));
  } catch (error) {
    if (signal.aborted) return;
    await showError(error, signal);
  }
  busy(false);
}

const busy = (is) => find("#grid").setAttribute("aria-busy", is);

async function showError(error, signal) {
  if (!(error instanceof ApiError)) throw error;
  if (error.type === "not_found" && state.steps.length) {
    return showShelf(await shelf(state, HITS, signal).catch(() => []), ...GONE);
  }
  panel.showUnread([]);
  const quiet = error.type === "text"; // half a word is no mistake
  tell(error.busy ? "The server is busy; trying again …" : error.message, quiet ? "quiet" : "loud");
  if (!grid.tiles.size) head("No answer yet", error.message);
  if (error.busy) setTimeout(() => signal.aborted || ask(), 1000 * error.wait);
}

function tell(message, manner = "quiet") {
  const hint = find("#hint");
  if (hint.textContent !== message) hint.textContent = message;
  hint.className = `hint ${message ? manner : ""}`;
}

// --- showing

function showQuestion() {
  const step = state.steps.at(-1);
  document.body.classList.toggle("asked", Boolean(step));
  if (step && text.value !== step.text) text.value = step.text;
  if (find("#without").value !== state.without) find("#without").value = state.without;
  find("#copies").hidden = !step;
  const wanted = step?.edits.length ? "and with stripes" : "but red, and with stripes";
  find("#text").placeholder = step ? wanted : "What should be different?";
  panel.showReference(state);
  panel.showSteps(state, back);
  showParts();
  panel.showBalance(state.balance);
  panel.showMinus(state, (id) => go({ ...state, minus: state.minus.filter((each) => each !== id) }));
  panel.showFilters(gallery().columns, state, (column, value, on) => go(filtered(state, column, value, on)));
  panel.showGalleries(info.galleries.map(({ name }) => name), state.gallery, (name) => go(empty(name)));
}

function showParts() {
  panel.showMore(state, (at) => go(altered(state, ({ more }) => ({ more: without(more, at) }))));
  panel.showEdits(state, (at) => go(altered(state, ({ edits }) => ({ edits: without(edits, at) }))));
}

function showAnswer(found) {
  answer = found;
  const { hits, has_match: hasMatch } = found;
  const last = hits.findLastIndex(({ is_match }) => is_match);
  const line = hasMatch === false ? 0 : last >= 0 && last < hits.length - 1 ? last + 1 : null;
  const words = hasMatch === false ? "the nearest there are" : "weak matches from here";
  grid.show(hits, { line, words, texts: found.texts });
  const headline = headlineOf(found);
  head(headline, leadOf(found));
  find("#others").hidden = true;
  tell("");
  panel.showUnread(found.texts, gallery().bundle.max_words, { correct, exclude });
  panel.showSpeed(found.timings_ms, info.device);
  announce([headline, `${hits.length} images${hits.length ? `, the first is ${hits[0].id}` : ""}`, ...found.notes].join(". "));
}

// Exclude a word that the model did not take for an exclusion in a sentence.
function exclude(word) {
  const parts = [...state.without.split(","), word].map((part) => part.trim()).filter(Boolean);
  go({ ...state, without: parts.join(", ") });
}

// Put the known word in place of the one that was typed, where that is still to be seen.
function correct({ word, nearest }) {
  const plain = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const mended = (said) => said.replace(new RegExp(`(?<![\\p{L}\\p{N}])${plain}(?![\\p{L}\\p{N}])`, "giu"), nearest);
  const next = altered(state, ({ text, edits }) => ({ text: mended(text), edits: edits.map(mended) }));
  go({ ...next, without: mended(state.without) });
}

// Why there is no hit, or what a hit lacks to be a match.
function leadOf({ hits, has_match: hasMatch, threshold, state: { where } }) {
  if (hits.length === 0) {
    if (gallery().images === 0) return BARE[1];
    return Object.keys(where).length ? "The filters leave none; take one away." : "The gallery has no other image.";
  }
  const percent = threshold === null ? "" : `${Math.round(100 * threshold)} %`;
  return hasMatch === false && percent ? `A match has a confidence of ${percent} or more.` : "";
}

function headlineOf({ hits, has_match: hasMatch, state: { steps } }) {
  if (hits.length === 0) return "No image is left";
  if (hasMatch === false) return "Nothing here matches";
  const step = steps.at(-1);
  if (!said(step)) return ["Like this one", "Like both"][step.more.length] ?? "Like all of them";
  const count = hits.filter(({ is_match }) => is_match).length;
  return hasMatch ? `${count} ${count === 1 ? "match" : "matches"}` : "Nearest first"; // null: nobody is sure
}

function showShelf(images, headline, lead) {
  answer = undefined;
  panel.showUnread([]);
  grid.show(images);
  head(headline, lead);
  tell(!state.steps.length && text.value.trim() ? "Now choose an image to start from." : "");
  find("#others").hidden = images.length >= gallery().images;
  announce(`${headline}. ${images.length} images of the gallery to start with.`);
}

function head(headline, lead) {
  find("#headline").textContent = headline;
  find("#lead").textContent = lead;
  const asked = state.steps.length ? said(state.steps.at(-1)) : "";
  document.title = asked ? `${asked} · nsfse` : "nsfse";
}

const announce = later(700, (message) => (find("#live").textContent = message));

// --- events

function listen() {
  text.addEventListener("input", () => typed(text.value));
  text.addEventListener("keydown", (event) => {
    const more = event.key === "Enter" && event.shiftKey;
    if (more) anotherEdit();
    else if (event.key === "Backspace" && !text.value && state.steps.at(-1)?.edits.length) lastEdit();
    else return;
    event.preventDefault();
  });
  find("#another").addEventListener("click", anotherEdit);
  find("#words").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!grid.focus()) text.blur();
  });
  find("#balance").addEventListener("input", ({ target }) => change({ balance: Number(target.value) }));
  find(".ends").addEventListener("click", ({ target }) => target.value && go({ ...state, balance: Number(target.value) }));
  find("#without").addEventListener("input", ({ target }) => change({ without: target.value }));
  find("#again").addEventListener("click", () => go(empty(state.gallery)));
  find("#others button").addEventListener("click", () => ask());
  find("#file").addEventListener("change", ({ target }) => {
    if (target.files.length) takeFile(target.files[0]);
    target.value = "";
  });
  find("#more-file").addEventListener("change", async ({ target }) => {
    if (target.files.length) addImage({ upload: await keep(target.files[0]) });
    target.value = "";
  });
  find("#refine-toggle").addEventListener("click", ({ currentTarget }) => {
    const open = document.body.classList.toggle("refining");
    currentTarget.setAttribute("aria-expanded", open);
  });
  for (const [name, snippet] of [["curl", curl], ["python", python]]) {
    find(`#copy-${name}`).addEventListener("click", ({ currentTarget }) => copied(currentTarget, snippet(state, extra())));
  }
  find("#reference-image").addEventListener("error", panel.hideReference);
  document.addEventListener("keydown", key);
  document.addEventListener("click", ({ target }) => target.closest("details") || closeFilters());
  addEventListener("popstate", () => go(opened(location.search), { keepAddress: true }));
  addEventListener("pagehide", () => remember(true));
  listenForImages(takeFile);
}

async function copied(button, snippet) {
  const before = button.textContent;
  await copy(snippet);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1400);
}

function key(event) {
  const typing = event.target.matches("input[type=text], select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    text.focus();
    text.select();
  } else if (event.key === "Escape" && !closeFilters()) {
    event.target.blur();
  }
}

function closeFilters() {
  const open = find("#filters details[open]");
  if (open) open.open = false;
  return Boolean(open);
}

function opened(search) {
  const found = read(search);
  const known = info.galleries.some(({ name }) => name === found.gallery);
  return known ? found : { ...found, gallery: info.galleries[0].name };
}

async function start() {
  try {
    info = await information();
  } catch (error) {
    return tell(error.message, "loud");
  }
  find("#note").textContent = info.note ?? "";
  find("#note").hidden = !info.note;
  text.maxLength = info.limits.text_chars;
  panel.showChips(info.suggestions, (chosen) => {
    text.value = chosen;
    typed(chosen);
    text.focus({ preventScroll: true });
  });
  listen();
  await go(opened(location.search), { keepAddress: true });
}

start();
