"""CIRCO, GeneCIS, LaSCo and PinPoint, on toy copies in the official form."""

import json

import numpy as np
import pytest
from PIL import Image

from nsfse.data.datasets.circo import CIRCO
from nsfse.data.datasets.genecis import GeneCIS, cut_out
from nsfse.data.datasets.lasco import LaSCo
from nsfse.data.datasets.pinpoint import PinPoint
from nsfse_runtime.errors import DataError, NotFoundError


def draw(path, size=(9, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


@pytest.fixture
def circo(tmp_path):
    """A query of the official val.json, among four of COCO's images."""
    query = {
        "reference_img_id": 271520,
        "target_img_id": 355099,
        "relative_caption": "shows two people and has a more colorful background",
        "shared_concept": "a girl with a traditional Chinese umbrella",
        "gt_img_ids": [355099, 528417, 534704],
        "id": 0,
        "semantic_aspects": ["cardinality"],
    }
    hidden = {key: query[key] for key in ("reference_img_id", "relative_caption", "shared_concept", "id")}
    write(tmp_path / "annotations/val.json", [query])
    write(tmp_path / "annotations/test.json", [hidden])
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (271520, 355099, 528417, 534704)]
    write(tmp_path / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": images})
    for image in images[:3]:
        draw(tmp_path / "COCO2017_unlabeled/unlabeled2017" / image["file_name"])
    return tmp_path


def test_circo_counts_every_right_answer_and_keeps_the_reference(circo):
    source = CIRCO(circo)
    (protocol,) = source.protocols("val")
    (query,) = protocol.queries
    assert query.targets == ("000000355099", "000000528417", "000000534704") and query.pairid == "0"
    assert protocol.gallery == ("000000271520", "000000355099", "000000528417") and protocol.missing == 1
    assert protocol.map_ks == (5, 10, 25, 50) and protocol.first_target_only and not protocol.remove_reference
    assert source.protocols("test")[0].queries[0].targets == () and query.aspects == ("cardinality",)
    assert source.load("000000355099", (8, 8)).shape == (8, 8, 3)
    assert source.check().differing["val.queries"] == (1, 220)


def test_circo_names_what_is_not_in_its_form(circo):
    annotations = circo / "annotations/val.json"
    query = json.loads(annotations.read_text())[0]
    write(annotations, [query, query])
    with pytest.raises(DataError, match="two queries have the same id"):
        CIRCO(circo)
    write(annotations, [{"id": 3}])
    with pytest.raises(DataError, match=r"val\.json: query 0 \(id 3\).*reference_img_id"):
        CIRCO(circo)
    annotations.unlink()
    (circo / "annotations/test.json").unlink()
    with pytest.raises(NotFoundError, match=r"no val\.json or test\.json"):
        CIRCO(circo)


def test_genecis_has_a_gallery_for_each_query_and_leaves_odd_ones_out(tmp_path):
    images = [{"val_image_id": number} for number in range(1, 6)]
    query = {"reference": images[0], "target": images[1], "gallery": images[2:4], "condition": "dog"}
    other = query | {"gallery": images[2:5]}
    write(tmp_path / "focus_object.json", [query, query | {"condition": "cat"}, other])
    for number in range(1, 6):
        draw(tmp_path / f"val2017/{number:012d}.jpg")
    (protocol,) = GeneCIS(tmp_path).protocols("test")
    assert [q.texts for q in protocol.queries] == [("dog",), ("cat",)]
    assert protocol.queries[0].subset == ("000000000003", "000000000004", "000000000002")
    assert protocol.queries[0].targets == ("000000000002",) and protocol.ks == ()


def test_genecis_attributes_are_cut_out_widened_and_squared(tmp_path):
    pixels = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    cut = cut_out(pixels, "20,10,10,10")
    # left 13, top 3, right 13 + 17, bottom 3 + 17
    np.testing.assert_array_equal(cut, pixels[3:20, 13:30])
    wide = cut_out(pixels, "30,30,30,10")  # left 9, top 23, right 60, bottom 40: 17 rows of 51 columns
    assert wide.shape == (51, 51, 3) and not wide[:17].any() and not wide[34:].any()
    np.testing.assert_array_equal(wide[17:34], pixels[23:40, 9:60])
    box = {"image_id": 7, "instance_bbox": [2, 3, 4, 4]}
    query = {"reference": box, "target": box | {"instance_bbox": [0, 0, 4, 4]}, "gallery": [], "condition": "red"}
    write(tmp_path / "change_attribute.json", [query])
    draw(tmp_path / "VG/7.jpg")
    source = GeneCIS(tmp_path)
    assert source.protocols("change_attribute")[0].gallery == ("7#0,0,4,4",)
    assert source.load("7#2,3,4,4", (8, 8)).shape == (8, 8, 3) and not source.missing


def test_lasco_has_its_corpus_as_gallery_and_can_be_trained_on(tmp_path):
    paths = [f"val2014/COCO_val2014_{number:012d}.jpg" for number in (28714, 277005, 42)]
    triplet = {"qid": 28714000, "query-image": [28714, paths[0]], "query-text": "The person is riding the bike"}
    triplet |= {"target-image": [277005, paths[1]]}
    write(tmp_path / "lasco_val.json", [triplet])
    write(tmp_path / "lasco_train.json", [triplet])
    write(tmp_path / "lasco_val_corpus.json", [{"id": 1, "path": f"val/{path}"} for path in paths])
    for path in paths:
        draw(tmp_path / path)
    source = LaSCo(tmp_path)
    (protocol,) = source.protocols("val")
    assert len(protocol.gallery) == 3 and protocol.queries[0].targets == ("COCO_val2014_000000277005",)
    assert [(t.reference, t.text) for t in source.triplets(0)] == [
        ("COCO_val2014_000000028714", "The person is riding the bike")
    ]
    assert source.protocols("train") == []


def test_pinpoint_has_two_images_negatives_and_phrasings(tmp_path):
    row = {"query_image_signature": "a1", "query_image_signature2": "b2", "instruction": "in red"}
    row |= {"query_id": 1, "positive_candidates": ["c3", "d4"], "negative_candidates": ["e5"], "token_count": 2}
    rows = [row, row | {"query_id": 2, "instruction": "red one"}, row | {"query_id": 3, "query_image_signature2": None}]
    write(tmp_path / "pinpoint.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "index_signatures.txt", "a1\nc3\nd4\ne5\n")
    for name in ("a1", "b2", "c3", "d4", "e5"):
        draw(tmp_path / f"images/{name}.jpg")
    (protocol,) = PinPoint(tmp_path).protocols("test")
    first, second, third = protocol.queries
    assert (first.references, first.hard_negatives) == (("a1", "b2"), ("e5",))
    assert first.edit == second.edit != third.edit and third.references == ("a1",)
    assert protocol.gallery == ("a1", "c3", "d4", "e5") and not protocol.missing


def test_a_parquet_table_needs_pyarrow(tmp_path):
    from importlib.util import find_spec

    from nsfse_runtime.errors import MissingExtraError

    write(tmp_path / "index_signatures.txt", "a1\n")
    write(tmp_path / "pinpoint_metadata.parquet", "PAR1")
    with pytest.raises((DataError if find_spec("pyarrow") else MissingExtraError), match="parquet"):
        PinPoint(tmp_path)
