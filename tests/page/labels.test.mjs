import assert from "node:assert/strict";
import { test } from "node:test";
import { fakeDocument, load } from "./modules.mjs";

fakeDocument();
const { balanceLabel } = await load("panel.js");
const { confidenceOf, labelOf } = await load("grid.js");
const { divider, headlineOf, leadOf } = await load("headlines.js");
const { emptyState, parseState } = await load("state.js");
const { verdictOf } = await load("viewer.js");

test("the balance has words from the image to the text", () => {
  const labels = [0, 0.3, 0.5, 0.7, 1].map(balanceLabel);
  assert.deepEqual(labels, ["the image", "more the image", "both", "more the words", "the words"]);
});

test("a tile is named by its rank and confidence", () => {
  assert.equal(labelOf({ id: "a.png" }, 0), "a.png: start with this image");
  assert.equal(labelOf({ id: "a.png", score: 1, confidence: 0.914, is_match: true }, 0), "1: a.png, match, 91%. Open");
  assert.equal(labelOf({ id: "b.png", score: 1, confidence: null }, 4), "5: b.png. Open");
});

test("a confidence that makes no match is told with the cut", () => {
  const hit = { score: 1.5, confidence: 0.75, is_match: false };
  assert.equal(confidenceOf(hit, 0.77), "75%, match from 77%");
  assert.equal(confidenceOf({ ...hit, confidence: 0.049, is_match: true }, 0.0485), "✓ match 4.9%");
  assert.equal(confidenceOf({ ...hit, confidence: null }, null), "score 1.50");
  assert.equal(verdictOf(hit, 0.77), "no match: confidence 75%, cut 77%");
});

test("the headline counts matches, and the line under it tells the cut", () => {
  const gallery = { images: 9 };
  const state = parseState("?id=a.png&text=red");
  const hits = [{ is_match: true }, { is_match: false }];
  const found = { hits, has_match: true, threshold: 0.7667, state };
  assert.equal(headlineOf(found, gallery), "1 match");
  assert.equal(leadOf(found, { gallery }), "A match has a confidence of 77% or more.");
  assert.deepEqual(divider(found), { divideAt: 1, dividerText: "no match from here on: under 77%" });
  const none = { ...found, hits: hits.slice(1), has_match: false };
  assert.equal(headlineOf(none, gallery), "Nothing here matches");
  assert.deepEqual(divider(none), { divideAt: 0, dividerText: "the nearest there are" });
  const alone = { hits: [{ is_match: null }], has_match: null, threshold: null, state };
  assert.deepEqual([headlineOf(alone, gallery), leadOf(alone, { gallery }), divider(alone)], ["Nearest first", "", {}]);
});

test("no hits are the gallery's, the filters', or nobody's fault", () => {
  const none = { hits: [], has_match: null, threshold: null, state: { ...emptyState(), steps: [{}] } };
  assert.equal(headlineOf(none, { images: 0 }), "This gallery is empty");
  assert.match(leadOf(none, { gallery: { images: 0 }, writable: false }), /nsfse index/);
  assert.match(leadOf(none, { gallery: { images: 0 }, writable: true }), /Drop images/);
  assert.equal(headlineOf(none, { images: 1 }), "No image is left");
  const filtered = { ...none, state: { ...none.state, where: { colour: ["red"] } } };
  assert.equal(headlineOf(filtered, { images: 1 }), "No image passes the filters");
});
