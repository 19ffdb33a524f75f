// The page: an event changes the state, the state is shown, the service is asked, the answer is shown.

import { ApiError, information, query, shelf, thumbnailOf } from "./api.js";
import { copy, curl, python } from "./copy.js";
import { find, later, still } from "./dom.js";
import { listenForPictures } from "./drop.js";
import { Grid, fly } from "./grid.js";
import * as panel from "./panel.js";
import { empty, filtered, read, stepped, write } from "./state.js";
import { has, keep } from "./uploads.js";

const HITS = 24;
const MOST_MINUS = 8; // as many as a query may have
const START = ["Find it with a picture and a few words", "Drop a picture, paste one, or start with one of these."];
const LOST = [
  "Your picture stayed where it was",
  "This address begins with a picture from a device, and such pictures are kept nowhere else. " +
    "Choose it again, or start with another one.",
];
const GONE = ["This picture is not here", "It may have been renamed or taken out. Start with another one."];
const text = find("#text");
let info, state, answer, asking;

const grid = new Grid(find("#grid"), {
  take: (id, picture) => take({ id }, picture),
  minus: (id) => go({ ...state, minus: [...state.minus, id].slice(-MOST_MINUS) }),
  regions: () => (answer.regions ??= query(answer.state, { k: answer.hits.length, maps: 1 })),
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
  return ask();
}

const typed = (value) => {
  if (!state.steps.length) return tell(value.trim() ? "Now choose a picture to start from." : "");
  return change({ steps: state.steps.with(-1, { ...state.steps.at(-1), text: value }) });
};

function take(step, picture, afresh = !answer) {
  const waiting = afresh ? text.value : ""; // what is written already is meant for the first picture
  const from = picture?.getBoundingClientRect();
  remember(true);
  go(stepped(afresh ? { ...state, steps: [] } : state, { ...step, text: waiting }));
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
    const lost = step?.upload && !has(step.upload);
    if (step && !lost) showAnswer({ ...(await query(asked, extra(), signal)), state: asked });
    else showShelf(await shelf(asked, HITS, signal), ...(lost ? LOST : START));
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
  find("#text").placeholder = step ? "but red, and with stripes" : "What should be different?";
  panel.showReference(state);
  panel.showSteps(state, back);
  panel.showBalance(state.balance);
  panel.showMinus(state, (id) => go({ ...state, minus: state.minus.filter((each) => each !== id) }));
  panel.showFilters(gallery().columns, state, (column, value, on) => go(filtered(state, column, value, on)));
  panel.showGalleries(info.galleries.map(({ name }) => name), state.gallery, (name) => go(empty(name)));
}

function showAnswer(found) {
  answer = found;
  const { hits, matches } = found;
  const last = hits.findLastIndex(({ match }) => match);
  const line = matches === false ? 0 : last >= 0 && last < hits.length - 1 ? last + 1 : null;
  const without = found.state.without.split(/[\s,]+/).filter(Boolean).length;
  grid.show(hits, { line, words: matches === false ? "the nearest there are" : "weak matches from here", without });
  const headline = headlineOf(found);
  head(headline, hits.length === 0 ? "The filters leave none; take one away." : "");
  find("#others").hidden = true;
  tell("");
  panel.showSpeed(found.timings_ms, info.device);
  announce(`${headline}. ${hits.length} pictures${hits.length ? `, the first is ${hits[0].id}` : ""}.`);
}


function headlineOf({ hits, matches, state: { steps } }) {
  if (hits.length === 0) return "No picture is left";
  if (matches === false) return "Nothing here matches";
  if (!steps.at(-1).text.trim()) return "Like this one";
  const count = hits.filter(({ match }) => match).length;
  return matches ? `${count} ${count === 1 ? "match" : "matches"}` : "Nearest first"; // null: nobody is sure
}

function showShelf(images, headline, lead) {
  answer = undefined;
  grid.show(images);
  head(headline, lead);
  tell(!state.steps.length && text.value.trim() ? "Now choose a picture to start from." : "");
  find("#others").hidden = images.length >= gallery().images;
  announce(`${headline}. ${images.length} pictures of the gallery to start with.`);
}

function head(headline, lead) {
  find("#headline").textContent = headline;
  find("#lead").textContent = lead;
  document.title = state.steps.at(-1)?.text.trim() ? `${state.steps.at(-1).text.trim()} · nsfse` : "nsfse";
}

const announce = later(700, (message) => (find("#live").textContent = message));

// --- events

function listen() {
  text.addEventListener("input", () => typed(text.value));
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
  find("#refine-toggle").addEventListener("click", ({ currentTarget }) => {
    const open = document.body.classList.toggle("refining");
    currentTarget.setAttribute("aria-expanded", open);
  });
  for (const [name, snippet] of [["curl", curl], ["python", python]]) {
    find(`#copy-${name}`).addEventListener("click", ({ currentTarget }) => copied(currentTarget, snippet(state, extra())));
  }
  find("#reference-picture").addEventListener("error", panel.hideReference);
  document.addEventListener("keydown", key);
  document.addEventListener("click", ({ target }) => target.closest("details") || closeFilters());
  addEventListener("popstate", () => go(opened(location.search), { keepAddress: true }));
  addEventListener("pagehide", () => remember(true));
  listenForPictures(takeFile);
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
