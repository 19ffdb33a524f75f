import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { folder, load } from "./modules.mjs";

const { STRINGS, languageOf, percent, say } = await load("strings.js");
const { en, de } = STRINGS;
const blanks = (text) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();

test("both languages say the same things", () => {
  assert.deepEqual(Object.keys(de), Object.keys(en));
  for (const [name, text] of Object.entries(en)) assert.deepEqual(blanks(de[name]), blanks(text), name);
});

test("every string is said, and what is said is a string", () => {
  const files = ["index.html", "adding", "api", "copy", "evidence", "grid", "headlines", "page", "panel", "viewer"];
  const text = files.map((file) => readFileSync(new URL(file.includes(".") ? file : `${file}.js`, folder), "utf8")).join("\n");
  const names = Object.keys(en).filter((name) => !name.endsWith(".one"));
  assert.deepEqual(names.filter((name) => !new RegExp(`"${name}"`).test(text)), []);
  const said = [...text.matchAll(/say\("(\w+)"|data-(?:say|label|title|placeholder)="(\w+)"/g)].map(([, one, other]) => one ?? other);
  assert.ok(said.length > 60);
  assert.deepEqual(said.filter((name) => !(name in en)), []);
});

test("the first language that is here is taken, English without any", () => {
  assert.deepEqual([["de-AT", "en"], ["fr", "de"], ["EN-us", "de"], ["fr"], []].map(languageOf), ["de", "de", "en", "en", "en"]);
});

test("counts and names are put in", () => {
  assert.equal(say("matches", { count: 1 }), "1 match");
  assert.equal(say("matches", { count: 1200 }), "1,200 matches");
  assert.equal(say("startWith", { id: "{x}.png" }), "{x}.png: start with this image");
  assert.deepEqual([0.0485, 0.7667, 1].map(percent), ["4.9%", "77%", "100%"]);
});
