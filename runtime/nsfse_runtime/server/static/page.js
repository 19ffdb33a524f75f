// The page: an event changes the state, the state is shown, the service is queried, the result is shown.

import { askToAdd } from "./adding.js";
import { ApiError, fetchInfo, imageUrl, query, sampleImages, thumbnailUrl } from "./api.js";
import { copyFrom, curlSnippet, pythonSnippet } from "./copy.js";
import { debounce, find, prefersReducedMotion } from "./dom.js";
import { chooseFiles, listenForChoice, listenForFiles } from "./drop.js";
import { Grid, flyToReference } from "./grid.js";
import { divider, emptyLead, hasFilters, headlineOf, leadOf } from "./headlines.js";
import * as panel from "./panel.js";
import {
  MAX_PARTS, emptyState, formatState, imagesOf, newStep, parseState, textOf, withFilter, withImage, withLastStep, withStep,
  withCorrection, withNegativeText, withText, withoutUpload,
} from "./state.js";
import { say, translate } from "./strings.js";
import { hasUpload, isImage, saveUpload, uploadUrl } from "./uploads.js";
import { Viewer } from "./viewer.js";

const HITS = 24; // of a page of hits; more come on scrolling
const RETRY_SECONDS = 5; // between two looks for a server that is gone
const text = find("#text");
let info, state, result, pending, retry, newestUpload;

const grid = new Grid(find("#grid"), {
  open: (id, image) => (result ? openHit(id) : chooseImage({ id }, image)),
  more: (id) => addImage({ id }),
  less: (id) => exclude(id),
  heatmaps: (index) => heatmaps(index),
  thumbnail: (id) => thumbnailUrl(id, state.gallery),
});

const viewer = new Viewer(find("#viewer"), {
  search: (id) => chooseImage({ id }),
  more: (id) => addImage({ id }),
  less: (id) => exclude(id),
  closed: (id) => grid.focus(id),
  extend: () => showMore(),
  heatmaps: (index) => heatmaps(index),
});

const gallery = () => info.galleries.find(({ name }) => name === state.gallery);
const extra = () => ({ k: Math.min(HITS, info.limits.k) });

// The page of hits with the `index`-th, with the regions of words.
function heatmaps(index) {
  const { k } = extra();
  const offset = index - (index % k);
  return (result.heatmaps[offset] ??= query(result.state, { k, offset, heatmaps: 1 }));
}

// --- from one state to the next

