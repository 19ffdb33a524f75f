// The grid of hits. An image that stays keeps its tile, so nothing flickers: the tile moves to its new position.

import { find, make, prefersReducedMotion } from "./dom.js";
import { evidenceSentence, showHeatmap } from "./evidence.js";
import { percent, say } from "./strings.js";

const EASE = { duration: 320, easing: "cubic-bezier(.2,.8,.2,1)" };

// `on.open(id, image)`, `on.more(id)` and `on.less(id)` are called for what is clicked; `on.heatmaps(index)` gives a result
// with the regions of words, `on.thumbnail(id)` a URL.
export class Grid {
  constructor(list, on) {
    const divider = make("li", { className: "divider" }, make("span"));
    Object.assign(this, { list, on, divider, tiles: new Map() });
    list.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("focusin", ({ target }) => this.activate(target.closest(".tile")));
  }

  // Show `hits` in their order, or a sample of images. Hits from `divideAt` on do not match, and `dividerText` stands before
  // them. `texts` hold how each text of the query was read, `threshold` the confidence of a match.
  show(hits, { divideAt = null, dividerText = "", texts = [], threshold = null } = {}) {
    const before = new Map([...this.tiles.values()].map((tile) => [tile, tile.getBoundingClientRect()]));
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const weak = (index) => divideAt !== null && index >= divideAt;
    const tiles = new Map(hits.map((hit, index) => [hit.id, this.tile(hit, index, weak(index), texts, threshold)]));
    const items = [...tiles.values()];
    if (divideAt !== null && items.length) items.splice(divideAt, 0, this.divider);
    this.divider.firstChild.textContent = dividerText;
    this.tiles = tiles;
    this.arrange(items);
    const stillShown = focused?.isConnected ? focused : null;
    const tile = stillShown?.closest(".tile") ?? this.first();
    this.activate(tile);
    // The focus of a tile that is gone moves to the first one, or the page would lose it.
    if (focused && tile) (stillShown ?? find(".open", tile)).focus({ preventScroll: true });
    if (!prefersReducedMotion()) this.animateFrom(before);
  }

  // Most letters change little: only what is out of order is touched.
  arrange(items) {
    const { children } = this.list;
    items.forEach((item, index) => children[index] === item || this.list.insertBefore(item, children[index] ?? null));
    while (children.length > items.length) this.list.lastChild.remove();
  }

  tile(hit, index, weak, texts, threshold) {
    const tile = this.tiles.get(hit.id) ?? this.newTile(hit.id);
    tile.classList.toggle("weak", weak);
    tile.classList.toggle("match", hit.is_match === true && hit.confidence != null);
    const caption = find(".caption", tile);
    const confidence = hit.score === undefined ? [] : [make("p", { className: "confidence" }, confidenceOf(hit, threshold))];
    const evidence = hit.evidence?.length ? [evidenceSentence(hit.evidence, texts, (word) => this.highlight(tile, word))] : [];
    const id = make("bdi", { title: hit.id }, hit.id);
    caption.replaceChildren(...evidence, ...confidence, make("p", { className: "hit-id" }, id));
    find(".open", tile).setAttribute("aria-label", labelOf(hit, index));
    find(".likes", tile).hidden = hit.score === undefined;
    tile.dataset.index = index;
    this.highlight(tile, null);
    return tile;
  }

  newTile(id) {
    const image = make("img", { src: this.on.thumbnail(id), alt: "", draggable: false, decoding: "async" });
    image.addEventListener("error", () => tile.classList.add("broken"), { once: true });
    const button = { type: "button", tabIndex: -1 };
    const open = make("button", { ...button, className: "open" }, image, make("canvas", { className: "heatmap" }));
    const [more, less] = ["moreLike", "lessLikeThis"].map((name) =>
      make("button", { ...button, "aria-label": `${say(name)}: ${id}` }, say(name)),
    );
    const likes = make("div", { className: "likes" }, more, less);
    const caption = make("p", { className: "heatmap-caption", "aria-hidden": "true" });
    const frame = make("div", { className: "frame" }, open, likes, caption);
    const tile = make("li", { className: "tile" }, frame, make("div", { className: "caption" }));
    tile.dataset.id = id;
    open.addEventListener("click", () => this.on.open(id, image));
    more.addEventListener("click", () => this.on.more(id));
    less.addEventListener("click", () => this.on.less(id));
    return tile;
  }

