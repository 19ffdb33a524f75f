import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsfse.data import EvalQuery
from nsfse.data.datasets.query_set import QuerySetOptions, QuerySetSource, write_query_set
from nsfse_runtime.errors import DataError, NotFoundError, OutputError

ITEMS = "id,split,colour\na,val,red\nb,val,blue\nc,val,red\nd,train,red\n"
QUERY = {"protocol": "p", "split": "val", "reference": "a", "texts": ["make it blue", "in blue"], "targets": ["b"]}


def write(folder: Path, *queries: dict | str, items: str = ITEMS) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "items.csv").write_text(items, encoding="utf-8")
    lines = [query if isinstance(query, str) else json.dumps(query) for query in queries]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for stem, suffix in (("a", "jpg"), ("b", "png"), ("c", "webp"), ("d", "PNG")):
        Image.new("RGB", (9, 5), "red").save(folder / "images" / f"{stem}.{suffix}")
    return folder


def test_the_gallery_is_the_split_of_the_query_or_all(tmp_path):
    free = {name: value for name, value in QUERY.items() if name != "split"} | {"protocol": "all"}
    source = QuerySetSource(write(tmp_path, QUERY, free, QUERY | {"hard_negatives": ["c"], "kind": "single"}))
    (val,) = source.protocols("val")
    assert (val.name, val.gallery, len(val.queries), val.remove_reference) == ("p", ("a", "b", "c"), 2, True)
    assert val.queries[1] == EvalQuery("a", ("make it blue", "in blue"), ("b",), ("c",), "single")
    (whole,) = source.protocols("test")
    assert (whole.name, whole.gallery) == ("all", ("a", "b", "c", "d"))
    assert source.splits == ("val", "test") and source.protocols("train") == []
    assert source.check().ok and source.check().counts["val.queries.p"] == 2


def test_a_version_names_the_queries(tmp_path):
    before = QuerySetSource(write(tmp_path, QUERY)).protocols("val")[0].version
    after = QuerySetSource(write(tmp_path, QUERY | {"targets": ["c"]})).protocols("val")[0].version
    assert before != after


def test_images_of_any_suffix_fit_the_size_asked(tmp_path):
    source = QuerySetSource(write(tmp_path, QUERY))
    assert set(source.images) == {"a", "b", "c", "d"}
    assert source.load("c", (12, 8)).shape == (12, 8, 3)
    with pytest.raises(NotFoundError, match="'x'"):
        source.load("x", (12, 8))


def test_a_missing_image_stamps_the_protocol(tmp_path):
    folder = write(tmp_path, QUERY)
    (folder / "images" / "c.webp").unlink()
    source = QuerySetSource(folder)
    (protocol,) = source.protocols("val")
    assert (protocol.gallery, protocol.missing, protocol.missing_ids) == (("a", "b"), 1, ("c",))
    assert not source.check().ok


