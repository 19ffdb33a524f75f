import hashlib
import re
from pathlib import Path

import pytest

from nsfse.data.text.category_edits import EXCLUDED, REPLACED
from nsfse.data.text.template_file import FIELDS, FOLDER, LANGUAGES, MIN_TEMPLATES, HeldOutTemplates, load_templates
from nsfse.data.text.templates import DOUBLE, Edit
from nsfse_runtime.errors import DataError, NotFoundError

EN = load_templates("en")
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
    for kind, group in load_templates(language).kinds.items():
        every = (*group.base, *group.extra)
        assert len(group.base) >= MIN_TEMPLATES and len(set(every)) == len(every) >= 12, kind
        assert len(group.held_out) == 2 and group.phrases


def test_english_says_every_kind_and_german_those_of_a_catalogue():
    assert set(EN.kinds) == set(FIELDS)
    assert set(load_templates("de").kinds) == {
        *("colour", "not colour", "gender", "category", "value", "not value", EXCLUDED, REPLACED),
        DOUBLE,
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_that_training_says_holds_a_held_out_phrasing(language):
    templates = load_templates(language)
    held_out = HeldOutTemplates(templates, also_small=("this", "that", "these", "dieses", "so"))
    for group in templates.kinds.values():
        carried = [frame.replace("{f}", phrase) for frame in templates.frames for phrase in group.phrases]
        for text in (*group.base, *group.extra, *carried):
            assert held_out.find_in(text) is None, text
        assert all(held_out.find_in(f"please {text} now") for text in group.held_out)


def test_held_out_is_found_whatever_small_words_stand_between():
    held_out = HeldOutTemplates(EN)
    assert held_out.find_in("hi, do you have that one in the {v}?") == "do you have that one in {v}"
    assert held_out.find_in("Do you have a {more} one") == "do you have a {v} one"  # another kind's says the same
    assert held_out.find_in("do you have the same in {v}") is None


def test_plain_texts_are_those_of_the_first_version():
    """The texts are digested as they were while the phrasings still were Python."""
    said, later = [], (DOUBLE, "not value", EXCLUDED, REPLACED)
    pairs = [[edit("colour"), edit("part")], [edit("category"), edit("whole more")]]
    for edits in (*([edit(kind)] for kind in EN.kinds if kind not in later), *pairs):
        group = EN.templates_for(edits)
        for template in (*group.base, *group.held_out):
            said += [EN.vary(EN.fill(template, edits), chance) for chance in (0.0, 0.2, 0.9)]
    assert len(said) == 477
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    assert digest == "65eae66df5cbeb40efd58f4d8c212c61ad70af025fbacff858c5f0fa10c3d611"


def test_one_edit_and_two():
    red = Edit("colour", "colour", {"v": "red"}, ("red",))
    sleeves = Edit("length", "part", {"v": "long", "part": "sleeves", "a": "long sleeves"}, ("long",))
    assert EN.fill("make it {v}", [red]) == "make it red"
    assert EN.templates_for([red, sleeves]) is EN.kinds[DOUBLE]
    assert EN.fill("{a} and {b}", [red, sleeves]) == "in red and with long sleeves"


def test_articles():
    nouns = ("collar", "orange mug", "shoes", "dress", "long sleeves")
    assert [EN.with_article(n) for n in nouns] == ["a collar", "an orange mug", "shoes", "a dress", "long sleeves"]
    assert [load_templates("de").with_article(n) for n in ("Hemd", "Hosen")] == ["Hemd", "Hosen"]


def test_vary_never_loses_what_carries_the_edit():
    text = "the same one but not red please"
    assert EN.vary(text, 0.9) == text
    assert EN.vary(text, 0.2) == "The same one but not red please"
    assert EN.vary(text, 0.0) == "same but not red"
    assert EN.vary("the one", 0.0) == "the one"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"mach es {v}"', '"mach es rot"', r"kinds.colour.base: 'mach es rot' lacks \{v\}"),
        ('"mach es {v}"', '"mach es {w}"', r"kinds.colour.base: 'mach es \{w\}' has the field \{w\}, .* has: \{v\}"),
        ('"mach es {v}"', '"mach es {v"', "kinds.colour.base: 'mach es {v' is no template"),
        ('"mach es {v}"', '"mach es {v:>9}"', "more than a name"),
        ('"mach es {v}"', '"lieber in {v}"', "kinds.colour.base: 'lieber in {v}' is there twice"),
        ('"mach es {v}"', '" "', "kinds.colour.base holds an empty text"),
        ('"mach es {v}"', '"gibt es es in {v}"', "has what is held out: 'gibt es das auch in {v}'"),
        ('"mach es {v}"', "7", "kinds.colour: Expected `str`, got `int`"),
        ("[kinds.colour]\nbase", "[kinds.color]\nbase", "no kind 'color'; did you mean 'colour'"),
        ("[kinds.value]\nbase", "[kinds.value]\nsaid", "kinds.value: .*`s"),
        ("[kinds.value]\nbase", "[kinds.value]\ntoo = []\nbase", "kinds.value: .*unknown field `too`"),
        ('phrases = ["für {v}", "aber für {v}"]', "phrases = []", "kinds.gender.phrases is empty"),
        ('held_out = ["gibt es das auch {v}", ', "held_out = [", "kinds.value.held_out has 1 templates"),
        ('farbe = "colour"', 'farbe = "pattern"', "columns.farbe is 'pattern'"),
        (
            'farbe = "colour"',
            'farbe = "not colour"',
            "columns.farbe is 'not colour'; a column is one of: colour,",
        ),
        ('"zeig mir das {f}"', '"zeig mir das"', "frames: 'zeig mir das' must hold the field {f}"),
        ("before = ", "bevor = ", "bevor"),
        ("before = [", "before = [[", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, old, new, said):
    file = broken(tmp_path, old, new)
    with pytest.raises(DataError, match=re.sub(r"(?<!\\)\{", r"\{", said)) as caught:
        load_templates(str(file))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_too_few_phrasings_and_lacking_kinds_are_told(tmp_path):
    few = tmp_path / "few.toml"
    few.write_text('[kinds.value]\nbase = ["{v}", "in {v}"]\nphrases = ["{v}"]\n')
    with pytest.raises(DataError, match=r"kinds\.value\.base has 2 templates; write at least 6"):
        load_templates(str(few))
    with pytest.raises(DataError, match=r"lacks the table \[kinds.darker\]"):
        load_templates("de", ["darker"])
    with pytest.raises(NotFoundError, match="no templates 'fr'; name a TOML file, or one of: de, en"):
        load_templates("fr")


def test_an_own_file_is_another_benchmark(tmp_path):
    file = broken(tmp_path, '"mach es {v}"', '"einmal {v}, gern"')
    named = load_templates(str(file)).name
    assert re.fullmatch(r"mine-[0-9a-f]{8}", named) and load_templates("de").name == "de"
    assert "einmal rot, gern" in {
        load_templates(str(file)).fill(text, [Edit("farbe", "colour", {"v": "rot"})])
        for text in load_templates(str(file)).kinds["colour"].base
    }


def test_german_texts_hold_the_value():
    german = load_templates("de")
    for kind, value in GERMAN_VALUES.items():
        group = german.kinds[kind]
        for text in (*group.base, *group.extra, *group.held_out, *group.phrases):
            assert value in german.fill(text, [Edit("x", kind, {"v": value, "a": value})])


def test_the_documents_example_is_a_file(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "catalogue.md").read_text("utf-8")
    (example,) = (block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[kinds." in block)
    file = tmp_path / "mine.toml"
    file.write_text(example, "utf-8")
    assert load_templates(str(file)).columns["shade"] == "colour"


def test_values_have_names_and_words_are_those_that_a_tokenizer_reads(tmp_path):
    assert EN.edit_to("Category", "T-shirt").fields["v"] == "t-shirt"
    assert EN.edit_to("category", "t-shirt").words == ("t", "shirt")
    assert EN.edit_to("sleeve", "none").words == ("no", "sleeves") and EN.edit_to("x", "none").words == ("none",)
    file = broken(tmp_path, "[columns]", '[values.Farbe]\nRT = "rot"\n[columns]')
    assert load_templates(str(file)).edit_to("farbe", "rt").words == ("rot",)
    with pytest.raises(DataError, match="values"):
        load_templates(str(broken(tmp_path, "[columns]", '[values.Farbe]\nRT = ""\n[columns]')))
