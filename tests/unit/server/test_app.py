"""The routes over real HTTP: what they answer, and that it is what the library answers."""

import io
import json

import pytest

pytest.importorskip("starlette")

from PIL import Image

from nsfse_runtime import Retriever
from nsfse_runtime.server.galleries import _descriptions
from nsfse_runtime.server.schemas import InfoReply, ListReply, QueryReply
from tests.serving import TOKEN, image, open_served, running, wait_until

TEXT = ("texts", "make it red")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    with running(open_served(folder), open_served(folder, "other", 5)) as server:
        yield server


def hits(reply):
    return [(hit["id"], pytest.approx(hit["score"])) for hit in reply["hits"]]


def expected(server, reference, text, gallery="shop", **options):
    served = server.services.galleries[gallery]
    result = Retriever(served.model, served.gallery).query(reference, text, **options)
    return [(hit.id, hit.score) for hit in result.hits]


def test_a_query_by_id_is_the_librarys_answer(server):
    name = server.services.galleries["shop"].gallery.ids[3]
    status, reply, headers = server.query([("reference_ids", name), TEXT, ("k", "4")])
    assert status == 200
    assert hits(reply) == expected(server, name, "make it red", k=4)
    assert (reply["schema_version"], reply["gallery"]) == (2, "shop")
    assert headers["x-request-id"] == reply["request_id"]
    assert "stage2;dur=" in headers["server-timing"]
    assert set(reply["timings_ms"]) == {"decode", "queue", "image", "text", "stage1", "stage2", "total"}
    assert reply["hits"][0]["metadata"]["colour"] in ("red", "blue")
    assert "path" not in reply["hits"][0]
    import msgspec

    msgspec.convert(reply, QueryReply)


def test_a_log_that_nobody_can_write_to_refuses_no_query(server, monkeypatch):
    def gone(line):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(server.services.log.stream, "write", gone)
    name = server.services.galleries["shop"].gallery.ids[3]
    assert [server.query([("reference_ids", name), TEXT])[0] for _ in range(2)] == [200, 200]
    wait_until(lambda: server.services.log.lost >= 2)  # a line is written after its reply


def test_a_query_by_image_is_the_librarys_answer(server):
    data = image(5, (300, 200), "JPEG")
    status, reply, _ = server.query([TEXT, ("k", "3")], [("reference_images", data)])
    assert status == 200
    assert hits(reply) == expected(server, data, "make it red", k=3)
    assert reply["timings_ms"]["decode"] > 0


def test_several_images_texts_and_exclusions_reach_the_library(server):
    first, second, third = server.services.galleries["shop"].gallery.ids[:3]
    fields = [
        ("reference_ids", first),
        ("reference_ids", second),
        TEXT,
        ("texts", "with dots"),
        ("negative_texts", "stripes"),
        ("negative_ids", third),
    ]
    status, reply, _ = server.query([*fields, ("k", "5"), ("balance", "0.4")])
    options = {"negative_texts": ["stripes"], "negative_images": [third], "balance": 0.4, "k": 5}
    assert status == 200
    assert hits(reply) == expected(server, [first, second], ["make it red", "with dots"], **options)
    assert [hit["id"] for hit in reply["hits"]] != [
        hit["id"] for hit in server.query([("reference_ids", first), TEXT, ("k", "5")])[1]["hits"]
    ]


def test_conditions_and_galleries_are_applied(server):
    name = server.services.galleries["shop"].gallery.ids[0]
    _, reply, _ = server.query([("reference_ids", name), TEXT, ("where", '{"colour": ["red"]}')])
    assert {hit["metadata"]["colour"] for hit in reply["hits"]} == {"red"}
    either = '{"$or": [{"colour": "red"}, {"colour": {"$in": ["blu"]}}]}'
    _, reply, _ = server.query([("reference_ids", name), TEXT, ("where", either)])
    assert {hit["metadata"]["colour"] for hit in reply["hits"]} == {"red"}
    assert reply["notes"] == ["no image has colour=blu; did you mean blue?"]
    other = server.services.galleries["other"].gallery.ids[0]
    assert server.query([("reference_ids", other), TEXT, ("gallery", "other")])[1]["gallery"] == "other"
    status, reply, _ = server.query([("reference_ids", name), TEXT, ("gallery", "nowhere")])
    assert (status, reply["error"]["type"]) == (404, "not_found")


