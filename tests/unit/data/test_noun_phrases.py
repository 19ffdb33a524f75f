"""Noun phrases of a catalogue's items: their words, their right answers, and what their words require."""

import pytest

from nsfse.data import WordLabel
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.datasets.noun_phrases import NounPhrases
from nsfse_runtime.errors import UsageError

ROWS = {
    "a": {"kind": "dress", "shade": "red", "motif": "striped"},
    "b": {"kind": "dress", "shade": "red", "motif": "-"},
    "c": {"kind": "tank-top", "shade": "light-blue", "motif": "striped"},
    "d": {"kind": "-", "shade": "red", "motif": "striped"},
}
PHRASES = NounPhrases(ROWS, {"shade": "colour", "kind": "category", "motif": "whole", "x": ""}, ("-",), 0)


@pytest.mark.parametrize(
    ("item", "texts"),
    [
        ("a", ("dress", "striped dress", "red dress", "striped red dress")),
        ("b", ("dress", "red dress")),
        ("c", ("tank top", "striped tank top", "light blue tank top", "striped light blue tank top")),
        ("d", ()),
    ],
)
def test_an_item_is_named_by_its_category_and_its_look(item, texts):
    assert PHRASES.texts(item) == texts


def test_every_item_of_the_phrase_is_right_and_the_reference_is_not():
    made = PHRASES.triplets(0, 60)
    assert len(made) == 60 and {triplet.kind for triplet in made} == {"phrase"}
    answers = {"dress": {"a", "b"}, "red dress": {"a", "b"}, "striped dress": {"a"}, "tank top": {"c"}}
    seen = {triplet.text.removeprefix("a "): triplet for triplet in made}
    for text, right in answers.items():
        assert {*seen[text].targets} == right and seen[text].reference not in right
    assert seen["light blue tank top"].word_labels == (
        WordLabel("shade", ("light", "blue"), "shade", ("light-blue",)),
        WordLabel("kind", ("tank", "top"), "kind", ("tank-top",)),
    )
    assert {triplet.text[:2] == "a " for triplet in made} == {False, True}
    assert made == PHRASES.triplets(0, 60) != PHRASES.triplets(1, 60)


def test_without_a_category_there_is_no_phrase():
    nothing = NounPhrases({"d": ROWS["d"]}, {"shade": "colour", "kind": "category"}, ("-",), 0)
    assert nothing.triplets(0, 5) == []


@pytest.mark.parametrize("option", ["phrase_ratio", "title_phrase_ratio"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(option, share):
    with pytest.raises(UsageError, match=rf"^{option} is {share}; give a share"):
        CatalogueOptions(**{option: share})
