"""The readers of public data sets, on toy copies in the official form and in the layouts seen in the wild."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from nsfse.data.check import report_json, report_lines
from nsfse.data.datasets.cirr import CIRR
from nsfse.data.datasets.fashion200k import Fashion200K, clean_caption, modification
from nsfse.data.datasets.fashioniq import FashionIQ, FashionIQOptions
from nsfse.data.datasets.shoes import Shoes
from nsfse.data.datasets.table import Table
from nsfse_runtime.errors import DataError, NotFoundError, UsageError

ANNOTATIONS = Path(os.environ.get("NSFSE_ANNOTATIONS", Path(__file__).parents[4] / "shared/data/annotations"))
official = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the official annotations are not here")


def draw(path, colour=(200, 30, 30), size=(9, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def fashioniq(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"image_splits/split.dress.{split}.json", ["A", "B", "C", "D", "E"])
        pairs = [
            {"candidate": "A", "target": "B", "captions": ["is red ", "has no sleeves"]},
            {"candidate": "C", "target": "D", "captions": ["", "is longer"]},
        ]
        write(tmp_path / f"captions/cap.dress.{split}.json", pairs)
    return tmp_path


@pytest.fixture
def cirr(tmp_path):
    names = [f"dev-{i}-0-img0" for i in range(8)]
    write(tmp_path / "cirr/image_splits/split.rc2.val.json", {name: f"./dev/{name}.png" for name in names})
    pair = {
        "pairid": 12,
        "reference": names[0],
        "target_hard": names[1],
        "target_soft": {names[1]: 1.0, names[2]: 0.5, names[3]: -1.0},
        "caption": "show two dogs",
        "img_set": {"id": 3, "members": names[:6], "reference_rank": 0, "target_rank": 1},
    }
    write(tmp_path / "cirr/captions/cap.rc2.val.json", [pair])
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["images/{}.jpg", "images/dress/{}.png", "dress/{}.jpeg", "image_data/dress_{}.jpg", "{}.JPG", "a/b/{}.webp"],
)
def test_fashioniq_finds_images_in_every_layout(fashioniq, name):
    for item in "ABCDE":
        draw(fashioniq / name.format(item))
    source = FashionIQ(fashioniq)
    assert source.missing == ()
    assert source.load("B", (8, 6)).shape == (8, 6, 3)


def test_fashioniq_protocols_are_two_galleries_with_the_reference_removed_or_kept(fashioniq):
    for item in "ABCDE":
        draw(fashioniq / f"images/{item}.jpg")
    protocols = {p.name: p for p in FashionIQ(fashioniq).protocols("val")}
    assert set(protocols) == {f"fashioniq-{g}{keep}-dress" for g in ("original", "VAL") for keep in ("", "-keepref")}
    assert protocols["fashioniq-original-dress"].gallery == tuple("ABCDE")
    assert protocols["fashioniq-VAL-dress"].gallery == tuple("ABCD")
    assert protocols["fashioniq-VAL-dress"].remove_reference
    assert not protocols["fashioniq-VAL-keepref-dress"].remove_reference
    first, second = protocols["fashioniq-VAL-dress"].queries
    assert (first.reference, first.texts, first.targets) == ("A", ("is red and has no sleeves",), ("B",))
    assert second.texts == ("is longer",)  # an empty caption leaves no stray "and"


def test_fashioniq_both_orders_are_two_phrasings(fashioniq):
    query = FashionIQ(fashioniq, FashionIQOptions(join="both orders")).protocols("val")[0].queries[0]
    assert query.texts == ("is red and has no sleeves", "has no sleeves and is red")
    with pytest.raises(UsageError, match="join"):
        FashionIQ(fashioniq, FashionIQOptions(join="c2 or c1"))


def test_fashioniq_training_tells_a_quarter_each_way_and_afresh_each_epoch(fashioniq):
    pairs = [{"candidate": "A", "target": "B", "captions": ["one", "two"]}] * 4000
    write(fashioniq / "captions/cap.dress.train.json", pairs)
    for item in "AB":
        draw(fashioniq / f"{item}.jpg")
    source = FashionIQ(fashioniq)
    texts = Counter(triplet.text for triplet in source.triplets(0))
    assert set(texts) == {"one and two", "two and one", "one", "two"}
    assert all(abs(count - 1000) < 120 for count in texts.values())
    assert source.triplets(0) == FashionIQ(fashioniq).triplets(0) != source.triplets(1)


def test_incomplete_images_are_stamped_and_their_training_pairs_left_out(fashioniq):
    for item in "ABC":
        draw(fashioniq / f"images/{item}.jpg")
    (fashioniq / "images/D.jpg").touch()  # 0 bytes: as missing as E
    source = FashionIQ(fashioniq)
    assert source.missing == ("D", "E")
    assert [(t.reference, t.targets) for t in source.triplets(0)] == [("A", ("B",))]
    protocol = source.protocols("val")[0]
    assert (protocol.gallery, protocol.missing, protocol.missing_ids) == (tuple("ABC"), 2, ("D", "E"))
    assert len(protocol.queries) == 2
    with pytest.raises(NotFoundError, match="data check"):
        source.load("D", (8, 6))


def test_check_lists_missing_zero_byte_and_broken(fashioniq):
    draw(fashioniq / "images/A.jpg")
    (fashioniq / "images/B.jpg").touch()
    (fashioniq / "images/C.jpg").write_bytes(b"not an image")
    report = report_json(FashionIQ(fashioniq).check())
    assert not report["ok"]
    assert report["missing"] == ["B", "C", "D", "E"]
    assert [Path(file).name for file in report["zero_byte"]] == ["B.jpg"]
    assert [Path(fault["file"]).name for fault in report["broken"]] == ["C.jpg"]
    assert report["counts"]["dress.val.found"] == {"found": 1, "expected": 5}
    assert report["counts"]["dress.val.queries"] == {"found": 2, "expected": 2017}
    json.dumps(report)
    with pytest.raises(NotFoundError):
        FashionIQ(fashioniq).load("C", (8, 6))


def test_a_good_file_wins_over_an_empty_one_of_the_same_name(fashioniq):
    (fashioniq / "images").mkdir()
    (fashioniq / "images/A.jpg").touch()
    draw(fashioniq / "images/dress/A.png")
    assert FashionIQ(fashioniq).load("A", (8, 6)).shape == (8, 6, 3)


def test_images_may_lie_elsewhere_and_behind_links(fashioniq, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("images")
    draw(elsewhere / "A.jpg")
    (elsewhere / "again").symlink_to(elsewhere)  # a loop must end
    assert "A" in FashionIQ(fashioniq, FashionIQOptions(images=elsewhere)).images
    (fashioniq / "images").symlink_to(elsewhere)
    assert "A" in FashionIQ(fashioniq).images


@pytest.mark.parametrize("layout", ["dev/{}.png", "dev/34/{}.png", "img_raw/dev/{}.jpg", "{}.png"])
def test_cirr_finds_images_in_every_layout(cirr, layout):
    for i in range(8):
        draw(cirr / layout.format(f"dev-{i}-0-img0"))
    source = CIRR(cirr)
    assert source.missing == ()
    assert len(source.items("val")) == 8


def test_cirr_query_has_hard_soft_and_five_candidates(cirr):
    for i in range(8):
        draw(cirr / f"dev/dev-{i}-0-img0.png")
    (protocol,) = CIRR(cirr).protocols("val")
    (query,) = protocol.queries
    assert (protocol.name, protocol.version, protocol.ks) == ("cirr-val", "rc2", (1, 5, 10, 50))
    assert query.targets == ("dev-1-0-img0",)
    assert len(query.subset) == 5 and query.reference not in query.subset
    assert dict(query.soft)["dev-3-0-img0"] == -1.0
    assert query.pairid == "12"


def test_cirr_without_train_captions_scores_but_does_not_train(cirr):
    source = CIRR(cirr)
    assert source.protocols("train") == []
    with pytest.raises(NotFoundError, match=r"cap\.rc2\.train\.json"):
        source.triplets(0)
    report = source.check()
    assert any("cap.rc2.train.json" in note for note in report.notes)
    assert any(line.startswith("train.queries") and line.endswith("absent") for line in report_lines(report))


def test_a_damaged_annotation_file_is_one_line_that_names_it(cirr):
    write(cirr / "cirr/captions/cap.rc2.val.json", '[{"pairid": 12')
    with pytest.raises(DataError, match=r"cap\.rc2\.val\.json is not a JSON file"):
        CIRR(cirr)
    with pytest.raises(NotFoundError, match="no such folder"):
        CIRR(cirr / "nowhere")


@pytest.fixture
def fashion200k(tmp_path):
    lines = {
        "train": [("a1", "red silk dress"), ("a2", "blue silk dress"), ("a3", "blue silk dress"), ("a4", "wool hat")],
        "test": [("b1", "red dress"), ("b2", "blue dress"), ("b3", "blue dress"), ("b4", "green dress")],
    }
    for split, rows in lines.items():
        text = "".join(f"women/dresses/x/{i}/{i}_0.jpeg\t0.9\t{caption}\n" for i, caption in rows)
        write(tmp_path / f"labels/dress_{split}_detect_all.txt", text)
        for i, _ in rows:
            draw(tmp_path / f"women/dresses/x/{i}/{i}_0.jpeg")
    write(tmp_path / "test_queries.txt", "women/dresses/x/b1/b1_0.jpeg women/dresses/x/b3/b3_0.jpeg\n")
    return tmp_path


def path200k(item):
    return f"women/dresses/x/{item}/{item}_0.jpeg"


def test_fashion200k_all_images_of_the_targets_caption_are_right(fashion200k):
    (protocol,) = Fashion200K(fashion200k).protocols("test")
    (query,) = protocol.queries
    assert query.texts == ("replace red with blue",)
    assert query.targets == (path200k("b3"), path200k("b2"))
    assert len(protocol.gallery) == 4


def test_fashion200k_trains_on_captions_that_differ_by_a_word(fashion200k):
    source = Fashion200K(fashion200k)
    triplets = source.triplets(0)
    assert {t.reference for t in triplets} == {path200k(i) for i in ("a1", "a2", "a3")}  # the hat has no sibling
    for triplet in triplets:
        red = triplet.reference == path200k("a1")
        assert triplet.text == ("replace red with blue" if red else "replace blue with red")
        assert set(triplet.targets) == {path200k(i) for i in (("a2", "a3") if red else ("a1",))}
    assert source.check().counts["train.modifiable"] == 3


def test_fashion200k_caption_rules():
    assert clean_caption(" St. John & co? *new* \n") == "Stdotmark John andmark coquestionmark starmarknewstarmark"
    assert modification("red silk dress", "blue silk dress") == "replace red with blue"


def test_fashion200k_folders_tell_equal_file_names_apart(fashion200k):
    draw(fashion200k / "women/other/y/b1_0.jpeg", (0, 0, 250))
    assert Fashion200K(fashion200k).load(path200k("b1"), (8, 6))[4, 3, 0] > 150


def test_shoes(tmp_path):
    names = [f"img_womens_boots_{i}.jpg" for i in range(4)]
    for i, name in enumerate(names):
        draw(tmp_path / f"womens_boots/{i % 2}/{name}")
    write(tmp_path / "train_im_names.txt", "\n".join(names[:2]))
    write(tmp_path / "eval_im_names.txt", "\n".join(names[2:]) + "\n")
    pairs = [(0, 1), (2, 3), (0, 3)]  # the last crosses the splits: in neither
    write(
        tmp_path / "relative_captions_shoes.json",
        [{"ReferenceImageName": names[r], "ImageName": names[t], "RelativeCaption": f"{r} to {t}"} for r, t in pairs],
    )
    source = Shoes(tmp_path)
    assert [t.text for t in source.triplets(0)] == ["0 to 1"]
    (protocol,) = source.protocols("val")
    assert protocol.gallery == ("img_womens_boots_2", "img_womens_boots_3")
    assert (protocol.queries[0].reference, protocol.queries[0].targets) == (protocol.gallery[0], protocol.gallery[1:])
    assert source.missing == ()


def test_table_csv_merges_right_answers_and_keeps_splits(tmp_path):
    for name in ("a", "b", "c", "d"):
        draw(tmp_path / f"images/{name}.png")
    rows = "a,b,make it red,\na.png,c,longer,val\na.png,images/d.png,longer,val\n"
    write(tmp_path / "mine.csv", "reference,target,text,split\n" + rows)
    source = Table(tmp_path)
    assert [(t.reference, t.text, t.targets) for t in source.triplets(0)] == [("a", "make it red", ("b",))]
    (protocol,) = source.protocols("val")
    assert protocol.name == "mine-val"
    assert protocol.queries[0].targets == ("c", "images/d.png")
    assert source.load("images/d.png", (8, 6)).shape == (8, 6, 3)


def test_table_jsonl_takes_lists(tmp_path):
    row = {"reference": "a", "target": ["b", "gone"], "text": ["in red", "make it red"], "split": "test"}
    write(tmp_path / "t.jsonl", json.dumps(row) + "\n\n")
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    source = Table(tmp_path / "t.jsonl")
    (protocol,) = source.protocols("test")
    assert protocol.queries[0].texts == ("in red", "make it red")
    assert (source.missing, protocol.missing_ids) == (("gone",), ("gone",))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.csv", "reference,target\na,b\n", "line 1 has no column text"),
        ("t.jsonl", '{"reference": "a", "text": "x"}', "line 1 has no target"),
        ("t.jsonl", '{"reference": ["a", "b"], "text": "x", "target": "c"}', "line 1 has no reference"),
        ("t.jsonl", "[1]", "line 1 is not a JSON object"),
        ("t.jsonl", "{", "line 1 is not JSON"),
    ],
)
def test_table_faults_are_one_line(tmp_path, name, content, complaint):
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=complaint):
        Table(tmp_path / name)


@official
def test_official_annotations_hold_no_degenerate_pair_and_37_references_among_soft_targets():
    fashion, cirr = FashionIQ(ANNOTATIONS / "fashioniq").check(), CIRR(ANNOTATIONS / "cirr").check()
    assert fashion.faults == cirr.faults == ()
    assert any(note.startswith("16 pairs have an empty caption: shirt.val pair 1928") for note in fashion.notes)
    assert any(note.startswith("37 pairs have their own reference among their soft targets: ") for note in cirr.notes)
    assert any(note.startswith("1 pair has no caption: test1 pair 1387 (pairid 27098)") for note in cirr.notes)


@official
def test_official_captions_joined_as_clip4cir_does():
    plain, theirs = (
        [
            q.texts[0]
            for p in FashionIQ(ANNOTATIONS / "fashioniq", FashionIQOptions(join=join)).protocols("val")[::4]
            for q in p.queries
        ]
        for join in ("c1 and c2", "clip4cir")
    )
    given = [
        pair["captions"]
        for category in ("dress", "shirt", "toptee")
        for pair in json.loads((ANNOTATIONS / f"fashioniq/captions/cap.{category}.val.json").read_text())
    ]
    marks = ".?, "
    assert theirs == [f"{one.strip(marks).capitalize()} and {two.strip(marks)}" for one, two in given]
    assert len(theirs) == 6016 and sum(text.startswith(" and ") for text in theirs) == 3
    assert sum(any(c.strip() != c.strip(marks) for c in pair) for pair in given) == 895
    assert sum(a.lower() != b.lower() for a, b in zip(plain, theirs, strict=True)) >= 895


@official
def test_official_annotations_give_the_official_counts_without_an_image():
    for source in (FashionIQ(ANNOTATIONS / "fashioniq"), CIRR(ANNOTATIONS / "cirr")):
        report = source.check()
        wrong = [key for key in report.differing if not key.endswith(".found")]
        assert wrong == ([] if source.name == "fashioniq" else ["train.queries"])
        assert report_json(report)["counts"]["val.listed" if source.name == "cirr" else "dress.val.queries"]["found"]
        assert not report.ok
        assert any("no images" in note for note in report.notes)
    assert len(report.missing) == 16939 + 2297 + 2315
