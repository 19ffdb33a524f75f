// The grid of hits. An image that stays keeps its tile, so nothing flickers: it moves to its new place.

import { find, make, still } from "./dom.js";
import { sentence, spotlight } from "./evidence.js";

const EASE = { duration: 320, easing: "cubic-bezier(.2,.8,.2,1)" };

// `on.take(id, tile)`, `on.more(id)`, `on.minus(id)`, `on.regions()` → an answer with regions, `on.thumbnail(id)` → an address.
export class Grid {
  constructor(list, on) {
    const line = make("li", { className: "line" }, make("span"));
    Object.assign(this, { list, on, line, tiles: new Map() });
    list.addEventListener("keydown", (event) => this.key(event));
    list.addEventListener("focusin", ({ target }) => this.activate(target.closest(".tile")));
  }

  // Show `hits` in their order, or the images of a shelf; `line` is before which of them matching ends, or null, and
  // `words` stand there. `texts` say how each text of the question was read.
  show(hits, { line = null, words = "", texts = [] } = {}) {
    const before = new Map([...this.tiles.values()].map((tile) => [tile, tile.getBoundingClientRect()]));
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const tiles = new Map(hits.map((hit, at) => [hit.id, this.tile(hit, at, line !== null && at >= line, texts)]));
    const items = [...tiles.values()];
    if (line !== null && items.length) items.splice(line, 0, this.line);
    this.line.firstChild.textContent = words;
    this.tiles = tiles;
    this.place(items);
    const stays = focused?.isConnected ? focused : null;
    const tile = stays?.closest(".tile") ?? this.first();
    this.activate(tile);
    // A tile that is no hit any more hands the focus to the first one: it would be lost to the page.
    if (focused && tile) (stays ?? find(".take", tile)).focus({ preventScroll: true });
    if (!still()) this.move(before);
  }

  // Most letters change little: only what is not in its place is touched.
  place(items) {
    const { children } = this.list;
    items.forEach((item, at) => children[at] === item || this.list.insertBefore(item, children[at] ?? null));
    while (children.length > items.length) this.list.lastChild.remove();
  }

  tile(hit, at, weak, texts) {
    const tile = this.tiles.get(hit.id) ?? this.blank(hit.id);
    tile.classList.toggle("weak", weak);
    tile.classList.toggle("match", hit.is_match === true && hit.confidence != null);
    const caption = find(".caption", tile);
    const told = hit.score === undefined ? [] : [this.told(hit)];
    const evidence = hit.evidence?.length ? [sentence(hit.evidence, texts, (word) => this.light(tile, word))] : [];
    caption.replaceChildren(...evidence, make("p", { className: "which" }, ...told, make("bdi", { title: hit.id }, hit.id)));
    find(".take", tile).setAttribute("aria-label", label(hit, at));
    for (const button of tile.querySelectorAll(".less, .more")) button.hidden = hit.score === undefined;
    this.light(tile, null);
    return tile;
  }

  told({ confidence, score, is_match: match }) {
    const properties = { className: "told", title: `score ${score.toFixed(2)}` };
    if (confidence == null) return make("span", properties, score.toFixed(2));
    return make("span", properties, `${match ? "✓ " : ""}${Math.round(100 * confidence)} %`);
  }

  blank(id) {
    const image = make("img", { src: this.on.thumbnail(id), alt: "", draggable: false, decoding: "async" });
    image.addEventListener("error", () => tile.classList.add("gone"), { once: true });
    const button = { type: "button", tabIndex: -1 };
    const take = make("button", { ...button, className: "take" }, image, make("canvas", { className: "map" }));
    const named = { title: "Not like this", "aria-label": `not like ${id}` };
    const less = make("button", { ...button, ...named, className: "less" }, "−");
    const added = { title: "Also like this", "aria-label": `also like ${id}` };
    const more = make("button", { ...button, ...added, className: "more" }, "+");
    const frame = make("div", { className: "frame" }, take, more, less, make("p", { className: "where", "aria-hidden": "true" }));
    const tile = make("li", { className: "tile" }, frame, make("div", { className: "caption" }));
    tile.dataset.id = id;
    take.addEventListener("click", () => this.on.take(id, image));
    less.addEventListener("click", () => this.on.minus(id));
    more.addEventListener("click", () => this.on.more(id));
    return tile;
  }

