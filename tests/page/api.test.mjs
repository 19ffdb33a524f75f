import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { fakeSessionStorage, load } from "./modules.mjs";

fakeSessionStorage();
const { ApiError, fetchInfo, imageUrl, postImage, query, queryFields, sampleImages, thumbnailUrl } = await load("api.js");
const { emptyState, parseState } = await load("state.js");

const json = (body, init) => new Response(JSON.stringify(body), init);
const realFetch = globalThis.fetch;
afterEach(() => (globalThis.fetch = realFetch));

test("all that a state holds is sent", () => {
  const state = parseState(
    "?gallery=shoes&id=a.png&and-like=b.png&edit=make+it+red&text=with+dots&without=stripes,+,a+belt&not=c.png" +
      "&balance=0.7&where.colour=red",
  );
  assert.deepEqual(queryFields(state, { k: 24 }), [
    ["reference_ids", "a.png"],
    ["reference_ids", "b.png"],
    ["texts", "make it red"],
    ["texts", "with dots"],
    ["negative_texts", "stripes"],
    ["negative_texts", "a belt"],
    ["negative_ids", "c.png"],
    ["where", '{"colour":["red"]}'],
    ["balance", "0.7"],
    ["gallery", "shoes"],
    ["k", "24"],
  ]);
});

test("the balance is sent unless it is the default, and without a text only the image counts", () => {
  const balanceOf = (address) => queryFields(parseState(address)).find(([name]) => name === "balance")?.[1];
  assert.equal(balanceOf("?id=a&text=red"), undefined);
  assert.equal(balanceOf("?id=a&text=red&balance=1"), "1");
  assert.equal(balanceOf("?id=a"), "0");
  assert.equal(balanceOf("?id=a&balance=1"), "0");
});

test("an image from this device is sent as a file with a name of its own", () => {
  sessionStorage.setItem("upload 0f", `data:image/png;base64,${btoa("pixels")}`);
  const fields = queryFields(parseState("?upload=0f&and-upload=0f&text=red"));
  const files = fields.filter(([name]) => name === "reference_images").map(([, file]) => file);
  assert.deepEqual(files.map(({ name, type, size }) => [name, type, size]), [
    ["reference.png", "image/png", 6],
    ["reference-2.png", "image/png", 6],
  ]);
});

test("ids are escaped in addresses, but for their folders", () => {
  assert.equal(imageUrl("a b/c?.png", "my shoes"), "v1/images/a%20b/c%3F.png?gallery=my+shoes");
  assert.equal(thumbnailUrl("a.png", "shoes"), "v1/images/a.png/thumbnail?gallery=shoes");
});

test("a query is a form, and its body is returned", async () => {
  globalThis.fetch = async (path, { method, body }) => json({ path, method, texts: body.getAll("texts") });
  const found = await query(parseState("?id=a&edit=red&text=blue"), { k: 3 });
  assert.deepEqual(found, { path: "v1/query", method: "POST", texts: ["red", "blue"] });
});

test("an error of the service keeps its type, message and delay", async () => {
  const error = { error: { type: "busy", message: "too many queries" } };
  globalThis.fetch = async () => json(error, { status: 503, headers: { "Retry-After": "4" } });
  await assert.rejects(fetchInfo(), (failure) => {
    assert.ok(failure instanceof ApiError && failure.busy);
    assert.deepEqual([failure.type, failure.message, failure.retryAfter], ["busy", "too many queries", 4]);
    return true;
  });
});

test("a server that is gone or answers no JSON is named", async () => {
  globalThis.fetch = async () => Promise.reject(new TypeError("failed"));
  await assert.rejects(fetchInfo(), { status: 0, message: /does not answer/ });
  globalThis.fetch = async () => new Response("<html>", { status: 502 });
  await assert.rejects(fetchInfo(), { status: 502, message: "The server answered 502." });
});

test("an image is added under the name of its file", async () => {
  globalThis.fetch = async (path, { method, body }) =>
    json({ sent: [path, method, body.get("image").size, body.get("id"), body.get("gallery")] });
  const { sent } = await postImage(new File(["pixels"], "a.png"), "shoes");
  assert.deepEqual(sent, ["v1/images", "POST", 6, "a.png", "shoes"]);
});

test("an aborted request stays an abort", async () => {
  globalThis.fetch = async () => Promise.reject(new DOMException("stopped", "AbortError"));
  await assert.rejects(fetchInfo(), { name: "AbortError" });
});

test("a sample has images from all parts of a large gallery, and all of a small one", async () => {
  const serve = (total) => async (path) => {
    const params = new URL(path, "http://localhost/").searchParams;
    const [offset, limit] = ["offset", "limit"].map((name) => Number(params.get(name)));
    const images = Array.from({ length: Math.min(limit, total - offset) }, (_, index) => ({ id: offset + index }));
    return json({ total, images });
  };
  for (const [total, size] of [[0, 0], [1, 1], [7, 7], [96, 24], [97, 24], [5000, 24]]) {
    globalThis.fetch = serve(total);
    const ids = (await sampleImages(emptyState(), 24)).map(({ id }) => id);
    assert.equal(new Set(ids).size, size, `${total} images`);
    assert.ok(ids.every((id) => id >= 0 && id < total));
    if (total === 5000) assert.equal(new Set(ids.map((id) => Math.floor(id / 625))).size, 8);
  }
});
