import string

import pytest

from nsfse.data.phrasing import DOUBLES, PHRASES, Edit, fill, phrases_of, vary, with_article


@pytest.mark.parametrize("kind", [*PHRASES, "double"])
def test_at_least_six_phrasings_each_and_two_held_out_of_training(kind):
    phrases = DOUBLES if kind == "double" else PHRASES[kind]
    assert len(phrases.seen) == len(set(phrases.seen)) >= 6
    assert len(phrases.held_out) == 2 and not set(phrases.held_out) & set(phrases.seen)


def test_fragments_use_no_field_that_the_phrasings_lack():
    for phrases in PHRASES.values():
        fields = {name for text in phrases.seen for _, name, _, _ in string.Formatter().parse(text) if name}
        assert {name for _, name, _, _ in string.Formatter().parse(phrases.fragment) if name} <= fields


def test_one_edit_and_two():
    red = Edit("colour", "colour", {"v": "red"}, ("red",))
    sleeves = Edit("length", "part", {"v": "long", "part": "sleeves", "a": "long sleeves"}, ("long",))
    assert fill("make it {v}", [red]) == "make it red"
    assert phrases_of([red, sleeves]) is DOUBLES
    assert fill("{a} and {b}", [red, sleeves]) == "in red and with long sleeves"


def test_articles():
    nouns = ("collar", "orange mug", "shoes", "dress", "long sleeves")
    assert [with_article(noun) for noun in nouns] == ["a collar", "an orange mug", "shoes", "a dress", "long sleeves"]


def test_vary_never_loses_what_carries_the_edit():
    text = "the same one but not red please"
    assert vary(text, 0.9) == text
    assert vary(text, 0.2) == "The same one but not red please"
    assert vary(text, 0.0) == "same but not red"
    assert vary("the one", 0.0) == "the one"