def test_files_named_in_the_table(tmp_path):
    folder = write(tmp_path, QUERY, items=ITEMS.replace("id,", "file,id,").replace("\na,", "\nimages/d.PNG,a,"))
    rows = (folder / "items.csv").read_text().replace("\nb,", "\n,b,").replace("\nc,", "\n,c,").replace("\nd,", "\n,d,")
    (folder / "items.csv").write_text(rows)
    source = QuerySetSource(folder)
    assert source.images["a"].name == "d.PNG" and source.images["b"].name == "b.png"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("{nonsense", r"queries.jsonl:2 is not JSON"),
        ("[1]", r"queries.jsonl:2 is not a JSON object"),
        (QUERY | {"reference": "x"}, r"queries.jsonl:2 names 'x'"),
        (QUERY | {"targets": ["d"]}, r"queries.jsonl:2 has the target 'd', which is not of its split"),
        (QUERY | {"targets": []}, r"queries.jsonl:2 has no targets"),
        (QUERY | {"targets": ["a"]}, r"queries.jsonl:2 has its reference as the only target"),
        (QUERY | {"texts": [" "]}, r"queries.jsonl:2 has no texts"),
        (QUERY | {"texts": "red"}, r"queries.jsonl:2 has no texts"),
        (QUERY | {"protocol": None}, r"queries.jsonl:2 has no protocol"),
        (QUERY | {"split": 3}, r"queries.jsonl:2 has no split"),
        (QUERY | {"hard_negatives": ["?"]}, r"queries.jsonl:2 names '\?'"),
        ({k: v for k, v in QUERY.items() if k != "reference"}, r"queries.jsonl:2 has no reference"),
        (
            QUERY | {"reference": None, "more_references": ["c"]},
            r"queries.jsonl:2 has more_references and no reference",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path, query, said):
    with pytest.raises(DataError, match=said) as caught:
        QuerySetSource(write(tmp_path, QUERY, query))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("name\na\n", r"items.csv:1 has no column id"),
        ("", r"items.csv:1 has no column id"),
        ("id,id\na,a\n", r"items.csv:1 names a column twice"),
        ("id\na\na\n", r"items.csv:3 repeats the id 'a'"),
        ("id,colour\na,red\n,red\n", r"items.csv:3 has no id"),
        ("id,colour\na\n", r"items.csv:2 does not have 2 columns"),
        ("id,colour\na,red,blue\n", r"items.csv:2 does not have 2 columns"),
        ("id\n", r"items.csv has no rows"),
        ("id,file\na,../secret.png\n", r"items.csv:2 names the file .* outside"),
        ("id,file\na,/etc/passwd\n", r"items.csv:2 names the file .* outside"),
        ('id\n"a\n', r"items.csv:\d is not a CSV row"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, items, said):
    with pytest.raises(DataError, match=said) as caught:
        QuerySetSource(write(tmp_path, QUERY, items=items))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(NotFoundError):
            QuerySetSource(folder)
    write(tmp_path, QUERY)
    (tmp_path / "items.csv").write_bytes(b"id,colour\na,\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        QuerySetSource(tmp_path)


def test_exclusions_under_their_former_names_are_read(tmp_path):
    old = {"minus_texts": ["stripes"], "minus": ["c"]}
    new = {"negative_texts": ["stripes"], "negative_images": ["c"]}
    read = [QuerySetSource(write(tmp_path, QUERY | keys)).protocols("val")[0].queries for keys in (old, new)]
    assert read[0] == read[1] and read[0][0].negative_texts == ("stripes",) and read[0][0].negative_images == ("c",)


def test_what_is_written_is_read_back(tmp_path):
    items = {item: {"split": "val", "colour": 'naïve, "red"'} for item in ("a", "b")} | {"c": {"size": "7"}}
    query = EvalQuery("a", ("größer, bitte",), ("b",), ("a",), "single")
    write_query_set(tmp_path / "set", items, [("p", "val", query), ("q", "", EvalQuery("a", ("x",), ("c",)))])
    (tmp_path / "set" / "images").mkdir()
    for item in items:
        Image.fromarray(np.zeros((3, 7, 3), np.uint8)).save(tmp_path / "set" / "images" / f"{item}.png")
    source = QuerySetSource(tmp_path / "set")
    assert source.protocols("val")[0].queries == (query,)
    assert source.protocols("test")[0].gallery == ("a", "b", "c")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_query_set(tmp_path / "file" / "set", items, [])


def test_words_alone_have_no_reference(tmp_path):
    alone = EvalQuery("", ("red dress",), ("a", "c"))
    write_query_set(write(tmp_path, QUERY), {"a": {"split": "val"}, "c": {"split": "val"}}, [("w", "val", alone)])
    assert '"reference": null' in (tmp_path / "queries.jsonl").read_text(encoding="utf-8")
    (read,) = QuerySetSource(tmp_path).protocols("val")[0].queries
    assert read == alone and read.reference_ids == read.references == () and not read.is_simple


def test_train_queries_are_triplets_of_one_text(tmp_path):
    train = QUERY | {"split": "train", "reference": "d", "targets": ["e"]}
    folder = write(tmp_path, train, QUERY, items=ITEMS + "e,train,blue\n")
    assert QuerySetSource(folder).triplets(0) == []  # e has no image
    Image.new("RGB", (4, 9)).save(folder / "images" / "e.bmp")
    (triplet,) = QuerySetSource(folder).triplets(0)
    assert (triplet.reference, triplet.targets) == ("d", ("e",)) and triplet.text in QUERY["texts"]


GROUPED = "id,split,group\n" + "".join(f"{at},val,{'' if at % 7 == 0 else at // 3}\n" for at in range(60))


def grouped(tmp_path, **columns):
    """Return a set of 60 items, three to a product but for some without one, and queries all around."""
    queries = [
        QUERY
        | {
            "reference": str(at),
            "targets": [str((at + 1) % 60), str((at + 30) % 60)],
            "hard_negatives": [str((at + 2) % 60)],
        }
        for at in range(60)
    ]
    folder = write(tmp_path, *queries, items=GROUPED)
    for at in range(60):
        (folder / "images" / f"{at}.png").write_bytes(b"\x89PNG\r\n\x1a\n, the rest is not read here")
    return QuerySetSource(folder, QuerySetOptions(**columns))


def test_a_split_has_two_halves_that_share_no_product(tmp_path):
    source = grouped(tmp_path)
    (whole,), (choose,), (report,) = (source.protocols(split) for split in ("val", "val-choose", "val-report"))
    assert (choose.name, report.name) == ("p-choose", "p-report")
    assert sorted(choose.gallery + report.gallery) == sorted(whole.gallery) == sorted(source.items("val"))
    assert source.items("val-report") == report.gallery and 15 < len(report.gallery) < 45

    def products(protocol):
        used = {item for q in protocol.queries for item in (*q.reference_ids, *q.targets, *q.hard_negatives)}
        assert used <= set(protocol.gallery) and protocol.queries
        return {item if int(item) % 7 == 0 else f"product {int(item) // 3}" for item in protocol.gallery}

    assert not products(choose) & products(report)
    for at, query in enumerate(whole.queries):
        (home,) = [half for half in (choose, report) if query.reference in half.gallery]
        targets = tuple(item for item in query.targets if item in home.gallery)
        kept = [one.targets for one in home.queries if one.reference == str(at)]
        assert kept == ([targets] if targets else [])
    assert source.splits == ("val",)  # who names no split is scored on the whole one


def test_halves_are_the_same_everywhere_and_of_the_named_column(tmp_path):
    source = grouped(tmp_path)
    assert source.items("val-choose")[:6] == ("6", "8", "9", "10", "11", "24")
    with pytest.raises(DataError, match=r"no column 'brand' to halve the split 'val' by"):
        grouped(tmp_path, group="brand").protocols("val-choose")
    assert source.protocols("test-choose") == source.protocols("val-other") == []


def test_a_missing_image_is_missing_in_its_half_alone(tmp_path):
    source = grouped(tmp_path)
    (folder,) = {path.parent for path in source.images.values()}
    gone = source.items("val-choose")[0]
    (folder / f"{gone}.png").unlink()
    halves = [QuerySetSource(tmp_path).protocols(f"val-{half}")[0] for half in ("choose", "report")]
    assert [half.missing_ids for half in halves] == [(gone,), ()] and gone not in halves[0].gallery
