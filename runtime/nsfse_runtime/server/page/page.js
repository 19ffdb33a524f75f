// The page: an event changes the state, the state is shown, the service is asked, the answer is shown.

import { ApiError, information, query, shelf, thumbnailOf } from "./api.js";
import { copy, curl, python } from "./copy.js";
import { find, later, still } from "./dom.js";
import { Grid } from "./grid.js";
import * as panel from "./panel.js";
import { empty, filtered, read, stepped, write } from "./state.js";
import { has, keep } from "./uploads.js";

const HITS = 24;
const MOST_MINUS = 8; // as many as a query may have
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

function go(next, { keepAddress = false, replace = false } = {}) {
  const galleryChanged = next.gallery !== state?.gallery;
  state = next;
  if (galleryChanged) grid.tiles.clear();
  if (!keepAddress) remember(replace);
  showQuestion();
  return ask();
}

function remember(replace) {
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
  if (!state.steps.length) return showQuestion();
  return change({ steps: state.steps.with(-1, { ...state.steps.at(-1), text: value }) });
};

function take(step, picture) {
  const waiting = state.steps.length ? "" : text.value; // words that were typed before there was a picture
  const from = picture?.getBoundingClientRect();
  remember(true);
  go(stepped(state, { ...step, text: waiting }));
  if (from) fly(from);
  scrollTo({ top: 0, behavior: still() ? "auto" : "smooth" });
  if (matchMedia("(pointer: fine)").matches) text.focus({ preventScroll: true });
}

async function takeFile(file) {
  const key = await keep(file);
  go({ ...state, steps: [] }, { keepAddress: true });
  take({ upload: key });
}

const back = (at) => go({ ...state, steps: state.steps.slice(0, at + 1) });

// The picture that was taken flies to where the reference is.
function fly(from) {
  const picture = find("#reference-picture");
  const to = picture.getBoundingClientRect();
  if (still() || !to.width) return;
  const transform = `translate(${from.x - to.x}px, ${from.y - to.y}px) scale(${from.width / to.width})`;
  picture.animate([{ transform, transformOrigin: "0 0" }, { transform: "none", transformOrigin: "0 0" }], {
    duration: 420,
    easing: "cubic-bezier(.2,.8,.2,1)",
  });
}

// --- asking

async function ask() {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  busy(true);
  const step = state.steps.at(-1);
  const asked = state;
  try {
    if (step?.upload && !has(step.upload)) showLost();
    else if (step) showAnswer({ ...(await query(asked, extra(), signal)), state: asked });
    else showShelf(await shelf(asked, HITS, signal));
  } catch (error) {
    if (signal.aborted) return;
    showError(error, signal);
  }
  busy(false);
}

const busy = (is) => find("#grid").setAttribute("aria-busy", is);

function showError(error, signal) {
  if (!(error instanceof ApiError)) throw error;
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
  tell(!step && text.value.trim() ? "Now choose a picture to start from." : "");
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

function showShelf(images) {
  answer = undefined;
  grid.show(images);
  head("Find it with a picture and a few words", "Drop a picture, paste one, or start with one of these.");
  find("#others").hidden = images.length >= gallery().images;
  announce(`${images.length} pictures of the gallery to start with.`);
}

function showLost() {
  grid.show([]);
  head("Your picture stayed where it was", "This address begins with a picture from a device, and such pictures are kept nowhere else. Drop it again, or start with another one.");
  find("#others").hidden = true;
  tell("");
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
  document.addEventListener("keydown", key);
  document.addEventListener("click", ({ target }) => target.closest("details") || closeFilters());
  addEventListener("popstate", () => go(opened(location.search), { keepAddress: true }));
  addEventListener("pagehide", () => remember(true));
  listenForPictures();
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

function listenForPictures() {
  const pictureIn = (data) => [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/")) ?? data?.files?.[0];
  const dropping = find("#dropping");
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    dropping.hidden = false;
  });
  addEventListener("dragleave", (event) => event.relatedTarget || (dropping.hidden = true));
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    dropping.hidden = true;
    const file = pictureIn(event.dataTransfer);
    if (file) takeFile(file);
  });
  addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (file) takeFile(file);
  });
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