def test_a_batch_is_its_queries_alone_whatever_one_of_them_does(server):
    ids = server.services.galleries["shop"].gallery.ids
    queries = [{"reference_ids": [name], "texts": ["make it red"], "k": 3} for name in ids[:3]]
    queries.insert(1, {"reference_ids": ["nowhere.png"], "texts": ["make it red"]})
    queries += [
        {"id": ids[0], "texts": ["make it red"]},
        {"reference_ids": [ids[0]], "texts": ["make it red"], "k": 0},
        7,
    ]
    body = json.dumps({"queries": queries}).encode()
    status, reply = server.json("POST", "/v1/query:batch", body, [("Content-Type", "application/json")])
    assert status == 200
    assert reply["results"][1]["error"]["type"] == "not_found"
    for result, words in zip(
        reply["results"][4:], ["there is no field id", "queries[5].k: ", "queries[6]: "], strict=True
    ):
        assert result["error"]["type"] == "usage"
        assert words in result["error"]["message"]
    alone = [server.query([("reference_ids", name), TEXT, ("k", "3")])[1] for name in ids[:3]]
    assert [hits(each) for each in reply["results"] if "hits" in each] == [
        [(hit["id"], hit["score"]) for hit in each["hits"]] for each in alone
    ]


def test_a_batch_of_queries_that_are_all_out_of_form_is_answered(server):
    body = json.dumps({"queries": [{"x": 1}]}).encode()
    status, reply = server.json("POST", "/v1/query:batch", body, [("Content-Type", "application/json")])
    assert (status, reply["results"][0]["error"]["type"]) == (200, "usage")


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ([("negative_texts", "red")], 400, "usage", "needs an image or a text"),
        ([("reference_ids", "nowhere"), TEXT], 404, "not_found", "nowhere"),
        ([("reference_ids", "item0001"), TEXT], 404, "not_found", "item0001"),
        ([("reference_ids", "/etc/passwd"), TEXT], 404, "not_found", "/etc/passwd"),
        ([("reference_ids", "shelf00/item0001.png"), ("texts", "zzz qqq")], 422, "text", "none of the words"),
        ([("reference_ids", "shelf00/item0001.png"), ("texts", "red " * 501)], 400, "usage", "texts[0]: Expected"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("k", "0")], 400, "usage", "k: Expected"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("k", "1001")], 400, "usage", "k: Expected"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("k", "1"), ("k", "2")], 400, "usage", "k: given twice"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("min_confidence", "nan")], 400, "usage", "min_confidence"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("tetx", "red")], 400, "usage", "tetx"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("where", "{")], 400, "usage", "where: a JSON object"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("where", "[" * 5000)], 400, "usage", "where"),
        ([("reference_ids", "shelf00/item0001.png"), TEXT, ("where", '{"size": "x"}')], 400, "usage", "no column size"),
        (
            [("reference_ids", "shelf00/item0001.png"), TEXT, ("reference_images", "not a file")],
            400,
            "usage",
            "reference_images: a file",
        ),
        ([("reference_ids", "shelf00/item0001.png")] + [TEXT] * 9, 400, "usage", "texts: Expected"),
    ],
)
def test_a_bad_query_is_refused_in_one_line(server, fields, status, kind, words):
    actual, reply, headers = server.query(fields)
    assert (actual, reply["error"]["type"]) == (status, kind)
    assert words in reply["error"]["message"]
    assert "\n" not in reply["error"]["message"]
    assert str(server.services.galleries["shop"].gallery.path) not in reply["error"]["message"]
    assert reply["error"]["request_id"] == headers["x-request-id"]


