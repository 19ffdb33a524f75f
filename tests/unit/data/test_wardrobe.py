"""The annotations of wardrobe-1 as they ship, and a query set made of them and of a few drawn photos."""

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsfse.cli.app import main
from nsfse.data import calibration_split
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.datasets.wardrobe import COUNTS, WardrobeOptions, WardrobeSource
from nsfse.data.prepare import prepare_wardrobe
from nsfse.data.registry import open_source
from nsfse.data.wardrobe import ANNOTATIONS, VERSION, annotations
from nsfse_runtime.errors import NotFoundError, OutputError, UsageError

ITEMS = {row["id"]: row for row in csv.DictReader(io.StringIO(annotations("items.csv").decode()))}
QUERIES = [json.loads(line) for line in annotations("queries.jsonl").decode().splitlines()]
SHOWN = [(split, f"wardrobe-{kind}") for split in ("val", "test") for kind in ("attribute", "caption")]
TEXTS = [json.loads(line) for line in annotations("train-captions.jsonl").decode().splitlines()]


def test_the_annotations_are_of_the_official_size():
    assert Counter(row["split"] for row in ITEMS.values()) == {"train": 3391, "val": 607, "test": 700}
    assert Counter((q["split"], q["protocol"]) for q in QUERIES) == {
        ("val", "wardrobe-attribute"): 492,
        ("test", "wardrobe-attribute"): 487,
        ("val", "wardrobe-caption"): 300,
        ("test", "wardrobe-caption"): 300,
    }
    assert Counter((q["split"], q["kind"]) for q in QUERIES if "kind" in q) == {
        **{(split, "colour"): 225 for split in ("val", "test")},
        **{(split, "category"): 125 for split in ("val", "test")},
        **{(split, "print"): 100 for split in ("val", "test")},
        **{("val", "sleeve"): 42, ("test", "sleeve"): 37},
    }
    assert Counter(text["voice"] for text in TEXTS) == {
        "a": 300,
        **dict.fromkeys(("b", "c", "plain", "fashion", "fashioniq", "chatty", "simple"), 600),
    }
    boxes = list(csv.DictReader(io.StringIO(annotations("boxes.csv").decode())))
    assert len(boxes) == 200 and all(ITEMS[box["id"]]["split"] == box["split"] != "train" for box in boxes)
    assert b"CC0 1.0 Universal" in annotations("LICENSE")


def test_nothing_of_one_split_is_in_another():
    splits = defaultdict(set)
    for row in ITEMS.values():
        splits[row["sender"]].add(row["split"])
    assert len(splits) == 240 and all(len(found) == 1 for found in splits.values())
    for entry in (*QUERIES, *TEXTS):
        named = (entry["reference"], *entry["targets"], *entry.get("hard_negatives", ()))
        assert {ITEMS[item]["split"] for item in named} == {entry["split"]}


def test_an_edit_changes_its_attribute_alone_and_no_answer_is_a_hard_negative():
    for query in (query for query in QUERIES if "kind" in query):
        kept = {"category", "colour", "print", "sleeve"} - {query["kind"]}
        reference = ITEMS[query["reference"]]
        assert len(query["texts"]) == 6 and not {*query["targets"]} & {*query["hard_negatives"]}
        for target in query["targets"]:
            assert all(ITEMS[target][column] == reference[column] for column in kept)
            assert ITEMS[target][query["kind"]] != reference[query["kind"]]


