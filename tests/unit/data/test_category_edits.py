"""Queries that exclude or replace the kind of thing: what is said, and which answers are right."""

from nsfse.data import HasCategoryEdits
from nsfse.data.datasets.catalogue import CatalogueSource
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.data.text.category_edits import EXCLUDED, REPLACED, category_edits, plural
from nsfse.data.text.template_file import load_templates

SHOP = {
    name: {"kind": kind, "colour": colour, "length": length}
    for name, kind, colour, length in (
        ("a", "bag", "red", "short"),
        ("b", "shoe", "red", "long"),
        ("c", "mug", "red", "short"),
        ("d", "shoe", "blue", "short"),
        ("e", "bag", "red", "long"),
    )
}


def test_right_is_another_kind_that_keeps_the_rest():
    found = {(q.reference, q.kind): q for q in category_edits(SHOP, "kind", ("length",), load_templates("en"), 5)}
    excluded, replaced = found["a", EXCLUDED], found["b", REPLACED]
    assert excluded.texts == ("not a bag",) and excluded.targets == ("b", "c")
    assert replaced.texts == ("a bag instead of the shoe",) and replaced.targets == ("a", "e")
    assert found["d", REPLACED].targets == ()  # there is nothing else in blue
    strict = category_edits(SHOP, "kind", (), load_templates("en"), 5)[0]
    assert strict.targets == ("c",)  # short, as the reference


def test_there_is_none_where_all_is_of_one_kind_or_none_is_wanted():
    bags = {name: about | {"kind": "bag"} for name, about in SHOP.items()}
    assert category_edits(bags, "kind", (), load_templates("en"), 5) == ()
    assert category_edits(SHOP, "kind", (), load_templates("en"), 0) == ()


def test_the_drawn_catalogue_asks_for_other_kinds_in_words_that_training_does_not_say():
    source = DrawnSource(DrawnOptions("easy", items=200, triplets=400, gallery=100))
    gallery = source.items("val")
    edits = source.category_edits(gallery, 40)
    assert len(edits) == 34 and {q.kind for q in edits} == {EXCLUDED, REPLACED}  # every third image
    known = {item: source.describe(item) for item in gallery}
    for query in edits:
        for item in query.targets:
            assert known[item]["category"] != known[query.reference]["category"]
            assert all(known[item][name] == known[query.reference][name] for name in ("colour", "pattern"))
    said = {text for epoch in (0, 1) for triplet in source.triplets(epoch) for text in (triplet.text,)}
    assert not said & {text for query in edits for text in query.texts}


def test_a_catalogue_does_where_a_column_is_said_as_a_category(tmp_path):
    rows = [f"{name},{about['kind']},{about['colour']}\n" for name, about in SHOP.items()]
    (tmp_path / "images").mkdir()
    for column, count in (("type", 5), ("make", 0)):
        (tmp_path / "items.csv").write_text(f"id,{column},colour\n" + "".join(rows) + "f,?,red\n", "utf-8")
        for name in (*SHOP, "f"):
            (tmp_path / "images" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n, the rest is not read here")
        source = CatalogueSource(tmp_path, CatalogueOptions(attributes=[column, "colour"], double_ratio=0.0))
        edits = source.category_edits((*SHOP, "f"), 5)
        assert isinstance(source, HasCategoryEdits) and len(edits) == count
        assert not any("f" in (query.reference, *query.targets) for query in edits)  # of what is unknown nothing is


def test_a_word_and_its_plural():
    assert [plural(noun) for noun in ("bag", "dress", "shoes", "watch")] == ["bags", "dresses", "shoes", "watches"]
