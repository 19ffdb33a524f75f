import csv
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsfse.data.datasets.catalogue import CatalogueSource
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.datasets.catalogue_pairs import PairSampler
from nsfse_runtime.errors import DataError, UsageError

COLOURS = ["red"] * 12 + ["blue"] * 6 + ["green"] * 3 + ["?"]


def write(folder: Path, rows: list[dict[str, str]], images: bool = True) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if images:
        image = Image.new("RGB", (6, 4))
        for row in rows:
            image.save(folder / "images" / f"{row['id']}.png")
    return folder


def shop(count: int = 132) -> list[dict[str, str]]:
    articles = ("Shirts", "Caps", "Belts")
    return [
        {
            "id": f"p{i}",
            "split": "val" if i % 11 == 0 else "train",
            "title": f"product {i}",
            "gender": ("Men", "Women")[i % 2],
            "article": articles[i % 3],
            "department": ("Clothes", "Heads", "Clothes")[i % 3],
            "colour": COLOURS[(i * 5) % len(COLOURS)],
            "group": f"g{i // 48} {i % 6}" if i % 7 else "",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shop"), shop())


@pytest.fixture(scope="module")
def source(folder):
    return CatalogueSource(folder, CatalogueOptions(triplets=801, double_ratio=0.2, instance_ratio=0.4))


def rows_of(folder):
    with (folder / "items.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_columns_of_few_values_are_attributes_unless_another_determines_them(source):
    assert source.columns == ("gender", "article", "colour")


def test_described_columns_are_known_and_no_edit_names_or_keeps_them(folder, source):
    described = CatalogueSource(folder, CatalogueOptions(triplets=400, instance_ratio=0, described=["gender"]))
    assert described.columns == ("article", "colour")
    rows, known = rows_of(folder), source.items("train")[0]
    assert described.attributes(known)["gender"] == rows[known]["gender"]
    genders = {rows[item]["gender"] for triplet in described.triplets(0) for item in triplet.targets}
    kept = [len({rows[item]["gender"] for item in triplet.targets}) == 1 for triplet in described.triplets(0)]
    assert genders == {"Men", "Women"} and not all(kept)
    with pytest.raises(UsageError, match="no column 'size'"):
        CatalogueSource(folder, CatalogueOptions(described=["size"]))


def test_titles_are_those_of_images_that_triplets_show(source, folder):
    shown = {item for item, row in rows_of(folder).items() if row["split"] == "train"}
    assert source.titles == {item: f"product {item[1:]}" for item in shown}
    apart = CatalogueSource(folder, CatalogueOptions(calibration_ratio=0.3)).titles
    assert 0 < len(apart) < len(shown)
    assert CatalogueSource(folder, CatalogueOptions(title=None)).titles == {}
    assert set(CatalogueSource(folder, CatalogueOptions(title="department")).titles.values()) == {"Clothes", "Heads"}
    with pytest.raises(UsageError, match="no column 'name'"):
        CatalogueSource(folder, CatalogueOptions(title="name"))


def test_targets_are_all_items_that_are_right(source, folder):
    rows = {item: row for item, row in rows_of(folder).items() if row["split"] == "train"}
    kinds = Counter()
    for triplet in source.triplets(0):
        before, after = rows[triplet.reference], rows[triplet.targets[0]]
        named = list(dict.fromkeys(label.attribute for label in triplet.word_labels))
        kinds[triplet.kind] += 1
        if triplet.kind == "instance":
            assert named == ["colour"] and before["group"] == after["group"] != ""
            kept = ["group", "colour"]
        else:
            kept = list(source.columns)
            assert [name for name in kept if before[name] != after[name]] == named
        assert len(named) == 2 if triplet.kind == "double" else len(named) == 1
        expected = {item for item, row in rows.items() if all(row[name] == after[name] for name in kept)}
        assert set(triplet.targets) == expected and len(triplet.targets) == len(expected)
        assert triplet.reference not in expected
        assert all(before[name] != after[name] and "?" not in (before[name], after[name]) for name in named)
    assert set(kinds) == {"instance", "attribute", "double"}
    assert 0.3 < kinds["instance"] / kinds.total() < 0.5 and 0.12 < kinds["double"] / kinds.total() < 0.28


def test_whole_products_are_held_out_of_training_and_make_edits_of_their_own(folder):
    rows = rows_of(folder)
    source = CatalogueSource(folder, CatalogueOptions(triplets=801, instance_ratio=0.4, calibration_ratio=0.4))
    held = source.calibration_split()
    trained = {item for epoch in (0, 1) for t in source.triplets(epoch) for item in (t.reference, *t.targets)}
    apart = {item for query in held.queries for item in (query.reference, query.targets[0])}
    assert apart and trained and not apart & trained
    assert apart < set(held.gallery) and trained & set(held.gallery)
    assert {query.kind for query in held.queries} == {"attribute", "instance", "double"}
    groups = [{rows[item]["group"] for item in items} - {""} for items in (apart, trained)]
    assert not groups[0] & groups[1]
    assert CatalogueSource(folder, CatalogueOptions(calibration_ratio=0.4)).calibration_split().gallery == held.gallery
    assert CatalogueSource(folder).calibration_split() is None
    with pytest.raises(UsageError, match="calibration_ratio keeps"):
        CatalogueSource(folder, CatalogueOptions(calibration_ratio=0.002))


def test_an_answer_that_training_shows_is_an_answer_among_held_out_queries_too(folder):
    rows = rows_of(folder)
    held = CatalogueSource(
        folder,
        CatalogueOptions(attributes=["colour", "article"], instance_ratio=0, double_ratio=0, calibration_ratio=0.4),
    ).calibration_split()
    for query in held.queries[:50]:
        wanted = {key: rows[query.targets[0]][key] for key in ("colour", "article")}
        alike = {item for item in held.gallery if wanted.items() <= rows[item].items()} - {query.reference}
        assert set(query.targets) == alike


def test_exactly_as_many_as_asked_fresh_each_epoch_with_both_directions_together(source):
    first = source.triplets(0)
    assert len(first) == 801 and first == source.triplets(0) and first != source.triplets(1)
    for there, back in zip(first[:-1:2], first[1::2], strict=True):
        assert (there.reference, there.targets[0]) == (back.targets[0], back.reference)


def test_the_text_names_the_new_value(source, folder):
    rows = rows_of(folder)
    for triplet in source.triplets(2):
        after = rows[triplet.targets[0]]
        assert all(after[label.attribute].lower() in triplet.text.lower() for label in triplet.word_labels)
        assert "?" not in triplet.text


def test_rare_values_are_asked_for_more_often_than_they_are_sold(folder):
    def share(balance):
        source = CatalogueSource(
            folder,
            CatalogueOptions(
                triplets=4000, instance_ratio=0, double_ratio=0, balance=balance, attribute_weights={"colour": 1}
            ),
        )
        said = Counter(label.words for triplet in source.triplets(0) for label in triplet.word_labels)
        return said[("green",)] / said.total()

    assert share(0.0) > share(1.0) + 0.03


def test_every_item_of_a_value_is_asked_for_as_often():
    many = {("red",): tuple(f"r{i}" for i in range(45)), ("blue",): ("b",)}
    few = {("red",): tuple(f"s{i}" for i in range(5)), ("blue",): tuple(f"c{i}" for i in range(30))}
    drawn = PairSampler(("colour",), [many, few], 1.0).draw(4000, np.random.default_rng(0))
    asked = Counter(change.item(1) for change in drawn if change.values[1] == ("red",))
    assert len(asked) == 50 and max(asked.values()) < 2.2 * min(asked.values())
    assert 0.58 < asked.total() / 4000 < 0.66


def test_changes_weigh_the_attributes(folder):
    source = CatalogueSource(
        folder,
        CatalogueOptions(triplets=2000, instance_ratio=0, double_ratio=0, attribute_weights={"colour": 3, "gender": 1}),
    )
    said = Counter(label.attribute for triplet in source.triplets(0) for label in triplet.word_labels)
    assert set(said) == {"colour", "gender"} and 0.7 < said["colour"] / said.total() < 0.8


def test_a_negation_names_what_is_not_wanted_and_every_other_value_is_right(folder):
    rows = {item: row for item, row in rows_of(folder).items() if row["split"] == "train"}
    source = CatalogueSource(
        folder,
        CatalogueOptions(
            triplets=600, double_ratio=0.2, negation_ratio=0.5, attribute_weights={"colour": 3, "gender": 1}
        ),
    )
    kinds = Counter()
    for triplet in source.triplets(0):
        kinds[triplet.kind] += 1
        before = rows[triplet.reference]
        if triplet.kind != "negation":
            continue
        assert [label.attribute for label in triplet.word_labels] == ["colour"]
        assert before["colour"] in triplet.text.lower()
        first, where = rows[triplet.targets[0]], {item for item, row in rows.items() if row["group"] == before["group"]}
        alike = {item for item, row in rows.items() if all(row[c] == before[c] for c in ("gender", "article"))}
        if before["group"] and first["group"] == before["group"] and set(triplet.targets) <= where:
            alike = where
        right = {item for item in alike if rows[item]["colour"] not in (before["colour"], "?")}
        assert set(triplet.targets) == right and len(triplet.targets) == len(right)
    assert kinds["negation"] > 60 and kinds["attribute"] and kinds["double"]
    assert "negation" not in {t.kind for t in CatalogueSource(folder, CatalogueOptions(triplets=200)).triplets(0)}


def test_a_shop_in_german(tmp_path):
    columns = {"colour": "Farbe", "gender": "Geschlecht", "article": "Artikel"}
    said = {"red": "rot", "blue": "blau", "green": "grün", "Men": "Herren", "Women": "Damen", "Shirts": "Hemden"}
    rows = [
        {columns.get(name, name): said.get(value, value) for name, value in row.items() if name != "department"}
        for row in shop()
    ]
    source = CatalogueSource(
        write(tmp_path, rows), CatalogueOptions(triplets=900, double_ratio=0.2, negation_ratio=0.2, templates="de")
    )
    texts = [triplet.text for triplet in source.triplets(0)]
    assert source.columns == ("Geschlecht", "Artikel", "Farbe")
    for words in ("lieber in rot", "nicht in blau", "für damen", "als hemden", "zeig mir das"):
        assert any(words in text.lower() for text in texts), words
    assert not {"make", "the", "please"} & {word for text in texts for word in text.lower().split()}


def test_without_groups_and_splits_everything_is_for_training(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("group", "split")} for row in shop(30)]
    source = CatalogueSource(write(tmp_path, rows), CatalogueOptions(triplets=50))
    assert {triplet.kind for triplet in source.triplets(0)} == {"attribute", "double"}
    assert len(source.triplets(0)) == 50 and source.protocols("val") == []


def test_images_that_are_not_there_are_left_out_and_listed(tmp_path):
    folder = write(tmp_path, shop(60))
    (folder / "images" / "p1.png").unlink()
    source = CatalogueSource(folder, CatalogueOptions(triplets=400))
    used = {item for triplet in source.triplets(0) for item in (triplet.reference, *triplet.targets)}
    assert source.missing == ("p1",) and "p1" not in used and "p1" not in source.items("train")
    assert source.check().missing == ("p1",) and not source.check().ok


def test_images_of_other_splits_alone_are_nothing_to_train_on(tmp_path):
    folder = write(tmp_path, [row for row in shop() if row["split"] == "val"])
    write(tmp_path, shop(), images=False)
    with pytest.raises(DataError, match=r"no image that .*items\.csv has for training is there"):
        CatalogueSource(folder)


def test_wrong_options_are_refused_by_name(folder, tmp_path):
    with pytest.raises(UsageError, match="no column 'size'"):
        CatalogueSource(folder, CatalogueOptions(attributes=["size"]))
    with pytest.raises(UsageError, match="no attribute 'title'"):
        CatalogueSource(folder, CatalogueOptions(attribute_weights={"title": 1}))
    with pytest.raises(UsageError, match="negation_ratio is 2; give a share"):
        CatalogueSource(folder, CatalogueOptions(negation_ratio=2))
    with pytest.raises(UsageError, match="shares of at most 1"):
        CatalogueSource(folder, CatalogueOptions(instance_ratio=0.8, double_ratio=0.3))
    with pytest.raises(DataError, match="no items of split 'dev'"):
        CatalogueSource(folder, CatalogueOptions(split="dev"))
    with pytest.raises(UsageError, match="from 0 to less than 1"):
        CatalogueSource(folder, CatalogueOptions(recolour_prob=1.0))
    with pytest.raises(UsageError, match="needs a colour"):
        CatalogueSource(folder, CatalogueOptions(attributes=["gender", "article"], recolour_prob=0.2))
    same = [{"id": str(i), "colour": "red", "title": str(i)} for i in range(9)]
    with pytest.raises(DataError, match="no column of few values"):
        CatalogueSource(write(tmp_path, same))


def test_recoloured_references_are_asked_for_by_their_own_colour(folder):
    source = CatalogueSource(folder, CatalogueOptions(triplets=400, recolour_prob=0.25))
    rows = rows_of(folder)
    found = source.triplets(0)
    own = [triplet for triplet in found if triplet.recolour_seed]
    assert len(found) == 400 and len(own) == 100
    assert all(t.targets == (t.reference,) and rows[t.reference]["colour"] in t.text.lower() for t in own)
    assert all(rows[t.reference]["split"] == "train" and rows[t.reference]["colour"] != "?" for t in own)
    assert len({t.recolour_seed for t in own}) > 90
    assert found == CatalogueSource(folder, CatalogueOptions(triplets=400, recolour_prob=0.25)).triplets(0)


def test_two_columns_change_together_or_not_at_all():
    place = {("red", "men"): ("a",), ("blue", "men"): ("b",), ("blue", "women"): ("c",)}
    changes = PairSampler(("colour", "gender"), [place], 0.5)
    drawn = changes.draw(40, np.random.default_rng(0))
    assert {(change.item(0), change.item(1)) for change in drawn} == {("a", "c"), ("c", "a")}


def test_a_large_catalogue_takes_seconds_and_names_a_bounded_number_of_answers(tmp_path):
    rows = [row | {"file": "images/p0.png"} for row in shop(27_000)]
    write(tmp_path, rows, images=False)
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "p0.png")
    source = CatalogueSource(tmp_path, CatalogueOptions(triplets=20_000))
    started = time.process_time()
    made = source.triplets(0)
    assert time.process_time() - started < 10
    assert len(made) == 20_000 and max(len(triplet.targets) for triplet in made) == 1000
