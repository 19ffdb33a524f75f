import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./modules.mjs";

const {
  emptyState, formatState, imagesOf, newStep, parseState, textOf, textsOf, withFilter, withImage, withLastStep, withStep,
  withCorrection, withNegativeText, withText, withoutUpload,
} =
  await load("state.js");

const ADDRESS =
  "?id=a.png&edit=make+it+red&text=with+dots&upload=0f&and-like=b+c.png&and-upload=1e&text=in+blue" +
  "&without=stripes%2C+a+belt&not=d.png&balance=0.7&where.colour=red&where.colour=";

test("an address is a state, and the state the same address", () => {
  const state = parseState(ADDRESS);
  assert.deepEqual(state, {
    gallery: "",
    steps: [
      { id: "a.png", extraImages: [], edits: ["make it red"], text: "with dots" },
      { upload: "0f", extraImages: [{ id: "b c.png" }, { upload: "1e" }], edits: [], text: "in blue" },
    ],
    negativeText: "stripes, a belt",
    negativeIds: ["d.png"],
    balance: 0.7,
    where: { colour: ["red", ""] },
  });
  assert.equal(formatState(state, ""), ADDRESS);
});

test("words alone are a step, until there are none", () => {
  const words = withText(emptyState(), "red dress");
  assert.deepEqual(words.steps, [{ extraImages: [], edits: [], text: "red dress" }]);
  assert.deepEqual(imagesOf(words.steps[0]), []);
  assert.equal(formatState(words, ""), "?text=red+dress");
  assert.deepEqual(parseState("?text=red+dress"), words);
  assert.deepEqual(parseState("?edit=red+dress&text=with+dots").steps[0].edits, ["red dress"]);
  assert.deepEqual(withText(words, " ").steps, []);
  const image = withStep(emptyState(), newStep({ id: "a.png" }, "red"));
  assert.deepEqual(withText(image, "").steps, [newStep({ id: "a.png" })]);
});

test("the first image of words alone is their reference, the next one is to be like as well", () => {
  const first = withImage(withText(emptyState(), "red dress"), { id: "a.png" });
  assert.deepEqual(first.steps, [{ ...newStep({ id: "a.png" }, "red dress") }]);
  assert.deepEqual(withImage(first, { upload: "0f" }).steps[0].extraImages, [{ upload: "0f" }]);
});

test("an empty state has no address, and another gallery is in it", () => {
  assert.equal(formatState(emptyState("shoes"), "shoes"), "");
  assert.equal(formatState(emptyState("shoes"), "dresses"), "?gallery=shoes");
  assert.deepEqual(parseState("?gallery=shoes"), emptyState("shoes"));
});

test("a damaged address does no harm", () => {
  assert.deepEqual(parseState("?and-like=a.png&text=+&other=1"), emptyState());
  for (const [value, balance] of [["7", 1], ["-1", 0], ["half", 0], ["", 0]]) {
    assert.equal(parseState(`?balance=${value}`).balance, balance);
  }
});

test("blank texts are neither queried nor in the address", () => {
  const state = { ...withStep(emptyState(), newStep({ id: "a" }, "  ")), negativeText: " " };
  assert.equal(formatState(state, ""), "?id=a");
  assert.deepEqual(textsOf(state.steps[0]), []);
});

test("the texts of a step are its edits and what is typed", () => {
  const step = { ...newStep({ id: "a" }, " in blue "), edits: ["with dots"] };
  assert.deepEqual(textsOf(step), ["with dots", "in blue"]);
  assert.equal(textOf(step), "with dots, in blue");
});

test("the images of a step begin with its own", () => {
  assert.deepEqual(imagesOf({ ...newStep({ id: "a" }), extraImages: [{ upload: "b" }] }), [{ id: "a" }, { upload: "b" }]);
  assert.deepEqual(imagesOf(newStep({ upload: "c" })), [{ upload: "c" }]);
});

test("a new step takes its image out of the negative ones and leaves the state before alone", () => {
  const before = { ...emptyState(), negativeIds: ["a", "b"] };
  const after = withStep(before, newStep({ id: "a" }));
  assert.deepEqual([after.negativeIds, after.steps.length], [["b"], 1]);
  assert.deepEqual([before.negativeIds, before.steps], [["a", "b"], []]);
});

test("an upload that cannot be read leaves the words, and the steps before", () => {
  const state = parseState("?id=a&text=red&upload=0f&and-like=b&edit=long&text=blue");
  assert.deepEqual(withoutUpload(state, "0f").steps[1], { ...newStep({ id: "b" }, "blue"), edits: ["long"] });
  assert.deepEqual(withoutUpload(parseState("?upload=0f&text=blue"), "0f").steps, [newStep({}, "blue")]);
  assert.deepEqual(withoutUpload(parseState("?id=a&upload=0f"), "0f").steps, [newStep({ id: "a" })]);
  assert.deepEqual(withoutUpload(parseState("?id=a&and-upload=0f"), "0f").steps, [newStep({ id: "a" })]);
});

test("a correction replaces whole words everywhere, an excluded word is added", () => {
  const state = parseState("?id=a&edit=Redd+redder&text=c%2B+redd&without=redd");
  const { steps, negativeText } = withCorrection(state, { word: "redd", nearest: "red" });
  assert.deepEqual([steps[0].edits, steps[0].text, negativeText], [["red redder"], "c+ red", "red"]);
  assert.equal(withCorrection(state, { word: "c+", nearest: "c" }).steps[0].text, "c redd");
  assert.equal(withNegativeText(state, "dots").negativeText, "redd, dots");
  assert.equal(withNegativeText(emptyState(), "dots").negativeText, "dots");
});

test("only the last step changes", () => {
  const state = parseState("?id=a&text=red&id=b&text=blue");
  const changed = withLastStep(state, ({ text }) => ({ text: `${text} dots` }));
  assert.deepEqual(changed.steps.map(({ text }) => text), ["red", "blue dots"]);
  assert.deepEqual(state.steps.map(({ text }) => text), ["red", "blue"]);
});

test("a filter is added once and removed with its last value", () => {
  let state = withFilter(emptyState(), "colour", "red", true);
  state = withFilter(withFilter(state, "colour", "red", true), "colour", "blue", true);
  assert.deepEqual(state.where, { colour: ["red", "blue"] });
  state = withFilter(withFilter(state, "colour", "red", false), "colour", "blue", false);
  assert.deepEqual(state.where, {});
});
