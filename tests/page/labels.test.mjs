import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./modules.mjs";

const { balanceLabel } = await load("panel.js");
const { labelOf } = await load("grid.js");

test("the balance has words from the image to the text", () => {
  const labels = [0, 0.3, 0.5, 0.7, 1].map(balanceLabel);
  assert.deepEqual(labels, ["like the image", "more like the image", "both", "more like the words", "like the words"]);
});

test("a tile is named by its rank and confidence", () => {
  assert.equal(labelOf({ id: "a.png" }, 0), "a.png: start with this image");
  assert.equal(
    labelOf({ id: "a.png", score: 1, confidence: 0.914, is_match: true }, 0),
    "1: a.png, a match, 91 percent sure. Use as the next image",
  );
  assert.equal(labelOf({ id: "b.png", score: 1, confidence: null }, 4), "5: b.png. Use as the next image");
});