def test_every_answer_names_the_words_that_were_not_read(server):
    served = server.services.galleries["shop"]
    name, most = served.gallery.ids[3], served.model.tokenizer.max_words
    long = " ".join(["red"] * (most + 2))
    _, reply, _ = server.query(
        [("reference_ids", name), ("texts", "make it redd"), ("texts", long), ("negative_texts", "blu stripes")]
    )
    first, second, negative = reply["texts"]
    assert [(word["word"], word["nearest"], word["position"]) for word in first["unknown"]] == [("redd", "red", 2)]
    assert second["unread"] == ["red", "red"] and second["words"] == most and not second["unknown"]
    assert negative["negative"] and [word["nearest"] for word in negative["unknown"]] == ["blue"]
    assert reply["notes"][:2] == [
        "unknown word: redd; did you mean red?",
        f"not read, after the first {most} words: red red",
    ]
    assert reply["has_match"] is None and all(
        hit["is_match"] is None and hit["confidence"] is None for hit in reply["hits"]
    )
    queries = [{"reference_ids": [name], "texts": [text]} for text in ("make it redd", "make it red", "redd")]
    body = json.dumps({"queries": queries}).encode()
    _, reply = server.json("POST", "/v1/query:batch", body, [("Content-Type", "application/json")])
    results = reply["results"]
    assert [bool(each["notes"]) for each in results[:2]] == [True, False]
    assert results[2]["error"]["message"].endswith("of 'redd'; did you mean red?")
    info = server.json("GET", "/v1/info")[1]
    assert info["limits"]["text_words"] == info["galleries"][0]["bundle"]["max_words"] == most


def test_what_is_no_image_is_refused(server):
    status, reply, _ = server.query([TEXT], [("reference_images", b"<svg onload=alert(1)>")])
    assert (status, reply["error"]["type"]) == (422, "image")
    status, reply, _ = server.query([TEXT], [("reference_images", image()[:60])])
    assert (status, reply["error"]["type"]) == (422, "image")


def test_info_describes_what_is_served(server):
    import msgspec

    info = msgspec.convert(server.json("GET", "/v1/info")[1], InfoReply)
    assert [(each.name, each.images) for each in info.galleries] == [("shop", 12), ("other", 5)]
    assert info.galleries[0].columns == {"colour": {"red": 6, "blue": 6}}
    assert info.galleries[0].bundle.grid is None or len(info.galleries[0].bundle.grid) == 2
    assert (info.device, info.version, info.writable) == ("cpu", "test", False)
    assert "make it red" in info.suggestions
    assert "drawings" in info.note
    tokenizer = server.services.galleries["shop"].model.tokenizer
    assert all(tokenizer.knows(text) for text in info.suggestions)
    assert not tokenizer.knows("more elegant")
    assert info.galleries[0].edits == info.suggestions
    assert all(tokenizer.knows(text) for each in info.galleries for text in each.descriptions)


def test_descriptions_are_of_what_the_gallery_has():
    shirt, bag, none = ({"color": "blue", "type": "t-shirt"}, {"color": "red", "type": "bag"}, {"type": "mug"})
    metadata = [bag, *2 * [shirt], none, {"color": "red", "type": "mug"}, {}]
    assert [*_descriptions(metadata)] == ["blue t-shirt", "red bag"]
    assert [*_descriptions([none])] == []


def test_words_alone_and_images_alone_are_queries(server):
    served = server.services.galleries["shop"]
    by_words = served.retriever.query(text="in blue", k=3)
    status, reply, _ = server.query([("texts", "in blue"), ("k", "3")])
    assert (status, [hit["id"] for hit in reply["hits"]]) == (200, [hit.id for hit in by_words.hits])
    assert all((hit["is_match"], hit["confidence"], hit["evidence"]) == (None, None, []) for hit in reply["hits"])
    name = served.gallery.ids[0]
    batch = json.dumps({"queries": [{"texts": ["in blue"], "k": 3}, {"reference_ids": [name], "k": 3}, {}]}).encode()
    _, _, body = server("POST", "/v1/query:batch", batch, [("Content-Type", "application/json")])
    words, image, nothing = json.loads(body)["results"]
    assert [hit["id"] for hit in words["hits"]] == [hit.id for hit in by_words.hits]
    assert [hit["id"] for hit in image["hits"]] == [hit.id for hit in served.retriever.query(name, k=3).hits]
    assert nothing["error"]["message"].startswith("a query needs an image or a text")


