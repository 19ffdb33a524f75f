"""A gallery behind the protocol of databases, served: it answers as the file does, and is not written."""

import json

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.server.settings import named_galleries
from nsfse_runtime.server.stores import ServedStore
from nsfse_runtime.stores.file import FileStore
from tests.serving import TEXT, TOKEN, image, multipart, open_served, running

NAME = "shelf00/item0001.png"
WRITER = [("Authorization", f"Bearer {TOKEN}")]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The server of a file, and that of the same file as a store."""
    file = open_served(tmp_path_factory.mktemp("served"))
    store = ServedStore("shop", file.model, FileStore(file.gallery.path))
    with running(file, write_tokens=(TOKEN,)) as first, running(store, write_tokens=(TOKEN,)) as second:
        yield first, second


def same(both, method, path, body=b"", headers=()):
    replies = [server(method, path, body, [*WRITER, *headers]) for server in both]
    assert replies[0][0] == replies[1][0] and replies[0][2] == replies[1][2]
    return replies[0]


def test_reading_is_the_same(both):
    for path in ("/v1/images?offset=2&limit=3", '/v1/images?where={"colour":"red"}&limit=2', "/v1/images?offset=99"):
        status, _, body = same(both, "GET", path.replace('"', "%22"))
        assert status == 200 and json.loads(body)["total"] in (12, 6)
    _, headers, sent = same(both, "GET", f"/v1/images/{NAME}/thumbnail")
    assert sent[:2] == b"\xff\xd8"
    assert same(both, "GET", f"/v1/images/{NAME}/thumbnail", headers=[("If-None-Match", headers["etag"])])[0] == 304
    kind, form = multipart([TEXT, ("where", '{"colour":"red"}')], [("reference_images", image(3))])
    answers = [server("POST", "/v1/query", form, [*WRITER, ("Content-Type", kind)]) for server in both]
    hits = [json.loads(body)["hits"] for _, _, body in answers]
    assert hits[0] == hits[1] and len(hits[0]) == 6
    infos = [server.json("GET", "/v1/info", headers=WRITER)[1] for server in both]
    assert infos[0]["galleries"] == infos[1]["galleries"]
    assert [info["writable"] for info in infos] == [True, False]
    assert both[1]("GET", "/metrics", headers=WRITER)[2].count(b'nsfse_images{gallery="shop"} 12.0') == 1


def test_unknown_images_and_columns_are_refused(both):
    missing, unknown = "/v1/images/absent.png", "/v1/images?where=%7B%22size%22%3A1%7D"
    for path, status in ((missing, 404), (unknown, 400)):
        for server in both:
            assert server("GET", path, headers=WRITER)[0] == status


def test_writing_is_refused_in_one_line(both):
    kind, form = multipart([("id", "new.png")], [("image", image(3))])
    for method, path, body, content in (
        ("POST", "/v1/images", form, kind),
        ("PATCH", f"/v1/images/{NAME}", b'{"metadata": {"colour": "green"}}', "application/json"),
        ("DELETE", f"/v1/images/{NAME}", b"", ""),
    ):
        headers = [*WRITER, *([("Content-Type", content)] if content else [])]
        status, reply = both[1].json(method, path, body, headers)
        assert status == 409 and "shop is in a database" in reply["error"]["message"]


def test_a_database_is_called_by_its_gallery():
    url = "postgresql://me@db/images?sslmode=require&gallery=shoes"
    assert named_galleries([url, f"old={url}", "postgresql://me@db/images"]) == {
        "shoes": url,
        "old": url,
        "gallery": "postgresql://me@db/images",
    }
