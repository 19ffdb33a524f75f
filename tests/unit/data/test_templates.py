import hashlib
import re
from pathlib import Path

import pytest

from nsfse.data.text.category_edits import EXCLUDED, REPLACED
from nsfse.data.text.template_file import FIELDS, FOLDER, LANGUAGES, LEAST, HeldOut, load_phrasings
from nsfse.data.text.templates import DOUBLE, Edit
from nsfse_runtime.errors import DataError, NotFoundError

EN = load_phrasings("en")
FIELDS_OF_ALL = {
    "v": "orange",
    "adj": "dotted",
    "part": "legs",
    "more": "longer",
    "a": "orange collar",
    "amore": "longer legs",
}
GERMAN_VALUES = {"colour": "rot", "gender": "damen", "category": "hemd", "value": "baumwolle"}


def edit(kind):
    return Edit("x", kind, FIELDS_OF_ALL, ("orange",))


def broken(tmp_path, old, new):
    file = tmp_path / "mine.toml"
    text = (FOLDER / "de.toml").read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")
    return file


@pytest.mark.parametrize("language", LANGUAGES)
def test_many_phrasings_each_and_two_held_out_of_training(language):
    for kind, phrases in load_phrasings(language).kinds.items():
        every = (*phrases.seen, *phrases.more)
        assert len(phrases.seen) >= LEAST and len(set(every)) == len(every) >= 12, kind
        assert len(phrases.held_out) == 2 and phrases.fragments