def test_pages_fields_and_groups_of_hits(server):
    served = server.services.galleries["shop"]
    name = served.gallery.ids[0]
    _, all_hits, _ = server.query([("reference_ids", name), TEXT, ("k", "1000")])
    assert all_hits["total"] == len(all_hits["hits"]) == len(served.gallery) - 1
    _, page, _ = server.query([("reference_ids", name), TEXT, ("k", "4"), ("offset", "3"), ("fields", "Colour")])
    assert [hit["id"] for hit in page["hits"]] == [hit["id"] for hit in all_hits["hits"][3:7]]
    assert all(set(hit["metadata"]) == {"colour"} for hit in page["hits"]) and page["total"] == all_hits["total"]
    _, groups, _ = server.query([("reference_ids", name), TEXT, ("group_by", "colour")])
    colours = [hit["metadata"]["colour"] for hit in groups["hits"]]
    known = server.json("GET", "/v1/info")[1]["galleries"][0]["columns"]["colour"]
    assert groups["total"] == len(colours) == len(known) and set(colours) == set(known)
    _, folded, _ = server.query([("reference_ids", name), TEXT, ("fold_duplicates", "0.5"), ("k", "1000")])
    shown = {name for hit in folded["hits"] for name in (hit["id"], *hit["duplicates"])}
    assert len(folded["hits"]) < len(all_hits["hits"]) and shown == {hit["id"] for hit in all_hits["hits"]}
    _, weighted, _ = server.query([("reference_ids", name), TEXT, ("text_weights", "0.5")])
    assert weighted["hits"][0]["score"] != all_hits["hits"][0]["score"] and weighted["has_match"] is None
    for field, value, words in (
        ("text_weights", "5", "text_weights[0]: Expected a number <= 4"),
        ("fold_duplicates", "0", "fold_duplicates: Expected a number > 0"),
        ("offset", "10001", "offset: Expected a whole number <= 10000"),
        ("fields", "color", "no column color; columns: colour; did you mean colour?"),
        ("group_by", "kind", "no column kind; columns: colour"),
    ):
        status, reply, _ = server.query([("reference_ids", name), TEXT, (field, value)])
        assert status == 400 and words in reply["error"]["message"]


def test_images_are_listed_by_pages_and_conditions(server):
    import msgspec

    _, reply = server.json("GET", "/v1/images?offset=2&limit=3&where=%7B%22colour%22%3A%22red%22%7D")
    listed = msgspec.convert(reply, ListReply)
    assert (listed.total, len(listed.images)) == (6, 3)
    assert {each.metadata["colour"] for each in listed.images} == {"red"}
    assert listed.images[0].id == server.services.galleries["shop"].gallery.ids[4]
    _, reply = server.json("GET", "/v1/images?where=%7B%22colour%22%3A%7B%22%24ne%22%3A%22blu%22%7D%7D&limit=1")
    assert (reply["total"], reply["notes"]) == (12, ["no image has colour=blu; did you mean blue?"])
    assert server.json("GET", "/v1/images?offset=-1")[0] == 400
    assert server.json("GET", "/v1/images?limit=201")[0] == 400
    assert server.json("GET", "/v1/images?offset=999999")[1]["images"] == []


