import assert from "node:assert/strict";
import { test } from "node:test";
import { fakeDocument, load } from "./modules.mjs";

fakeDocument();
const { evidenceSentence, isPresent, layout, orderWords, unknownHint, verdict, wordLabel } = await load("evidence.js");

const word = (text) => ({ textContent: text });
const read = (words, unknown = [], unread = [], negative = false) => ({ words, unknown, unread, negative });
const texts = (nodes) => nodes.map((node) => node.textContent);

test("a word with less than half an even share of the weight is neutral", () => {
  assert.equal(verdict({ weight: 0.24, matched: true }, 2), "neutral");
  assert.equal(verdict({ weight: 0.25, matched: true }, 2), "matched");
  assert.equal(verdict({ weight: -0.6, matched: false }, 2), "mismatched");
});

test("an excluded word matches where it is absent", () => {
  assert.equal(isPresent({ weight: 1, matched: true }), true);
  assert.equal(isPresent({ weight: -1, matched: true }), false);
  assert.equal(wordLabel({ word: "red", weight: 1, matched: true }), "red: in the image");
  assert.equal(wordLabel({ word: "red", weight: 1, matched: false }), "red: not in the image");
  assert.equal(wordLabel({ word: "dots", weight: -1, matched: true }), "dots: not in the image, as wanted");
  assert.equal(wordLabel({ word: "dots", weight: -1, matched: false }), "dots: in the image, not as wanted");
});

test("unknown words stand where they stood, and words after the limit at the end", () => {
  const unknown = [{ word: "xyzzy", position: 1 }, { word: "foo", position: 9 }];
  const nodes = orderWords([word("make"), word("red")], [read(2, unknown, ["late"])]);
  assert.deepEqual(texts(nodes), ["make", "xyzzy", "red", "foo", "late"]);
});

test("two unknown words in one place keep their order", () => {
  const unknown = [{ word: "one", position: 0 }, { word: "two", position: 0 }];
  assert.deepEqual(texts(orderWords([word("red")], [read(1, unknown)])), ["one", "two", "red"]);
});

test("without stands before the first negative text alone", () => {
  const words = ["red", "belt", "dots"].map(word);
  const nodes = orderWords(words, [read(1), read(1, [], [], true), read(1, [], [], true)]);
  assert.deepEqual(texts(nodes), ["red", "without", "belt", "dots"]);
  assert.deepEqual(texts(orderWords([word("belt")], [read(1, [], [], true)])), ["belt"]);
});

test("the hint of an unknown word names the nearest known one", () => {
  assert.equal(unknownHint({ word: "redd", nearest: "red" }), "unknown word: redd; did you mean red?");
  assert.equal(unknownHint({ word: "xyzzy", nearest: null }), "unknown word: xyzzy");
});

test("a sentence ticks, strikes and points", () => {
  const evidence = [
    { word: "make", weight: 0, matched: true },
    { word: "red", weight: 0.5, matched: true },
    { word: "dots", weight: 0.5, matched: false },
  ];
  const shown = [];
  const { children } = evidenceSentence(evidence, [read(3)], (index) => shown.push(index));
  const [make, red, dots] = children.filter((child) => child.tag);
  assert.deepEqual([make.className, red.className, dots.className], ["word neutral", "word matched", "word mismatched"]);
  assert.equal(dots.children[0].tag, "s");
  red.listeners.pointerenter();
  red.listeners.pointerleave();
  assert.deepEqual(shown, [1, null]);
});

test("an image is shown whole, and padded to the aspect of the model", () => {
  const square = layout({ naturalWidth: 100, naturalHeight: 100 }, 200, 200, 0.75);
  assert.deepEqual(square.shown, { x: 0, y: 0, width: 200, height: 200 });
  assert.deepEqual(square.padded, { x: 0, y: 200 / 2 - 200 / 0.75 / 2, width: 200, height: 200 / 0.75 });
  const wide = layout({ naturalWidth: 400, naturalHeight: 100 }, 200, 200, 1);
  assert.deepEqual([wide.shown.height, wide.shown.y, wide.padded.height], [50, 75, 200]);
});