def test_english_says_every_kind_and_german_those_of_a_catalogue():
    assert set(EN.kinds) == set(FIELDS)
    assert set(load_phrasings("de").kinds) == {
        *("colour", "not colour", "gender", "category", "value", "not value", EXCLUDED, REPLACED),
        DOUBLE,
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_that_training_says_holds_a_held_out_phrasing(language):
    phrasings = load_phrasings(language)
    held_out = HeldOut(phrasings, also_small=("this", "that", "these", "dieses", "so"))
    for phrases in phrasings.kinds.values():
        carried = [c.replace("{f}", fragment) for c in phrasings.carriers for fragment in phrases.fragments]
        for text in (*phrases.seen, *phrases.more, *carried):
            assert held_out.within(text) is None, text
        assert all(held_out.within(f"please {text} now") for text in phrases.held_out)


def test_held_out_is_found_whatever_small_words_stand_between():
    held_out = HeldOut(EN)
    assert held_out.within("hi, do you have that one in the {v}?") == "do you have that one in {v}"
    assert held_out.within("Do you have a {more} one") == "do you have a {v} one"  # another kind's says the same
    assert held_out.within("do you have the same in {v}") is None


def test_plain_texts_are_those_of_the_first_version():
    """The texts are digested as they were while the phrasings still were Python."""
    said, later = [], (DOUBLE, "not value", EXCLUDED, REPLACED)
    pairs = [[edit("colour"), edit("part")], [edit("category"), edit("whole more")]]
    for edits in (*([edit(kind)] for kind in EN.kinds if kind not in later), *pairs):
        phrases = EN.phrases_of(edits)
        for template in (*phrases.seen, *phrases.held_out):
            said += [EN.vary(EN.fill(template, edits), chance) for chance in (0.0, 0.2, 0.9)]
    assert len(said) == 477
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    assert digest == "65eae66df5cbeb40efd58f4d8c212c61ad70af025fbacff858c5f0fa10c3d611"


def test_one_edit_and_two():
    red = Edit("colour", "colour", {"v": "red"}, ("red",))
    sleeves = Edit("length", "part", {"v": "long", "part": "sleeves", "a": "long sleeves"}, ("long",))
    assert EN.fill("make it {v}", [red]) == "make it red"
    assert EN.phrases_of([red, sleeves]) is EN.kinds[DOUBLE]
    assert EN.fill("{a} and {b}", [red, sleeves]) == "in red and with long sleeves"


def test_articles():
    nouns = ("collar", "orange mug", "shoes", "dress", "long sleeves")
    assert [EN.with_article(n) for n in nouns] == ["a collar", "an orange mug", "shoes", "a dress", "long sleeves"]
    assert [load_phrasings("de").with_article(n) for n in ("Hemd", "Hosen")] == ["Hemd", "Hosen"]


def test_vary_never_loses_what_carries_the_edit():
    text = "the same one but not red please"
    assert EN.vary(text, 0.9) == text
    assert EN.vary(text, 0.2) == "The same one but not red please"
    assert EN.vary(text, 0.0) == "same but not red"
    assert EN.vary("the one", 0.0) == "the one"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"mach es {v}"', '"mach es rot"', r"kinds.colour.seen: 'mach es rot' lacks \{v\}"),
        ('"mach es {v}"', '"mach es {w}"', r"kinds.colour.seen: 'mach es \{w\}' has the field \{w\}, .* has: \{v\}"),
        ('"mach es {v}"', '"mach es {v"', "kinds.colour.seen: 'mach es {v' is no phrasing"),
        ('"mach es {v}"', '"mach es {v:>9}"', "more than a name"),
        ('"mach es {v}"', '"lieber in {v}"', "kinds.colour.seen: 'lieber in {v}' is there twice"),
        ('"mach es {v}"', '" "', "kinds.colour.seen holds an empty text"),
        ('"mach es {v}"', '"gibt es es in {v}"', "says what is held out: 'gibt es das auch in {v}'"),
        ('"mach es {v}"', "7", "kinds.colour: Expected `str`, got `int`"),
        ("[kinds.colour]\nseen", "[kinds.color]\nseen", "no kind 'color'; did you mean 'colour'"),
        ("[kinds.value]\nseen", "[kinds.value]\nsaid", "kinds.value: .*`s"),
        ("[kinds.value]\nseen", "[kinds.value]\ntoo = []\nseen", "kinds.value: .*unknown field `too`"),
        ('fragments = ["für {v}", "aber für {v}"]', "fragments = []", "kinds.gender.fragments is empty"),
        ('held_out = ["gibt es das auch {v}", ', "held_out = [", "kinds.value.held_out has 1 phrasings"),
        ('farbe = "colour"', 'farbe = "pattern"', "columns.farbe is 'pattern'"),
        (
            'farbe = "colour"',
            'farbe = "not colour"',
            "columns.farbe is 'not colour'; a column is said as one of: colour,",
        ),
        ('"zeig mir das {f}"', '"zeig mir das"', "carriers: 'zeig mir das' must hold the field {f}"),
        ("before = ", "bevor = ", "bevor"),
        ("before = [", "before = [[", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, old, new, said):
    file = broken(tmp_path, old, new)
    with pytest.raises(DataError, match=re.sub(r"(?<!\\)\{", r"\{", said)) as caught:
        load_phrasings(str(file))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_too_few_phrasings_and_lacking_kinds_are_told(tmp_path):
    few = tmp_path / "few.toml"
    few.write_text('[kinds.value]\nseen = ["{v}", "in {v}"]\nfragments = ["{v}"]\n')
    with pytest.raises(DataError, match=r"kinds\.value\.seen has 2 phrasings; write at least 6"):
        load_phrasings(str(few))
    with pytest.raises(DataError, match=r"lacks the table \[kinds.darker\]"):
        load_phrasings("de", ["darker"])
    with pytest.raises(NotFoundError, match="no phrasings 'fr'; name a TOML file, or one of: de, en"):
        load_phrasings("fr")


def test_an_own_file_is_another_benchmark(tmp_path):
    file = broken(tmp_path, '"mach es {v}"', '"einmal {v}, gern"')
    named = load_phrasings(str(file)).name
    assert re.fullmatch(r"mine-[0-9a-f]{8}", named) and load_phrasings("de").name == "de"
    assert "einmal rot, gern" in {
        load_phrasings(str(file)).fill(text, [Edit("farbe", "colour", {"v": "rot"})])
        for text in load_phrasings(str(file)).kinds["colour"].seen
    }


def test_german_texts_hold_the_value():
    german = load_phrasings("de")
    for kind, value in GERMAN_VALUES.items():
        phrases = german.kinds[kind]
        for text in (*phrases.seen, *phrases.more, *phrases.held_out, *phrases.fragments):
            assert value in german.fill(text, [Edit("x", kind, {"v": value, "a": value})])


def test_the_documents_example_is_a_file(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "catalogue.md").read_text("utf-8")
    (example,) = (block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[kinds." in block)
    file = tmp_path / "mine.toml"
    file.write_text(example, "utf-8")
    assert load_phrasings(str(file)).columns["shade"] == "colour"