def test_images_are_sent_small_without_metadata_and_once(server, tmp_path):
    served = server.services.galleries["shop"]
    big = Image.new("RGB", (3000, 1500), "green")
    exif = Image.Exif()
    exif[0x010E] = "<script>secret place</script>"
    big.save(tmp_path / "big.jpg", exif=exif)
    target = served.gallery.snapshot.path_of(1)
    before = target.read_bytes()
    target.write_bytes((tmp_path / "big.jpg").read_bytes())
    try:
        for suffix, longest in (("", 1024), ("/thumbnail", 256)):
            status, headers, body = server("GET", f"/v1/images/{served.gallery.ids[1]}{suffix}")
            assert (status, headers["content-type"]) == (200, "image/jpeg")
            shown = Image.open(io.BytesIO(body))
            assert max(shown.size) == longest and shown.size[0] == 2 * shown.size[1]
            assert not shown.getexif() and b"secret" not in body
            known = [("If-None-Match", headers["etag"])]
            again = server("GET", f"/v1/images/{served.gallery.ids[1]}{suffix}", headers=known)
            assert (again[0], again[2]) == (304, b"")
    finally:
        target.write_bytes(before)
    changed = server("GET", f"/v1/images/{served.gallery.ids[1]}/thumbnail", headers=known)
    assert changed[0] == 200
    assert Image.open(io.BytesIO(changed[2])).size == (20, 14)


def test_a_reply_carries_its_safeguards(server):
    for path in ("/v1/info", "/healthz", "/nowhere", "/v1/images/shelf00/item0001.png"):
        _, headers, _ = server("GET", path)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src" in headers["content-security-policy"]
        assert not any(name.startswith("access-control") for name in headers)
        assert "server" not in headers


def test_unknown_routes_and_methods_are_refused(server):
    assert server.json("GET", "/nowhere")[0] == 404
    status, headers, body = server("GET", "/v1/query")
    assert (status, json.loads(body)["error"]["type"]) == (405, "method")
    assert headers["allow"] == "POST"
    assert set(server("PUT", "/v1/images")[1]["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert server("HEAD", "/v1/info")[::2] == (200, b"")


def test_every_reply_is_one_that_the_description_knows(server):
    status, description = server.json("GET", "/openapi.json")
    assert status == 200
    seen = [
        ("POST", "/v1/query", server.query([TEXT])),
        ("POST", "/v1/query", server.query([("reference_ids", "x"), TEXT])),
    ]
    for method, path, (status, _, _) in seen:
        assert str(status) in description["paths"][path][method.lower()]["responses"]
    from nsfse_runtime.server.routes import ROUTES

    described = {(method.upper(), path) for path, methods in description["paths"].items() for method in methods}
    assert described == {(operation.method, operation.public_path) for operation in ROUTES}
    names = [each["operationId"] for methods in description["paths"].values() for each in methods.values()]
    assert len(names) == len(set(names))
    text = json.dumps(description)
    for name in text.split('"#/components/schemas/')[1:]:
        assert name.partition('"')[0] in description["components"]["schemas"]


def test_without_a_token_nothing_is_written(server):
    status, reply, _ = server.query([("id", "new.png")], [("image", image())], path="/v1/images")
    assert (status, reply["error"]["type"]) == (403, "token")
    assert server.json("DELETE", "/v1/images/shelf00/item0001.png")[0] == 403
    assert server.services.galleries["shop"].gallery.snapshot.path_of(1).exists()


def test_metrics_count_what_happened(server):
    server.query([("reference_ids", "nowhere"), TEXT])
    text = server("GET", "/metrics")[2].decode()
    assert 'nsfse_requests_total{route="/v1/query",status="404"}' in text
    assert 'nsfse_images{gallery="shop"} 12.0' in text
    assert "nsfse_batch_size_bucket" in text
    assert 'nsfse_stage_seconds_count{stage="stage2"}' in text
    assert "nsfse_queue_length 0.0" in text
    assert "nowhere" not in text


def test_the_log_has_ids_and_times_and_nothing_private(server):
    given = [("X-Request-Id", "mine-1"), ("Authorization", f"Bearer {TOKEN}")]
    server.query([("reference_ids", "shelf00/item0001.png"), ("texts", "make it red please")], headers=given)
    wait_until(lambda: any(line.get("request_id") == "mine-1" for line in server.lines))
    (line,) = [line for line in server.lines if line.get("request_id") == "mine-1"]
    assert (line["route"], line["status"], line["gallery"]) == ("/v1/query", 200, "shop")
    assert line["stages_ms"]["stage2"] > 0
    text = json.dumps(server.lines)
    assert TOKEN not in text and "please" not in text and "item0001" not in text