function setState(next, { keepAddress = false } = {}) {
  const galleryChanged = next.gallery !== state?.gallery;
  state = next;
  if (galleryChanged) grid.tiles.clear();
  panel.showProblem("");
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

function exclude(id) {
  setState({ ...state, negativeIds: [...state.negativeIds, id].slice(-MAX_PARTS) });
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
  newestUpload = await saveUpload(file);
  chooseImage({ upload: newestUpload }, undefined, true);
}

// One image is searched with; several can become the gallery's.
async function takeFiles(files) {
  const images = files.filter(isImage);
  if (!images.length) return panel.showProblem(say("notAnImage", { name: files[0].name }));
  if (images.length > 1 && info.writable) return offerToAdd(images);
  await chooseFile(images[0]);
  if (images.length > 1) panel.showProblem(say("firstOnly", { count: images.length }));
}

function offerToAdd(files) {
  askToAdd(files, state.gallery, {
    search: chooseFile,
    added: async () => {
      info = await fetchInfo();
      setState(state);
    },
  });
}

function openHit(id) {
  const index = result.hits.findIndex((hit) => hit.id === id);
  const image = imagesOf(result.state.steps.at(-1))[0];
  const url = image && (image.upload ? uploadUrl(image.upload) : imageUrl(image.id, state.gallery));
  viewer.open(result, index, image && { url, name: image.id ?? say("yourImage") });
}

const goToStep = (index) => setState({ ...state, steps: state.steps.slice(0, index + 1) });

// --- searching

async function search() {
  pending?.abort();
  clearTimeout(retry);
  const { signal } = (pending = new AbortController());
  setBusy(true);
  const step = state.steps.at(-1);
  const queried = state;
  try {
    const lost = step && imagesOf(step).some(({ upload }) => upload && !hasUpload(upload));
    const found = step && !lost && gallery().images ? await query(queried, extra(), signal) : null;
    const sample = found ? [] : await sampleImages(queried, HITS, signal);
    setGone(false);
    if (found) showResult({ ...found, state: queried, heatmaps: {} });
    else showSample(sample, ...sampleTexts(lost, sample));
  } catch (error) {
    if (signal.aborted) return;
    await showError(error, signal);
    if (error.busy) return; // the next try ends it
  }
  setBusy(false);
}

// Append the next page of hits.
async function showMore() {
  const { signal } = pending;
  const shown = result;
  if (shown.extending || shown.hits.length >= lastHit()) return;
  shown.extending = true;
  try {
    const { hits } = await query(shown.state, { ...extra(), offset: shown.hits.length }, signal);
    if (result !== shown) return;
    shown.hits.push(...hits);
    if (!hits.length) shown.total = shown.hits.length;
    showHits();
  } catch (error) {
    if (!signal.aborted) await showError(error, signal);
  } finally {
    shown.extending = false;
  }
}

const lastHit = () => Math.min(result.total, info.limits.offset + 1);

function sampleTexts(lost, sample) {
  if (lost) return [say("noUpload"), say("noUploadMore")];
  if (!gallery().images) return [say("emptyGallery"), emptyLead(info.writable)];
  return sample.length ? [say("welcome"), say("welcomeMore")] : [say("nonePasses"), ""];
}

const setBusy = (busy) => find("#grid").setAttribute("aria-busy", busy);

async function showError(error, signal) {
  if (!(error instanceof ApiError)) throw error;
  if (error.gone) return setGone(true);
  if (error.type === "image" && newestUpload) return refuseUpload(error);
  if (error.type === "not_found" && state.steps.length) {
    return showSample(await sampleImages(state, HITS, signal).catch(() => []), say("noImage"), say("noImageMore"));
  }
  panel.showUnread([]);
  const quiet = error.type === "text"; // half a word is no mistake
  showHint(error.busy ? say("busy") : error.message, quiet ? "quiet" : "loud");
  if (!grid.tiles.size) showHead(say("noResult"), error.message);
  if (error.busy) setTimeout(() => signal.aborted || search(), 1000 * error.retryAfter);
}

// The server cannot read the file: the query is what it was before it.
async function refuseUpload(error) {
  const key = newestUpload;
  newestUpload = undefined;
  await setState(withoutUpload(state, key));
  panel.showProblem(error.message);
}

// The last hits fade while there is no server; the page looks for it again and again.
function setGone(gone) {
  const returned = document.body.classList.contains("gone") && !gone;
  document.body.classList.toggle("gone", gone);
  if (returned) grid.tiles.clear(); // images that did not load
  if (!gone) return showFilterNotice();
  panel.showNotice(say(grid.tiles.size ? "serverGoneOld" : "serverGone"), say("tryAgain"), search);
  retry = setTimeout(search, 1000 * RETRY_SECONDS);
}

function showFilterNotice(count = 1) {
  const stuck = !count && hasFilters(state.where);
  panel.showNotice(stuck ? "" : null, say("removeFilters"), () => setState({ ...state, where: {} }));
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
  const step = state.steps.at(-1);
  const hasImage = Boolean(step && imagesOf(step).length);
  const { descriptions, edits, images } = gallery();
  document.body.classList.toggle("has-image", hasImage);
  find("#balance-row").hidden = !hasImage || !textOf(step);
  panel.showSuggestions(hasImage ? edits : images ? descriptions : [], useSuggestion);
  const [example] = descriptions;
  const prompt = step?.edits.length ? "changeMore" : hasImage ? "change" : example ? "describeExample" : "describe";
  text.placeholder = say(prompt, { example });
  panel.showExtraImages(state, (index) =>
    setState(withLastStep(state, ({ extraImages }) => ({ extraImages: withoutItem(extraImages, index) }))),
  );
  panel.showEdits(state, (index) =>
    setState(withLastStep(state, ({ edits }) => ({ edits: withoutItem(edits, index) }))),
  );
}

function showResult(newResult) {
  result = newResult;
  showHits();
  const headline = headlineOf(result, gallery());
  showHead(headline, leadOf(result, { gallery: gallery(), writable: info.writable }));
  showFilterNotice(result.hits.length);
  find("#show-others").hidden = true;
  showHint("");
  panel.showUnread(result.texts, gallery().bundle.max_words, {
    correct: (item) => setState(withCorrection(state, item)),
    exclude: (word) => setState(withNegativeText(state, word)),
  });
  panel.showSpeed(result.timings_ms, info.device);
  const { length: count, 0: first } = result.hits;
  const found = first ? say("firstIs", { count, id: first.id }) : say("imageCount", { count });
  announce([headline, found, ...result.notes].join(". "));
}

function showHits() {
  const { hits, texts, threshold } = result;
  grid.show(hits, { ...divider(result), texts, threshold });
  find("#show-more").hidden = !hits.length || hits.length >= lastHit();
}

function useSuggestion(chosen) {
  text.value = chosen;
  setText(chosen);
  text.focus({ preventScroll: true });
}

function showSample(images, headline, lead) {
  result = undefined;
  panel.showUnread([]);
  grid.show(images);
  showHead(headline, lead);
  showHint("");
  showFilterNotice(images.length);
  find("#show-others").hidden = !images.length || images.length >= gallery().images;
  find("#show-more").hidden = true;
  announce(`${headline}. ${say("sampleCount", { count: images.length })}`);
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
  find("#show-more button").addEventListener("click", () => showMore());
  new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && result && showMore(), { rootMargin: "600px" }).observe(
    find("#show-more"),
  );
  listenForChoice(find("#file"), takeFiles);
  listenForChoice(find("#extra-file"), async ([file]) => {
    if (!isImage(file)) return panel.showProblem(say("notAnImage", { name: file.name }));
    newestUpload = await saveUpload(file);
    addImage({ upload: newestUpload });
  });
  find("#add-images").addEventListener("click", () => chooseFiles(offerToAdd));
  find("#refine-toggle").addEventListener("click", ({ currentTarget }) => {
    const open = document.body.classList.toggle("refining");
    currentTarget.setAttribute("aria-expanded", open);
  });
  for (const [name, snippet] of [["curl", curlSnippet], ["python", pythonSnippet]]) {
    find(`#copy-${name}`).addEventListener("click", ({ currentTarget }) => copyFrom(currentTarget, snippet(state, extra())));
  }
  find("#reference-image").addEventListener("error", panel.hideReference);
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", ({ target }) => target.closest("details") || closeFilters());
  addEventListener("popstate", () => {
    if (viewer.isOpen) viewer.close();
    setState(stateOf(location.search), { keepAddress: true });
  });
  addEventListener("pagehide", () => updateAddress(true));
  listenForFiles(takeFiles);
}

function onKey(event) {
  if (find("dialog[open]")) return;
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
  clearTimeout(retry);
  setBusy(true);
  find("#headline").textContent = say("welcome");
  try {
    info = await fetchInfo();
  } catch (error) {
    panel.showNotice(error.message, say("tryAgain"), start);
    retry = setTimeout(start, 1000 * RETRY_SECONDS);
    return;
  }
  panel.showNotice(null);
  find("#note").textContent = info.note ?? "";
  find("#note").hidden = !info.note;
  find("#add-images").hidden = !info.writable;
  text.maxLength = info.limits.text_chars;
  listen();
  await setState(stateOf(location.search), { keepAddress: true });
}

translate(document);
start();