  // Draw where the `word`th word is in a tile's image; null takes it away.
  async light(tile, word) {
    tile.lit = word;
    tile.classList.toggle("lit", false);
    if (word === null) return;
    const { hits, grid } = await this.on.regions();
    const each = hits.find((hit) => hit.id === tile.dataset.id)?.evidence[word];
    if (tile.lit !== word || !each?.regions || !grid) return;
    find(".where", tile).textContent = spotlight(find(".map", tile), find("img", tile), each, grid);
    tile.classList.toggle("lit", true);
  }

  // All is stopped, then all is measured, then all is set going: in turns, each tile would cost a layout of its own.
  move(before) {
    const tiles = [...this.tiles.values()];
    for (const tile of tiles) tile.moving?.cancel();
    const places = tiles.map((tile) => tile.getBoundingClientRect());
    tiles.forEach((tile, at) => {
      const [from, to] = [before.get(tile), places[at]];
      const moved = from && (from.x !== to.x || from.y !== to.y);
      const start = from ? { transform: `translate(${from.x - to.x}px, ${from.y - to.y}px)` } : { opacity: 0 };
      tile.moving = from && !moved ? null : tile.animate([start, {}], EASE);
    });
  }

  first() {
    return this.tiles.values().next().value;
  }

  focus() {
    const tile = this.first();
    if (tile) find(".take", tile).focus();
    return Boolean(tile);
  }

  // One tile at a time is reached by Tab, with the words and the minus in it; arrows go to the others.
  activate(tile) {
    for (const each of this.list.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    for (const each of tile?.querySelectorAll("button") ?? []) each.tabIndex = 0;
  }

  key(event) {
    const tile = event.target.closest(".tile");
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { "-": this.on.minus, Delete: this.on.minus, "+": this.on.more }[event.key];
    if (act && !find(".less", tile).hidden) {
      this.neighbour(tile, "ArrowRight")?.querySelector(".take").focus();
      act(tile.dataset.id);
    } else if (/^(Arrow|Home$|End$)/.test(event.key)) {
      this.neighbour(tile, event.key)?.querySelector(".take").focus();
    } else return;
    event.preventDefault();
  }

  neighbour(tile, key) {
    const tiles = [...this.tiles.values()];
    const at = tiles.indexOf(tile);
    if (key === "ArrowRight") return tiles[at + 1];
    if (key === "ArrowLeft") return tiles[at - 1];
    if (key === "Home") return tiles[0];
    if (key === "End") return tiles.at(-1);
    const down = key === "ArrowDown";
    const beyond = tiles.filter(({ offsetTop }) => (down ? offsetTop > tile.offsetTop : offsetTop < tile.offsetTop));
    const row = beyond.at(down ? 0 : -1)?.offsetTop;
    const distance = ({ offsetLeft }) => Math.abs(offsetLeft - tile.offsetLeft);
    return beyond.filter(({ offsetTop }) => offsetTop === row).sort((a, b) => distance(a) - distance(b))[0];
  }
}

// The image that was taken flies to where the reference is.
export function fly(from) {
  const image = find("#reference-image");
  const to = image.getBoundingClientRect();
  if (still() || !to.width) return;
  const transform = `translate(${from.x - to.x}px, ${from.y - to.y}px) scale(${from.width / to.width})`;
  image.animate([{ transform, transformOrigin: "0 0" }, { transform: "none", transformOrigin: "0 0" }], {
    ...EASE,
    duration: 420,
  });
}

function label({ id, is_match: match, confidence, score }, at) {
  if (score === undefined) return `${id}: start with this image`;
  const sure = confidence == null ? "" : `, ${match ? "a match" : "no match"}, ${Math.round(100 * confidence)} percent sure`;
  return `${at + 1}: ${id}${sure}. Take as the next image`;
}
