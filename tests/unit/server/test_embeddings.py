"""Bodies in JSON, with images in base64, and /v1/embeddings: vectors by which another index finds stage 1's hits."""

import base64
import json

import numpy as np
import pytest

pytest.importorskip("starlette")

from tests.serving import image, open_served, running

NAME = "shelf00/item0003.png"
DATA = image(5, (300, 200), "JPEG")
CODED = base64.b64encode(DATA).decode()
URI = f"data:image/jpeg;base64,{CODED}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(open_served(tmp_path_factory.mktemp("vectors"), images=24)) as server:
        yield server


def post(server, path, **body):
    return server.json("POST", path, json.dumps(body).encode(), [("Content-Type", "application/json")])


def embed(server, value, **more):
    status, reply = post(server, "/v1/embeddings", input=value, **more)
    assert status == 200, reply
    return reply


@pytest.mark.parametrize("coded", [CODED, URI, [URI]])
def test_a_query_in_json_is_the_query_of_the_form(server, coded):
    fields = [("texts", "make it red"), ("k", "4"), ("where", '{"colour": "red"}')]
    expected = server.query(fields, [("reference_images", DATA)])[1]["hits"]
    where = {"colour": "red"}
    status, reply = post(server, "/v1/query", reference_images=coded, texts=["make it red"], k=4, where=where)
    assert status == 200 and reply["hits"] == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://shop.example/a.png", "reference_images[0]: an image is not fetched from a URL"),
        ("data:image/png,abc", "reference_images[0]: a data URI"),
        ("%%%", "reference_images[0]: this is not base64"),
        ([7], "reference_images[0]: an image is expected"),
    ],
)
def test_what_is_no_image_in_json_is_named(server, value, words):
    status, reply = post(server, "/v1/query", reference_images=value, texts=["red"])
    assert (status, reply["error"]["type"]) == (400, "usage") and words in reply["error"]["message"]
    broken = base64.b64encode(DATA[:60]).decode()
    assert post(server, "/v1/query", reference_images=broken)[1]["error"]["type"] == "image"


QUERIES = [
    ({"image": URI, "text": "make it red"}, {"reference_images": URI, "texts": ["make it red"]}),
    ({"id": NAME, "text": "with dots"}, {"reference_ids": [NAME], "texts": ["with dots"]}),
    (URI, {"reference_images": URI}),
    ("in blue", {"texts": ["in blue"]}),
]


def test_an_index_of_the_vectors_finds_what_stage_1_finds(server):
    listed = [each["id"] for each in server.json("GET", "/v1/images?limit=200")[1]["images"]]
    gallery = np.array([each["embedding"] for each in embed(server, [{"id": name} for name in listed])["data"]])
    assert np.allclose(gallery, server.services.galleries["shop"].gallery.snapshot.vectors, atol=1e-6)
    replies = embed(server, [query for query, _ in QUERIES])
    assert [each["index"] for each in replies["data"]] == [0, 1, 2, 3]
    for found, (_, fields) in zip(replies["data"], QUERIES, strict=True):
        own = {*fields.get("reference_ids", [])}
        order = np.argsort(-(gallery @ np.array(found["embedding"])), kind="stable")
        best = [listed[row] for row in order if listed[row] not in own][:10]
        hits = post(server, "/v1/query", rerank=0, k=10, **fields)[1]["hits"]
        assert [hit["id"] for hit in hits] == best


def test_the_reply_is_the_one_that_clients_of_openai_read(server):
    reply = embed(server, ["red", "make it red"], model="shop", user="x")
    assert (reply["object"], reply["model"], reply["usage"]) == (
        "list",
        "shop",
        {"prompt_tokens": 4, "total_tokens": 4},
    )
    coded = embed(server, "red", encoding_format="base64")["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(coded), "<f4")
    assert np.array_equal(vector, np.array(reply["data"][0]["embedding"], np.float32))
    as_image = embed(server, CODED, modality="image", dimensions=len(vector))["data"]
    assert as_image == embed(server, {"image": URI})["data"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input": []}, 400, "input has 0 entries"),
        ({"input": ["x"] * 33}, 400, "input has 33 entries"),
        ({"input": [[1, 2]]}, 400, "input[0]: Expected a text"),
        ({"input": [{"text": "red", "url": "x"}]}, 400, "input[0]: there is no field url"),
        ({"input": ["red", {}]}, 400, "input[1]: give an image"),
        ({"input": ["red", "zzz"]}, 422, "input[1]: this model knows none of the words"),
        ({"input": "https://x/a.png", "modality": "image"}, 400, "input[0]: an image is not fetched from a URL"),
        ({"input": "red", "model": "gpt"}, 404, "no model is called gpt; there are: shop"),
        ({"input": "red", "dimensions": 7}, 400, "dimensions: the vectors of this model have"),
        ({"input": {"id": "nowhere.png"}}, 404, "input[0]: the gallery has no image nowhere.png"),
    ],
)
def test_what_cannot_be_embedded_is_named(server, body, status, words):
    found, reply = post(server, "/v1/embeddings", **body)
    assert found == status and words in reply["error"]["message"]
    assert server.services.queue.reserved == 0
