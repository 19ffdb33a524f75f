// A hit opened: large, beside the reference, with the words' evidence on both, and what can be done with it.

import { imageUrl } from "./api.js";
import { copyFrom } from "./copy.js";
import { find, make } from "./dom.js";
import { evidenceSentence, showHeatmap } from "./evidence.js";
import { percent, say } from "./strings.js";

const ZOOMS = [1, 1.5, 2, 3, 4];

// `on.search(id)`, `on.more(id)` and `on.less(id)` are called for the buttons, `on.closed(id)` when it closes, on the last
// hit shown. `on.extend()` gives more hits, or nothing; `on.heatmaps(index)` a result with the regions of words.
export class Viewer {
  constructor(dialog, on) {
    Object.assign(this, { dialog, on, zoom: 1 });
    const act = (name, handler) => find(name, dialog).addEventListener("click", handler);
    const leave = (handler) => () => {
      this.close();
      handler(this.hit.id);
    };
    act(".search-from", leave((id) => on.search(id)));
    act(".more-like", leave((id) => on.more(id)));
    act(".less-like", leave((id) => on.less(id)));
    act(".close", () => this.close());
    act(".step-back", () => this.step(-1));
    act(".step-on", () => this.step(1));
    act(".zoom-in", () => this.zoomBy(1));
    act(".zoom-out", () => this.zoomBy(-1));
    act(".copy-path", ({ currentTarget }) => copyFrom(currentTarget, this.hit.id));
    for (const pane of dialog.querySelectorAll(".pane")) {
      pane.addEventListener("click", () => this.zoomBy(this.zoom === ZOOMS.at(-1) ? -Infinity : 1));
    }
    dialog.addEventListener("click", ({ target }) => target === dialog && this.close());
    dialog.addEventListener("close", () => on.closed(this.hit.id));
    dialog.addEventListener("keydown", (event) => this.onKey(event));
  }

  get isOpen() {
    return this.dialog.open;
  }

  close() {
    this.dialog.close();
  }

  // Show the hit at `index` of a result. `reference` has the URL and the name of the query's image, if it has one.
  open(result, index, reference) {
    Object.assign(this, { result, reference });
    if (!this.isOpen) this.dialog.showModal();
    this.show(index);
    find(".search-from", this.dialog).focus({ preventScroll: true });
  }

  async step(by) {
    const index = this.index + by;
    if (index >= this.result.hits.length) await this.on.extend();
    if (this.isOpen && this.result.hits[index]) this.show(index);
  }

  show(index) {
    const { dialog, result, reference } = this;
    const hit = result.hits[index];
    Object.assign(this, { index, hit });
    const url = imageUrl(hit.id, result.state.gallery);
    find("#viewer-title").textContent = hit.id;
    find(".rank", dialog).textContent = say("rank", { rank: index + 1, count: result.total });
    find(".step-back", dialog).disabled = index === 0;
    find(".step-on", dialog).disabled = index + 1 >= result.total;
    setImage(find(".compared-hit", dialog), url, hit.id);
    find(".compared-reference", dialog).hidden = !reference;
    if (reference) setImage(find(".compared-reference", dialog), reference.url, reference.name);
    find(".open-image", dialog).href = url;
    const download = find(".download-image", dialog);
    Object.assign(download, { href: url, download: downloadName(hit.id) });
    this.showCaptions();
    this.setZoom(1);
    if (document.activeElement?.disabled) find(".search-from", dialog).focus();
  }

  showCaptions() {
    const { dialog, hit, result } = this;
    const details = Object.entries(hit.metadata ?? {}).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    find(".compared-hit figcaption", dialog).replaceChildren(
      ...this.sentence(hit.evidence),
      make("p", {}, verdictOf(hit, result.threshold)),
      make("dl", {}, ...details),
    );
    find(".compared-reference figcaption", dialog).replaceChildren(make("p", {}, say("theReference")));
    if (hit.evidence.length) this.addReferenceEvidence(hit);
  }

  // The words in the reference come with the heatmaps.
  async addReferenceEvidence(hit) {
    const { references, texts } = await this.on.heatmaps(this.index);
    if (hit !== this.hit || !references?.length) return;
    find(".compared-reference figcaption", this.dialog).prepend(...this.sentence(references[0], texts));
  }

  sentence(evidence, texts = this.result.texts) {
    return evidence.length ? [evidenceSentence(evidence, texts, (word) => this.highlight(word), 0)] : [];
  }

  // Show where the word of index `word` is in both images; null shows the plain images.
  async highlight(word) {
    this.highlighted = word;
    this.dialog.classList.remove("highlighted");
    if (word === null) return;
    const { hit } = this;
    const { hits, references, grid } = await this.on.heatmaps(this.index);
    if (this.highlighted !== word || hit !== this.hit || !grid) return;
    const own = hits.find(({ id }) => id === hit.id)?.evidence[word];
    for (const [name, evidence] of [[".compared-hit", own], [".compared-reference", references?.[0]?.[word]]]) {
      const figure = find(name, this.dialog);
      if (evidence?.regions && !figure.hidden) showHeatmap(find("canvas", figure), find("img", figure), evidence, grid);
    }
    this.dialog.classList.add("highlighted");
  }

  zoomBy(steps) {
    const at = ZOOMS.indexOf(this.zoom) + steps;
    this.setZoom(ZOOMS[Math.min(Math.max(at, 0), ZOOMS.length - 1)]);
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.dialog.style.setProperty("--zoom", zoom);
    find(".zoom-out", this.dialog).disabled = zoom === ZOOMS[0];
    find(".zoom-in", this.dialog).disabled = zoom === ZOOMS.at(-1);
    for (const pane of this.dialog.querySelectorAll(".pane")) {
      pane.scrollTo((pane.scrollWidth - pane.clientWidth) / 2, (pane.scrollHeight - pane.clientHeight) / 2);
    }
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isPane = event.target.matches(".pane") && this.zoom > 1; // arrows move a zoomed image
    const acts = { "+": () => this.zoomBy(1), "-": () => this.zoomBy(-1) };
    if (!isPane) Object.assign(acts, { ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1) });
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }
}

function setImage(figure, url, name) {
  const image = find("img", figure);
  if (image.getAttribute("src") !== url) image.src = url;
  image.alt = name;
}

// The server sends JPEG whatever the file is.
const downloadName = (id) => `${id.split("/").at(-1).replace(/\.\w+$/, "")}.jpg`;

export function verdictOf({ confidence, is_match: isMatch, score }, threshold) {
  if (confidence == null || threshold == null) return say("score", { score: score.toFixed(2) });
  const values = { confidence: percent(confidence), cut: percent(threshold) };
  return say(isMatch ? "confidenceOpen" : "noConfidenceOpen", values);
}
