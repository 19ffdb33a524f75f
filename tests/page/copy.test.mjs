import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fakeSessionStorage, load } from "./modules.mjs";

fakeSessionStorage();
globalThis.location = { href: "http://localhost:8000/shop/?id=a.png#top" };
const { curlSnippet, pythonSnippet } = await load("copy.js");
const { parseState } = await load("state.js");

test("the shell passes on what the page would send, quotes and dollars included", () => {
  const snippet = curlSnippet(parseState("?id=a.png&text=it%27s+%24HOME+%60red%60"), { k: 3 });
  const shown = execFileSync("bash", ["-c", `curl() { printf '%s\\n' "$@"; }\n${snippet}`], { encoding: "utf8" });
  assert.deepEqual(shown.trimEnd().split("\n").filter((line) => line !== "--form-string"), [
    "http://localhost:8000/shop/v1/query",
    "reference_ids=a.png",
    "texts=it's $HOME `red`",
    "gallery=",
    "k=3",
  ]);
});

test("an image from this device is a file to put in place", () => {
  sessionStorage.setItem("upload 0f", `data:image/jpeg;base64,${btoa("pixels")}`);
  const state = parseState("?upload=0f&text=red");
  assert.match(curlSnippet(state), /-F reference_images=@reference\.jpeg/);
  assert.match(pythonSnippet(state), /\("reference_images", \("reference\.jpeg", open\("reference\.jpeg", "rb"\)\.read\(\)\)\),/);
});

test("values in the Python program are quoted", () => {
  const snippet = pythonSnippet(parseState("?id=a.png&text=%22red%22%5C"), { k: 3 });
  assert.ok(snippet.includes('    ("texts", "\\"red\\"\\\\"),'));
  assert.ok(snippet.includes('urllib3.request("POST", "http://localhost:8000/shop/v1/query", fields=fields)'));
});