  // Show where the word of index `word` is in a tile's image; null shows the plain image.
  async highlight(tile, word) {
    tile.highlighted = word;
    tile.classList.toggle("highlighted", false);
    if (word === null) return;
    const { hits, grid } = await this.on.heatmaps(Number(tile.dataset.index));
    const evidence = hits.find((hit) => hit.id === tile.dataset.id)?.evidence[word];
    if (tile.highlighted !== word || !evidence?.regions || !grid) return;
    find(".heatmap-caption", tile).textContent = showHeatmap(find(".heatmap", tile), find("img", tile), evidence, grid);
    tile.classList.toggle("highlighted", true);
  }

  // Stop all, then measure all, then start all: one tile after another would cost a layout for each.
  animateFrom(before) {
    const tiles = [...this.tiles.values()];
    for (const tile of tiles) tile.animation?.cancel();
    const after = tiles.map((tile) => tile.getBoundingClientRect());
    tiles.forEach((tile, index) => {
      const [from, to] = [before.get(tile), after[index]];
      const moved = from && (from.x !== to.x || from.y !== to.y);
      const start = from ? { transform: `translate(${from.x - to.x}px, ${from.y - to.y}px)` } : { opacity: 0 };
      tile.animation = from && !moved ? null : tile.animate([start, {}], EASE);
    });
  }

  first() {
    return this.tiles.values().next().value;
  }

  // Focus the tile of an image, or the first one.
  focus(id) {
    const tile = this.tiles.get(id) ?? this.first();
    if (tile) find(".open", tile).focus();
    return Boolean(tile);
  }

  // Tab reaches one tile, with its words and buttons; arrow keys reach the others.
  activate(tile) {
    for (const button of this.list.querySelectorAll("[tabindex='0']")) button.tabIndex = -1;
    for (const button of tile?.querySelectorAll("button") ?? []) button.tabIndex = 0;
  }

  onKey(event) {
    const tile = event.target.closest(".tile");
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { "-": this.on.less, Delete: this.on.less, "+": this.on.more }[event.key];
    if (act && !find(".likes", tile).hidden) {
      this.neighbour(tile, "ArrowRight")?.querySelector(".open").focus();
      act(tile.dataset.id);
    } else if (/^(Arrow|Home$|End$)/.test(event.key)) {
      this.neighbour(tile, event.key)?.querySelector(".open").focus();
    } else return;
    event.preventDefault();
  }

  neighbour(tile, key) {
    const tiles = [...this.tiles.values()];
    const index = tiles.indexOf(tile);
    if (key === "ArrowRight") return tiles[index + 1];
    if (key === "ArrowLeft") return tiles[index - 1];
    if (key === "Home") return tiles[0];
    if (key === "End") return tiles.at(-1);
    const down = key === "ArrowDown";
    const beyond = tiles.filter(({ offsetTop }) => (down ? offsetTop > tile.offsetTop : offsetTop < tile.offsetTop));
    const row = beyond.at(down ? 0 : -1)?.offsetTop;
    const distance = ({ offsetLeft }) => Math.abs(offsetLeft - tile.offsetLeft);
    return beyond.filter(({ offsetTop }) => offsetTop === row).sort((a, b) => distance(a) - distance(b))[0];
  }
}

// The image that was chosen moves to where the reference is shown.
export function flyToReference(from) {
  const image = find("#reference-image");
  const to = image.getBoundingClientRect();
  if (prefersReducedMotion() || !to.width) return;
  const transform = `translate(${from.x - to.x}px, ${from.y - to.y}px) scale(${from.width / to.width})`;
  image.animate([{ transform, transformOrigin: "0 0" }, { transform: "none", transformOrigin: "0 0" }], {
    ...EASE,
    duration: 420,
  });
}

// A confidence is shown with the cut that makes a match of it.
export function confidenceOf({ confidence, score, is_match: isMatch }, threshold) {
  if (confidence == null || threshold == null) return say("score", { score: score.toFixed(2) });
  const values = { confidence: percent(confidence), cut: percent(threshold) };
  return isMatch ? `✓ ${say("confidenceMatch", values)}` : say("confidenceCut", values);
}

export function labelOf({ id, is_match: isMatch, confidence, score }, index) {
  if (score === undefined) return say("startWith", { id });
  const rank = index + 1;
  if (confidence == null) return say("hitPlain", { rank, id });
  const verdict = say(isMatch ? "matchShort" : "noMatchShort", { confidence: percent(confidence) });
  return say("hitLabel", { rank, id, verdict });
}