def photo(file: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 40 + 1, size[0] // 40 + 1, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size)
    image.save(file, "JPEG", quality=95)
    return np.asarray(image)


@pytest.fixture
def clone(tmp_path):
    """Photos of the first queries and texts, in all shapes; one is damaged, one is the page of a dead link."""
    first = [next(q for q in QUERIES if q["split"] == s and q["protocol"] == p) for s, p in SHOWN] + TEXTS[:3]
    ids = list(dict.fromkeys(item for entry in first for item in (entry["reference"], *entry["targets"])))
    images = tmp_path / "clone" / "images"
    images.mkdir(parents=True)
    shapes = ((400, 533), (533, 400), (400, 711), (642, 400), (120, 90))
    for number, item in enumerate(ids):
        photo(images / f"{item}.jpg", shapes[number % len(shapes)], number)
    (images / "unknown.jpg").write_bytes((images / f"{ids[0]}.jpg").read_bytes())
    damaged, page = [item for item in ITEMS if item not in ids][:2]
    (images / f"{damaged}.jpg").write_bytes((images / f"{ids[0]}.jpg").read_bytes()[:900])
    (images / f"{page}.jpg").write_bytes(b"<html>gone</html>")
    return tmp_path / "clone", ids, (damaged, page)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_clone_becomes_a_query_set_that_is_the_same_when_made_again(clone, tmp_path):
    folder, ids, broken = clone
    out = tmp_path / "made" / "wardrobe"
    steps = []
    made = prepare_wardrobe(folder, out, lambda *step: steps.append(step))
    assert made.images == len(ids) and {item for item, _ in made.broken} == {*broken}
    assert "damaged" in dict(made.broken)[broken[0]] and "not an image" in dict(made.broken)[broken[1]]
    assert len(made.missing) == len(ITEMS) - len(ids) - 2 and steps[-1] == ("photos", len(ids) + 1, len(ids) + 1)
    assert {path.stem for path in (out / "images").iterdir()} == {*ids}
    assert all((out / name).read_bytes() == annotations(name) for name in ANNOTATIONS)
    sizes = [Image.open(out / "images" / f"{item}.jpg").size for item in ids[:5]]
    assert sizes == [(240, 320), (320, 240), (180, 320), (320, 199), (120, 90)]
    small = f"{ids[4]}.jpg"
    assert (out / "images" / small).read_bytes() == (folder / "images" / small).read_bytes(), "not encoded again"
    before = digests(out)
    assert prepare_wardrobe(folder / "images", out).images == len(ids) and digests(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["wardrobe"], "nothing is left beside it"


def test_nothing_of_others_is_overwritten_and_nothing_is_half_written(clone, tmp_path):
    folder, _, _ = clone
    photos = digests(folder)
    for photos_at, out in ((folder, folder), (folder / "images", folder), (folder, folder / "made")):
        with pytest.raises(UsageError, match="within each other"):
            prepare_wardrobe(photos_at, out)
    with pytest.raises(NotFoundError, match="no such folder"):
        prepare_wardrobe(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="none of the 4698 photos is under"):
        prepare_wardrobe(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists() and digests(folder) == photos
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    photo(other / "images" / "mine.jpg", (40, 30))
    with pytest.raises(OutputError, match=r"holds other files, such as mine\.jpg"):
        prepare_wardrobe(folder, other)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        prepare_wardrobe(folder, tmp_path / "file")


@pytest.fixture
def made(clone, tmp_path):
    prepare_wardrobe(clone[0], tmp_path / "wardrobe")
    return tmp_path / "wardrobe"


def test_the_set_trains_and_is_scored_by_its_name(made):
    source = open_source("wardrobe", made, triplets=10, text_ratio=1)
    assert isinstance(source, WardrobeSource)
    assert {triplet.text for triplet in source.triplets(0)} == {text["texts"][0] for text in TEXTS[:3]}
    reference = TEXTS[0]["reference"]
    assert source.titles[reference] == ITEMS[reference]["caption"]
    edited, described = ("category", "colour", "print", "sleeve"), ("colour2", "neck", "closure", "length", "kids")
    assert source.attributes(reference) == {column: ITEMS[reference][column] for column in (*edited, *described)}
    assert source.columns == edited
    protocols = {protocol.name: protocol for protocol in source.protocols("val")}
    assert {name: (len(p.queries), p.version) for name, p in protocols.items()} == {
        "wardrobe-attribute": (492, VERSION),
        "wardrobe-caption": (300, VERSION),
    }


def test_what_is_fitted_after_training_is_fitted_to_validation_queries(made):
    held = calibration_split(open_source("wardrobe", made))
    assert held and len(held.queries) == 792 and held.remove_reference
    assert {ITEMS[item]["split"] for item in held.gallery} == {"val"}
    assert {query.kind for query in held.queries} == {"colour", "category", "print", "sleeve", ""}


def test_check_compares_with_what_ships(made):
    report = WardrobeSource(made, WardrobeOptions(text_ratio=0)).check()
    assert report.counts["val.queries.wardrobe-attribute"] == COUNTS["val.queries.wardrobe-attribute"]
    assert report.expected == COUNTS and not report.faults
    assert {"train.found", "val.found", "test.found"} == {*report.differing}
    file = made / "train-captions.jsonl"
    file.write_bytes(file.read_bytes()[:-1] + b" \n")
    (fault,) = WardrobeSource(made, WardrobeOptions(text_ratio=0)).check().faults
    assert "is not that of wardrobe-1" in str(fault) and fault.entries == ("train-captions.jsonl",)


def test_images_with_the_colour_on_their_background_alone_and_old_values_are_known(made):
    (attribute,) = (p for p in QuerySetSource(made).protocols("val") if p.name == "wardrobe-attribute")
    for query in attribute.queries:
        if query.kind != "colour":
            assert query.background_only is None
            continue
        colour = ITEMS[query.targets[0]]["colour"]
        found = {row["id"] for row in ITEMS.values() if row["split"] == "val" and row["background"] == colour}
        assert {*query.background_only} == {i for i in found if colour not in (ITEMS[i]["colour"], ITEMS[i]["colour2"])}
    plain = [query for query in attribute.queries if query.old_value_named]
    assert plain and all(query.kind == "print" and "make it plain" in query.texts for query in plain)
    assert {query.texts[at] for query in plain for at in query.old_value_named} == {
        "in one colour, no print",
        "one without any print",
    }


def test_the_command_names_what_was_left_out(clone, tmp_path, capsys):
    out = str(tmp_path / "wardrobe")
    with pytest.raises(SystemExit) as ended:
        main(["data", "prepare", "wardrobe", str(clone[0]), out])
    first, left_out, following = capsys.readouterr().out.splitlines()
    assert not ended.value.code and first == f"{len(clone[1])} images are in {out}"
    assert left_out.startswith(f"photos left out: {len(ITEMS) - len(clone[1]) - 2} missing: ")
    assert "; 2 broken: " in left_out and f"{clone[2][1]} (" in left_out
    assert following == f"next: nsfse train --preset wardrobe --data {out} -o RUN"
    with pytest.raises(SystemExit) as ended:
        main(["data", "prepare", "wardrobe", str(clone[0]), out, "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["dataset"] == "wardrobe" and len(made["broken"]) == 2 and made["unread"] == []
