// The page: an event changes the state, the state is shown, the service is queried, the result is shown.

import { ApiError, fetchInfo, query, sampleImages, thumbnailUrl } from "./api.js";
import { copyText, curlSnippet, pythonSnippet } from "./copy.js";
import { debounce, find, prefersReducedMotion } from "./dom.js";
import { listenForImages } from "./drop.js";
import { Grid, flyToReference } from "./grid.js";
import * as panel from "./panel.js";
import {
  MAX_PARTS, emptyState, formatState, imagesOf, newStep, parseState, textOf, withFilter, withImage, withLastStep, withStep,
  withText,
} from "./state.js";
import { hasUpload, saveUpload } from "./uploads.js";

const HITS = 24;
const WELCOME = [
  "Find it with an image and a few words",
  "Type what it looks like, drop an image, paste one, or start with one of these.",
];
const NO_UPLOAD = [
  "Your image is not available",
  "This address begins with an image from a device, and such images are stored nowhere else. " +
    "Choose it again, or start with another one.",
];
const EMPTY_GALLERY = ["This gallery is empty", "Add images with: nsfse index GALLERY FOLDER"];
const NO_IMAGE = ["This image is not in the gallery", "It may have been renamed or removed. Start with another one."];
const text = find("#text");
let info, state, result, pending;

const grid = new Grid(find("#grid"), {
  use: (id, image) => chooseImage({ id }, image),
  exclude: (id) => setState({ ...state, negativeIds: [...state.negativeIds, id].slice(-MAX_PARTS) }),
  add: (id) => addImage({ id }),
  heatmaps: () => (result.heatmaps ??= query(result.state, { k: result.hits.length, heatmaps: 1 })),
  thumbnail: (id) => thumbnailUrl(id, state.gallery),
});

const gallery = () => info.galleries.find(({ name }) => name === state.gallery);
const extra = () => ({ k: Math.min(HITS, info.limits.k) });

// --- from one state to the next

function setState(next, { keepAddress = false } = {}) {
  const galleryChanged = next.gallery !== state?.gallery;
  state = next;
  if (galleryChanged) grid.tiles.clear();
  if (!keepAddress) updateAddress();
  showQuery();
  return search();
}

function updateAddress(replace = false) {
  updateAddressSoon.cancel();
  const address = `${location.pathname}${formatState(state, info.galleries[0].name)}`;
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
}

// Browsers allow few changes of the address a second: letters go there when typing pauses.
const updateAddressSoon = debounce(400, () => updateAddress(true));

function changeState(changes) {
  state = { ...state, ...changes };
  updateAddressSoon();
  panel.showBalance(state.balance);
  panel.showSteps(state, goToStep);
  showParts();
  return search();
}

const setText = (value) => {
  const next = withText(state, value);
  return next.steps.length === state.steps.length ? changeState(next) : setState(next);
};

// Finish the text that is typed, and start the next one.
function addText() {
  if (!state.steps.at(-1)?.text.trim() || state.steps.at(-1).edits.length + 1 >= MAX_PARTS) return;
  setState(withLastStep(state, (step) => ({ edits: [...step.edits, step.text.trim()], text: "" })));
  text.focus({ preventScroll: true });
}

// Go back to the last finished text.
function editLastText() {
  setState(withLastStep(state, (step) => ({ edits: step.edits.slice(0, -1), text: step.edits.at(-1) })));
}

const withoutItem = (list, index) => list.filter((_, other) => other !== index);

function addImage(image) {
  if (imagesOf(state.steps.at(-1)).length >= MAX_PARTS) return;
  setState(withImage(state, image));
}

// Start the next step with an image; `element` shows it. A new search takes the text that is typed already.
function chooseImage(chosen, element, isNew = !result) {
  const typed = isNew ? text.value : "";
  const from = element?.getBoundingClientRect();
  updateAddress(true);
  setState(withStep(isNew ? { ...state, steps: [] } : state, newStep(chosen, typed)));
  if (from) flyToReference(from);
  scrollTo({ top: 0, behavior: prefersReducedMotion() ? "auto" : "smooth" });
  if (matchMedia("(pointer: fine)").matches) text.focus({ preventScroll: true });
}

async function chooseFile(file) {
  const key = await saveUpload(file);
  chooseImage({ upload: key }, undefined, true);
}

const goToStep = (index) => setState({ ...state, steps: state.steps.slice(0, index + 1) });

// --- searching

