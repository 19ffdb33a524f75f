"""Forms that are cut, keys given twice, bodies in another coding, names that end as a route does."""

import json

import pytest

pytest.importorskip("starlette")

from tests.galleries import save_image
from tests.serving import image, multipart, open_served, running

TEXT = ("texts", "make it red")
ID = ("reference_ids", "shelf00/item0001.png")


LESS = (
    "where: colour: $lt compares numbers and dates (2026-11-30), not 'M'; "
    'for example {"price": {"$gte": 10, "$lt": 30}, "size": ["S", "M"]}'
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    for seed, name in enumerate(("thumbnail", "x.png", "cafe\u0301.png")):
        save_image(folder / f"shop/sub/{name}.png", 70 + seed)
    (folder / "shop/sub/thumbnail.png").rename(folder / "shop/sub/thumbnail")
    with running(open_served(folder)) as server:
        yield server


def test_a_form_that_is_cut_is_refused(server):
    kind, body = multipart([ID, TEXT, ("k", "3")])
    assert server("POST", "/v1/query", body, [("Content-Type", kind)])[0] == 200
    for cut in (2, 4, 5, 20, 60):  # the line's end alone may be missing
        status, _, reply = server("POST", "/v1/query", body[:-cut], [("Content-Type", kind)])
        assert status == (200 if cut == 2 else 400), cut
        assert cut == 2 or "closing boundary" in json.loads(reply)["error"]["message"] or b"form" in reply
    assert server("POST", "/v1/query", body + b"an epilogue\r\n", [("Content-Type", kind)])[0] == 200


def test_a_coded_body_is_refused(server):
    kind, body = multipart([ID, TEXT])
    headers = [("Content-Type", kind), ("Content-Encoding", "gzip")]
    status, _, reply = server("POST", "/v1/query", body, headers)
    assert status == 415 and "Content-Encoding" in json.loads(reply)["error"]["message"]
    assert server("POST", "/v1/query", body, [headers[0], ("Content-Encoding", "identity")])[0] == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("where", '{"colour": "red", "colour": "blue"}')], "where: colour is given twice"),
        ([("where", '{"colour": {"$lt": "M"}}')], LESS),
        ([("k", "5000")], "k: Expected a whole number <= 1000"),
        ([("nothing", "x")], "there is no field nothing"),
    ],
)
def test_reasons_in_plain_words(server, fields, message):
    status, reply, _ = server.query([ID, TEXT, *fields])
    assert (status, reply["error"]["message"]) == (400, message)


def test_a_batch_with_a_key_twice_or_unknown(server):
    headers = [("Content-Type", "application/json")]
    twice = b'{"queries": [{"reference_ids": ["x"], "texts": ["red"], "where": {"colour": "red", "colour": "blue"}}]}'
    status, _, reply = server("POST", "/v1/query:batch", twice, headers)
    assert (status, json.loads(reply)["error"]["message"]) == (400, "colour is given twice")
    status, _, reply = server("POST", "/v1/query:batch", b'{"queries": [{"id": ["x"], "texts": ["red"]}]}', headers)
    (result,) = json.loads(reply)["results"]
    assert (status, result["error"]["message"]) == (200, "queries[0]: there is no field id")


def test_a_file_called_as_the_route_is_shown(server):
    import io

    from PIL import Image

    for path in (
        "sub/thumbnail",
        "sub%2Fthumbnail",
        "sub/thumbnail/thumbnail",
        "sub/x.png.png",
        "sub/x.png.png/thumbnail",
    ):
        status, _, body = server("GET", f"/v1/images/{path}")
        assert status == 200 and Image.open(io.BytesIO(body)).format == "JPEG", path
    assert server("GET", "/v1/images/sub/nothing/thumbnail")[0] == 404


def test_a_name_in_another_unicode_form_is_the_same(server):
    assert server("GET", "/v1/images/sub/caf%C3%A9.png.png")[0] == 200
    status, reply, _ = server.query([("reference_ids", "sub/caf\u00e9.png.png"), TEXT])
    assert status == 200 and "sub/cafe\u0301.png.png" not in {hit["id"] for hit in reply["hits"]}
    status, reply, _ = server.query([("reference_ids", "SUB/x.png.png"), TEXT])
    assert status == 404 and "did you mean sub/x.png.png?" in reply["error"]["message"]


def test_an_upload_of_an_image_of_the_gallery_is_no_hit(server):
    path = server.services.galleries["shop"].gallery.snapshot.path_of(0)
    _, reply, _ = server.query([TEXT, ("k", "50")], [("reference_images", path.read_bytes())])
    ids = {hit["id"] for hit in reply["hits"]}
    assert ids == set(server.services.galleries["shop"].gallery.ids[1:])
    _, reply, _ = server.query([TEXT, ("k", "50")], [("reference_images", image(4321))])
    assert len(reply["hits"]) == len(ids) + 1


@pytest.mark.parametrize(
    ("host", "status"), [("localhost.", 200), ("localhost.:80", 200), ("localhost..", 421), (".", 421)]
)
def test_a_host_with_a_trailing_dot(server, host, status):
    assert server("GET", "/healthz", headers=[("Host", host)])[0] == status
