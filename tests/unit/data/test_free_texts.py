import csv
import json
from collections import Counter

import pytest
from PIL import Image

from nsfse.data import HasLeftOut, HasTrainingTexts
from nsfse.data.datasets.catalogue import CatalogueSource
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse_runtime.errors import DataError, NotFoundError, UsageError

SLEEVES = ("none", "short", "-")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    with (tmp_path / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "split", "colour", "sleeve"))
        for number in range(24):
            split = "val" if number % 8 == 7 else "train"
            writer.writerow((number, split, ("red", "light-blue", "multi")[number % 3], SLEEVES[number // 3 % 3]))
            Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def text(reference, target, voice="a", **more):
    said = {"reference": reference, "targets": [target], "texts": [f"text {reference} {target}"], "voice": voice}
    return {"split": "train", **said, **more}


def write(folder, lines):
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def open_source(folder, **options):
    options = {"triplets": 100, "texts": "texts.jsonl", "text_ratio": 0.4, **options}
    return CatalogueSource(folder, CatalogueOptions(attributes=["colour", "sleeve"], **options))


def test_a_share_of_the_triplets_has_a_free_text_and_both_directions_of_an_edit_stay_together(folder):
    write(folder, [text(0, 1), text("1", "2"), text(3, 4, split="")])
    source = open_source(folder)
    first = source.triplets(0)
    free = [triplet for triplet in first if triplet.kind == "free text"]
    assert len(first) == 100 and len(free) == 40
    assert Counter(triplet.text for triplet in free).most_common(1)[0][1] <= 14, "each pair before one comes again"
    assert {(t.reference, t.targets, t.word_labels) for t in free} == {
        ("0", ("1",), ()),
        ("1", ("2",), ()),
        ("3", ("4",), ()),
    }
    kinds = [triplet.kind for triplet in first]
    assert "free text" in kinds[:20] and "free text" in kinds[-20:]
    made = [triplet for triplet in first if triplet.kind != "free text"]
    assert all(a.reference in b.targets for a, b in zip(made[::2], made[1::2], strict=True))
    assert source.triplets(0) == first != source.triplets(1)


def test_all_or_none_are_free(folder):
    write(folder, [text(0, 1), text(1, 2)])
    assert {triplet.kind for triplet in open_source(folder, text_ratio=1).triplets(0)} == {"free text"}
    none = open_source(folder, text_ratio=0)
    assert "free text" not in {triplet.kind for triplet in none.triplets(0)} and none.training_texts == ()


def test_the_vocabulary_gets_every_text_but_those_of_voices_held_out(folder):
    write(folder, [text(0, 1), text(1, 2, "b"), text(2, 3, "c"), text(7, 15, split="val")])
    source = open_source(folder, held_out_voices=["b"], triplets=3)
    assert isinstance(source, HasTrainingTexts) and source.training_texts == ("text 0 1", "text 2 3")
    with pytest.raises(UsageError, match="no voice 'd'; there are: a, b, c"):
        open_source(folder, held_out_voices=["d"])


def test_texts_without_their_images_are_left_out_and_counted(folder):
    (folder / "images" / "1.png").unlink()
    write(folder, [text(0, 1), text(1, 2), text(2, 3), text(3, 4, texts=["x" * 3000])])
    source = open_source(folder)
    assert isinstance(source, HasLeftOut)
    assert source.left_out == (
        "2 free texts left out: an image is missing or held out",
        "1 free text left out: far too long",
    )
    assert {triplet.text for triplet in source.triplets(0)} >= {"text 2 3"}
    write(folder, [text(0, 1)])
    with pytest.raises(DataError, match="no free text is left: 1 free text left out: an image is missing"):
        open_source(folder)


def test_wrong_files_are_refused_with_their_line(folder):
    with pytest.raises(NotFoundError, match=r"no texts\.jsonl in"):
        open_source(folder)
    with pytest.raises(UsageError, match="none are given"):
        open_source(folder, texts="")
    for line, message in (
        (text(0, "x"), "names 'x'"),
        (text(0, 7), "names '7'"),  # of another split
        (text(0, 0), "has its reference as the only target"),
        ({"reference": 0, "targets": [1]}, "has no texts"),
    ):
        write(folder, [text(0, 1), line])
        with pytest.raises(DataError, match=f"texts.jsonl:2 {message}"):
            open_source(folder)


def test_values_without_a_name_are_never_requested_and_others_are_called_by_theirs(folder):
    source = open_source(folder, text_ratio=0, unnamed_values=["-", "multi"], triplets=600, augment_prob=0)
    labels = [label for triplet in source.triplets(0) for label in triplet.word_labels]
    assert {(label.words, label.values) for label in labels} == {
        (("red",), ("red",)),
        (("light", "blue"), ("light-blue",)),
        (("no", "sleeves"), ("none",)),
        (("short", "sleeves"), ("short",)),
    }
    assert source.attributes("8") == {"colour": "multi", "sleeve": "-"}, "known all the same"
    texts = {triplet.text for triplet in source.triplets(0) if triplet.kind == "attribute"}
    assert {"with no sleeves", "make it light blue"} <= texts