async function search() {
  pending?.abort();
  const { signal } = (pending = new AbortController());
  setBusy(true);
  const step = state.steps.at(-1);
  const queried = state;
  try {
    const lost = step && imagesOf(step).some(({ upload }) => upload && !hasUpload(upload));
    if (step && !lost) showResult({ ...(await query(queried, extra(), signal)), state: queried });
    else showSample(await sampleImages(queried, HITS, signal), ...sampleTexts(lost));
  } catch (error) {
    if (signal.aborted) return;
    await showError(error, signal);
  }
  setBusy(false);
}

const sampleTexts = (lost) => (lost ? NO_UPLOAD : gallery().images ? WELCOME : EMPTY_GALLERY);
const setBusy = (busy) => find("#grid").setAttribute("aria-busy", busy);

async function showError(error, signal) {
  if (!(error instanceof ApiError)) throw error;
  if (error.type === "not_found" && state.steps.length) {
    return showSample(await sampleImages(state, HITS, signal).catch(() => []), ...NO_IMAGE);
  }
  panel.showUnread([]);
  const quiet = error.type === "text"; // half a word is no mistake
  showHint(error.busy ? "The server is busy; trying again …" : error.message, quiet ? "quiet" : "loud");
  if (!grid.tiles.size) showHead("No result yet", error.message);
  if (error.busy) setTimeout(() => signal.aborted || search(), 1000 * error.retryAfter);
}

function showHint(message, manner = "quiet") {
  const hint = find("#hint");
  if (hint.textContent !== message) hint.textContent = message;
  hint.className = `hint ${message ? manner : ""}`;
}

// --- showing

function showQuery() {
  const step = state.steps.at(-1);
  document.body.classList.toggle("has-query", Boolean(step));
  const typed = step?.text ?? "";
  if (text.value !== typed) text.value = typed;
  if (find("#negative-text").value !== state.negativeText) find("#negative-text").value = state.negativeText;
  find("#copies").hidden = !step;
  const example = step?.edits.length ? "and with stripes" : "but red, and with stripes";
  find("#text").placeholder = step ? example : "What does it look like?";
  panel.showReference(state);
  panel.showSteps(state, goToStep);
  showParts();
  panel.showBalance(state.balance);
  panel.showNegativeImages(state, (id) =>
    setState({ ...state, negativeIds: state.negativeIds.filter((other) => other !== id) }),
  );
  panel.showFilters(gallery().columns, state, (column, value, selected) =>
    setState(withFilter(state, column, value, selected)),
  );
  panel.showGalleries(info.galleries.map(({ name }) => name), state.gallery, (name) => setState(emptyState(name)));
}

function showParts() {
  panel.showExtraImages(state, (index) =>
    setState(withLastStep(state, ({ extraImages }) => ({ extraImages: withoutItem(extraImages, index) }))),
  );
  panel.showEdits(state, (index) =>
    setState(withLastStep(state, ({ edits }) => ({ edits: withoutItem(edits, index) }))),
  );
}

function showResult(newResult) {
  result = newResult;
  const { hits, has_match: hasMatch } = result;
  const last = hits.findLastIndex(({ is_match }) => is_match);
  const divideAt = hasMatch === false ? 0 : last >= 0 && last < hits.length - 1 ? last + 1 : null;
  const dividerText = hasMatch === false ? "the nearest there are" : "weak matches from here";
  grid.show(hits, { divideAt, dividerText, texts: result.texts });
  const headline = headlineOf(result);
  showHead(headline, leadOf(result));
  find("#show-others").hidden = true;
  showHint("");
  panel.showUnread(result.texts, gallery().bundle.max_words, { correct, exclude });
  panel.showSpeed(result.timings_ms, info.device);
  announce([headline, `${hits.length} images${hits.length ? `, the first is ${hits[0].id}` : ""}`, ...result.notes].join(". "));
}

// Exclude a word whose negation in a sentence the model did not follow.
function exclude(word) {
  const texts = [...state.negativeText.split(","), word].map((part) => part.trim()).filter(Boolean);
  setState({ ...state, negativeText: texts.join(", ") });
}

// Put the known word in place of the one that was typed, where that still stands.
function correct({ word, nearest }) {
  const plain = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const corrected = (typed) => typed.replace(new RegExp(`(?<![\\p{L}\\p{N}])${plain}(?![\\p{L}\\p{N}])`, "giu"), nearest);
  const next = withLastStep(state, ({ text, edits }) => ({ text: corrected(text), edits: edits.map(corrected) }));
  setState({ ...next, negativeText: corrected(state.negativeText) });
}

