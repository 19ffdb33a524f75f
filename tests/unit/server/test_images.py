"""Images in and out: only safe names, nothing outside the gallery's folder, and nothing half done."""

import io
import json
import os
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")

from PIL import Image

from nsfse_runtime.gallery.sqlite_file import sole_writer
from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.images import check_name
from tests.serving import TOKEN, image, open_served, running

TEXT = ("texts", "make it red")
BEARER = [("Authorization", f"Bearer {TOKEN}")]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A server that tests only read from."""
    with running(open_served(tmp_path_factory.mktemp("shop"))) as server:
        yield server


@pytest.fixture
def server(tmp_path):
    with running(open_served(tmp_path), token=TOKEN) as server:
        yield server


def add(server, name, data, **more):
    fields = [("id", name), *more.items()]
    return server.query(fields, [("image", data)], BEARER, "/v1/images")


def folder_of(server):
    from pathlib import Path

    return Path(server.services.galleries["shop"].gallery.snapshot.folder)


def files(server):
    paths = [path for path in folder_of(server).rglob("*") if path.is_file()]
    return sorted(path.relative_to(folder_of(server)).as_posix() for path in paths)


def test_an_added_image_is_found_and_a_deleted_one_is_not(server):
    before, data = files(server), image(77, (40, 30))
    status, reply, _ = add(server, "new shelf/täsche.png", data, metadata='{"colour": "green"}')
    assert (status, reply) == (201, {"schema_version": 2, "id": "new shelf/täsche.png", "change": "added"})
    assert (folder_of(server) / "new shelf/täsche.png").read_bytes() == data
    green = [TEXT, ("where", '{"colour": "green"}')]
    assert server.query(green, [("reference_images", data)], BEARER)[1]["hits"] == []  # the same file is no answer
    _, reply, _ = server.query(green, [("reference_images", image(78, (40, 30)))], BEARER)
    assert [(hit["id"], hit["metadata"]) for hit in reply["hits"]] == [("new shelf/täsche.png", {"colour": "green"})]
    assert server.query([TEXT, ("reference_ids", "new shelf/täsche.png")], headers=BEARER)[0] == 200
    path = f"/v1/images/{quote('new shelf/täsche.png')}"
    assert server("GET", path, headers=BEARER)[0] == 200
    assert server.json("DELETE", path, headers=BEARER) == (
        200,
        {"schema_version": 2, "id": "new shelf/täsche.png", "change": "removed"},
    )
    assert files(server) == before
    assert server("GET", path, headers=BEARER)[0] == 404
    assert server.json("DELETE", path, headers=BEARER)[0] == 404
    assert server.query([TEXT, ("reference_ids", "new shelf/täsche.png")], headers=BEARER)[0] == 404
    assert server.json("GET", "/v1/info", headers=BEARER)[1]["galleries"][0]["images"] == 12


def test_only_the_one_image_is_looked_at(server):
    (folder_of(server) / "stranger.png").write_bytes(image(5))
    (folder_of(server) / "shelf00/item0000.png").unlink()
    assert add(server, "new.png", image(6))[0] == 201
    ids = server.services.galleries["shop"].gallery.ids
    assert "new.png" in ids and "shelf00/item0000.png" in ids and "stranger.png" not in ids


def test_no_image_takes_the_place_of_another(server):
    data = image(8)
    assert add(server, "a.png", data)[0] == 201
    assert add(server, "a.png", data)[:2] == (200, {"schema_version": 2, "id": "a.png", "change": "unchanged"})
    status, reply, _ = add(server, "a.png", image(9))
    assert (status, reply["error"]["type"]) == (409, "conflict")
    assert (folder_of(server) / "a.png").read_bytes() == data
    assert not [name for name in files(server) if "part" in name]


def patch(server, name, body, headers=BEARER, kind="application/merge-patch+json"):
    headers = [("Content-Type", kind), *headers]
    return server.json("PATCH", f"/v1/images/{name}", json.dumps(body).encode(), headers)


def test_metadata_is_set_and_removed_column_by_column(server):
    name = "shelf00/item0001.png"
    status, reply = patch(server, name, {"metadata": {"price": 29.5, "kids": True, "stock": 3, "colour": None}})
    assert (status, reply) == (
        200,
        {"schema_version": 2, "id": name, "change": "updated"}
        | {"metadata": {"price": "29.5", "kids": "true", "stock": "3"}},
    )
    assert patch(server, name, {"metadata": {"stock": "3"}}, kind="application/json")[1]["change"] == "unchanged"
    found = server.json("GET", f"/v1/images?where={quote(json.dumps({'price': {'$lt': 30}}))}", headers=BEARER)[1]
    assert [image["id"] for image in found["images"]] == [name]
    data = (folder_of(server) / name).read_bytes()
    status, reply, _ = add(server, name, data, metadata='{"size": "007", "label": 7}')  # the others stay
    assert (status, reply["change"]) == (200, "updated")
    assert patch(server, name, {"metadata": {"price": None}})[1]["metadata"] == {
        "kids": "true",
        "stock": "3",
        "size": "007",
        "label": "7",
    }
    assert patch(server, name, {"metadata": None})[1]["metadata"] == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "the field metadata is missing"),
        ({"metadata": {"a": [1]}}, "metadata"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {"a": 10**400}}, "metadata"),
        ({"metadata": {"a": "x" * 2001}}, "metadata"),
        ({"id": "b.png", "metadata": {}}, "there is no field id"),
    ],
)
def test_a_patch_out_of_form_changes_nothing(server, body, words):
    status, reply = patch(server, "shelf00/item0001.png", body)
    assert (status, reply["error"]["type"]) == (400, "usage") and words in reply["error"]["message"]
    assert patch(server, "nowhere.png", {"metadata": {}})[1]["error"]["type"] == "not_found"
    assert patch(server, "shelf00/item0001.png", {"metadata": {}}, headers=())[0] == 401
    assert patch(server, "shelf00/item0001.png", {"metadata": {}}, kind="text/plain")[0] == 415


def test_what_is_no_image_is_not_taken_in(server):
    before = files(server)
    for data in (b"", b"<html>", image(1)[:50]):
        status, reply, _ = add(server, "a.png", data)
        assert (status, reply["error"]["type"]) == (422, "image")
    assert files(server) == before


def test_while_another_writes_nothing_is_left_behind(server):
    before = files(server)
    with sole_writer(server.services.galleries["shop"].gallery.path):
        status, reply, headers = add(server, "a.png", image(1))
        assert (status, reply["error"]["type"]) == (503, "busy")
        assert "retry-after" in headers
        assert server.json("DELETE", "/v1/images/shelf00/item0001.png", headers=BEARER)[0] == 503
    assert files(server) == before
    assert add(server, "a.png", image(1))[0] == 201


UNSAFE = [
    *("../a.png", "a/../b.png", "/a.png", "a//b.png", "./a.png", ".a.png", "a/.b.png", "..", "a\\b.png", "C:a.png"),
    *("a\x00.png", "a\n.png", "a\x1b[31m.png", "a\u202e.png", "con.png", "x/NUL.png", "a.png ", "a.png.", "~/a.png"),
    *("a.svg", "a.html", "a", "", "a.png/", "%2e%2e/a.png", "<img>.png", "a|b.png", "$(id).png", "`id`.png", "-rf.png"),
    *(
        "x" * 130 + ".png",
        "/".join("abcdefghi") + ".png",
        "a:b.png",
        "a*.png",
        "a?.png",
        '".png',
        "a;b.png",
        "\ud7ff.png",
    ),
]


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_is_refused(name):
    with pytest.raises(HTTPError, match="name") as refused:
        check_name(name)
    assert refused.value.status == 400


@pytest.mark.parametrize("name", ["a.png", "ü/日本.JPG", "a b/c-d_e.(1)+@=,.webp", "2024/05/x.jpeg"])
def test_a_plain_name_is_not(name):
    check_name(name)


def test_unsafe_names_write_nothing_over_http(server, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*") if path.suffix == ".png")
    for name in filter(None, UNSAFE):
        assert add(server, name, image(1))[0] == 400
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix == ".png") == before


def test_links_lead_nowhere(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(image(3))
    folder = folder_of(server)
    (folder / "shelf00/item0001.png").unlink()
    (folder / "shelf00/item0001.png").symlink_to(secret)
    os.rename(folder / "shelf01", tmp_path / "elsewhere")
    (folder / "shelf01").symlink_to(tmp_path / "elsewhere")
    (folder / "out").symlink_to(tmp_path)
    for name in ("shelf00/item0001.png", "shelf01/item0010.png"):
        for suffix in ("", "/thumbnail"):
            status, reply = server.json("GET", f"/v1/images/{name}{suffix}", headers=BEARER)
            assert (status, reply["error"]["type"]) == (404, "not_found")
        assert server.json("DELETE", f"/v1/images/{name}", headers=BEARER)[0] == 404
        # Its features are in the gallery: a query by it reads no file.
        assert server.query([("reference_ids", name), TEXT], headers=BEARER)[0] == 200
    assert add(server, "out/new.png", image(4))[0] == 404
    assert secret.exists() and (tmp_path / "elsewhere/item0010.png").exists() and not (tmp_path / "new.png").exists()


def test_a_file_that_became_a_pipe_does_not_hang(server):
    path = folder_of(server) / "shelf00/item0002.png"
    path.unlink()
    os.mkfifo(path)
    assert server.json("GET", "/v1/images/shelf00/item0002.png", headers=BEARER)[0] == 404


PATHS = [
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cetc%5cpasswd", "%00"),
    *(
        "/etc/passwd",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "C:%5cwindows",
        "file:%2f%2f%2fetc%2fpasswd",
        "%252e%252e%252f",
    ),
    *("shelf00/../shelf00/item0001.png", "./shelf00/item0001.png", "shelf00//item0001.png", "shelf00", "shelf00/"),
    *("%ed%a0%80", "%c0%ae%c0%ae/", "..%c0%af", "a" * 9000, "%0d%0aX-Evil:%201", "~root", "$HOME", "*", "shop.gallery"),
    *("../shop.gallery", "..%2fshop.gallery", "../shop.csv", ";id", "%3cscript%3e", "..;/", ".%00./", "%e2%80%ae"),
    *("%ff%fe", "a%00.png", "file:%2f%2f%2fetc%2fpasswd"),
]


@pytest.mark.parametrize("path", PATHS)
def test_tricks_with_paths_find_nothing(shop, path):
    for where in (f"/v1/images/{path}", f"/v1/images/{path}/thumbnail", f"/assets/{path}"):
        status, headers, body = shop("GET", where)
        assert status in (404, 400)
        assert json.loads(body)["error"]["type"] in ("not_found", "usage")
        assert "x-evil" not in headers
    assert shop("DELETE", f"/v1/images/{path}")[0] == 403


def test_tricks_with_paths_delete_nothing(server):
    for path in PATHS:
        assert server("DELETE", f"/v1/images/{path}", headers=BEARER)[0] in (400, 404)
    assert len(files(server)) == 12


NAMES = [
    *(
        "<img src=x onerror=alert(1)>.png",
        "'\"><svg>.png",
        "a\nb.png",
        "a\r\nX-Evil: 1.png",
        "\x1b[31mred.png",
        "a;b.png",
    ),
    *("%2e%2e%2fetc.png", "a?b=c#d.png", "a&b.png", " lead.png", "trail .png", "日本.png", "e\u0301.png"),
    *("a\\b.png", "C:\\x.png", "{{7*7}}.png", "$(id).png", "`id`.png", "%00.png", "\ufeffbom.png", "thumbnail"),
    *("\U0001f600.png", "a" * 240 + ".png", "%.png", "+.png", "~.png", "-rf.png", "null.png", "CON.png", "a\tb.png"),
    *("\x1b[31mred.png", "\x7f.png", "\u202egnp.exe.png"),
]


def test_hostile_names_in_a_gallery_are_served_as_any_other(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(image(number))
    served = open_served(tmp_path, "odd", 1)
    with running(served) as server:
        assert set(NAMES) < set(served.gallery.ids)
        listed = {each["id"] for each in server.json("GET", "/v1/images?limit=200")[1]["images"]}
        assert set(NAMES) < listed
        for name in NAMES:
            status, headers, body = server("GET", f"/v1/images/{quote(name, safe='')}/thumbnail")
            assert (status, headers["content-type"]) == (200, "image/jpeg")
            assert Image.open(io.BytesIO(body)).size == (20, 14)
            assert "x-evil" not in headers
        # A browser sends line ends in a form's text as CR LF: such a name is found by the list alone.
        for name in (each for each in NAMES if "\n" not in each):
            status, reply, _ = server.query([("reference_ids", name), TEXT, ("k", "100")])
            assert status == 200
            assert name not in {hit["id"] for hit in reply["hits"]}


STRINGS = [
    *("", " ", "\t\n", "\x00", "red\x00", "\ufeff", "\u200b", "\u202ered", "\U0001f600" * 50, "a\u0301" * 900, "Ω≈ç√"),
    *(
        "<script>alert(1)</script>",
        "'; DROP TABLE items; --",
        "${7*7}",
        "{{7*7}}",
        "%s%n%x",
        "../../etc/passwd",
        "null",
    ),
    *(
        "undefined",
        "NaN",
        "-1e999",
        "1/0",
        "true",
        "0x0",
        "[]",
        "{}",
        "\\",
        "\\x41",
        '"',
        "'",
        "`",
        "%00",
        "\r\nX-Evil: 1",
    ),
    *("ﬀ", "ẞ", "İ", "\u0130" * 500, "z" + "\u0300" * 1500, "א" * 600, "\U000e0001", "\ufffe", "\uffff", "𝕣𝕖𝕕"),
    *("田中さん", "r" * 2000, "undefined", "../../etc/passwd"),
]


@pytest.mark.parametrize("text", STRINGS)
def test_strings_that_break_software_break_nothing(shop, text):
    name = "shelf00/item0001.png"
    for fields in (
        [("reference_ids", name), ("texts", text)],
        [("reference_ids", name), TEXT, ("negative_texts", text)],
    ):
        assert shop.query(fields)[0] in (200, 422)
    assert shop.query([("reference_ids", text), TEXT])[0] in (400, 404)
    assert shop.query([("reference_ids", name), TEXT, ("gallery", text)])[0] in (400, 404)
    for key in ("where", "k", "rerank", "min_confidence", "balance", "heatmaps", "nonsense"):
        assert shop.query([("reference_ids", name), TEXT, (key, text)])[0] in (200, 400)
    assert shop.query([("reference_ids", name), TEXT, ("where", json.dumps({text: text}))])[0] == 400
    body = json.dumps({"queries": [{"reference_ids": [name], "texts": [text]}]})
    assert shop("POST", "/v1/query:batch", body.encode(), [("Content-Type", "application/json")])[0] == 200
    assert shop("GET", f"/v1/images?limit={quote(text)}")[0] == 400
    assert shop.services.queue.reserved == 0