// Why there is no hit, or what a hit lacks to be a match.
function leadOf({ hits, has_match: hasMatch, threshold, state: { where } }) {
  if (hits.length === 0) {
    if (gallery().images === 0) return EMPTY_GALLERY[1];
    return Object.keys(where).length ? "No image passes the filters; remove one of them." : "The gallery has no other image.";
  }
  const percent = threshold === null ? "" : `${Math.round(100 * threshold)} %`;
  return hasMatch === false && percent ? `A match has a confidence of ${percent} or more.` : "";
}

function headlineOf({ hits, has_match: hasMatch, state: { steps } }) {
  if (hits.length === 0) return "No image is left";
  if (hasMatch === false) return "Nothing here matches";
  const step = steps.at(-1);
  if (!textOf(step)) return ["Like this one", "Like both"][step.extraImages.length] ?? "Like all of them";
  const count = hits.filter(({ is_match }) => is_match).length;
  return hasMatch ? `${count} ${count === 1 ? "match" : "matches"}` : "Nearest first"; // null: there is no confidence
}

function showSample(images, headline, lead) {
  result = undefined;
  panel.showUnread([]);
  grid.show(images);
  showHead(headline, lead);
  showHint("");
  find("#show-others").hidden = images.length >= gallery().images;
  announce(`${headline}. ${images.length} images of the gallery to start with.`);
}

function showHead(headline, lead) {
  find("#headline").textContent = headline;
  find("#lead").textContent = lead;
  const queryText = state.steps.length ? textOf(state.steps.at(-1)) : "";
  document.title = queryText ? `${queryText} · nsfse` : "nsfse";
}

const announce = debounce(700, (message) => (find("#live").textContent = message));

// --- events

function listen() {
  text.addEventListener("input", () => setText(text.value));
  text.addEventListener("keydown", (event) => {
    const more = event.key === "Enter" && event.shiftKey;
    if (more) addText();
    else if (event.key === "Backspace" && !text.value && state.steps.at(-1)?.edits.length) editLastText();
    else return;
    event.preventDefault();
  });
  find("#add-text").addEventListener("click", addText);
  find("#query-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!grid.focus()) text.blur();
  });
  find("#balance").addEventListener("input", ({ target }) => changeState({ balance: Number(target.value) }));
  find(".balance-ends").addEventListener("click", ({ target }) => {
    if (target.value) setState({ ...state, balance: Number(target.value) });
  });
  find("#negative-text").addEventListener("input", ({ target }) => changeState({ negativeText: target.value }));
  find("#restart").addEventListener("click", () => setState(emptyState(state.gallery)));
  find("#show-others button").addEventListener("click", () => search());
  find("#file").addEventListener("change", ({ target }) => {
    if (target.files.length) chooseFile(target.files[0]);
    target.value = "";
  });
  find("#extra-file").addEventListener("change", async ({ target }) => {
    if (target.files.length) addImage({ upload: await saveUpload(target.files[0]) });
    target.value = "";
  });
  find("#refine-toggle").addEventListener("click", ({ currentTarget }) => {
    const open = document.body.classList.toggle("refining");
    currentTarget.setAttribute("aria-expanded", open);
  });
  for (const [name, snippet] of [["curl", curlSnippet], ["python", pythonSnippet]]) {
    find(`#copy-${name}`).addEventListener("click", ({ currentTarget }) => copySnippet(currentTarget, snippet(state, extra())));
  }
  find("#reference-image").addEventListener("error", panel.hideReference);
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", ({ target }) => target.closest("details") || closeFilters());
  addEventListener("popstate", () => setState(stateOf(location.search), { keepAddress: true }));
  addEventListener("pagehide", () => updateAddress(true));
  listenForImages(chooseFile);
}

async function copySnippet(button, snippet) {
  const before = button.textContent;
  await copyText(snippet);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1400);
}

function onKey(event) {
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

function stateOf(address) {
  const parsed = parseState(address);
  const known = info.galleries.some(({ name }) => name === parsed.gallery);
  return known ? parsed : { ...parsed, gallery: info.galleries[0].name };
}

async function start() {
  try {
    info = await fetchInfo();
  } catch (error) {
    return showHint(error.message, "loud");
  }
  find("#note").textContent = info.note ?? "";
  find("#note").hidden = !info.note;
  text.maxLength = info.limits.text_chars;
  panel.showSuggestions(info.suggestions, (chosen) => {
    text.value = chosen;
    setText(chosen);
    text.focus({ preventScroll: true });
  });
  listen();
  await setState(stateOf(location.search), { keepAddress: true });
}

start();
