"""Voices: what they say, that the reserved ones stay apart, and what they say of the old value."""

import random
import re

import pytest

from nsfse.data.registry import open_source
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.data.text import voices
from nsfse.data.text.template_file import FIELDS, HeldOutTemplates, load_templates
from nsfse.data.text.templates import DOUBLE, Edit
from nsfse_runtime.errors import DataError, NotFoundError, UsageError

EN = load_templates("en")
VOICES, RESERVED = voices.load_voices("en"), voices.reserved_voices()
RED = Edit("colour", "colour", {"v": "red", "a": "red"}, ("red",))
BLUE = Edit("colour", "colour", {"v": "blue", "a": "blue"}, ("blue",))
NOT_RED = Edit("colour", "not colour", {"v": "red", "a": "red"}, ("red",))
PARTS = {"v": "zzz", "adj": "zzz", "a": "zzz", "part": "zzz", "more": "zzz", "amore": "zzz", "old": "zzz"}


def said(edits, old=None, count=3000, whose=VOICES):
    rng = random.Random(0)
    return [whose.say(edits, old, EN, rng) for _ in range(count)]


def bare(text):
    """Return the words of a text, its values and small words left out."""
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", re.sub(r"\{\w+\}|zzz|yyy", " ", text.lower()))
    return " ".join(word for word in words if word not in EN.small_words)


def sentences(voice):
    return (*voice.says, *voice.refuses_old, *voice.refers_to_old, *voice.refuses)


def test_hundreds_of_phrasings_of_each_kind_that_is_trained():
    for kind in set(FIELDS) - {"not category", "category over", DOUBLE}:
        texts = {spoken.text for spoken in said([Edit("x", kind, PARTS, ("zzz",))])}
        assert len(texts) > (100 if kind.startswith("not") or kind in ("remove", "no pattern") else 300), kind


def test_the_value_is_in_every_text_and_the_old_one_where_named():
    spoken = said([RED], BLUE)
    assert all("red" in one.text.split("red")[0] + "red" and re.search(r"\bred\b", one.text) for one in spoken)
    assert all(bool(one.old) == bool(re.search(r"\bblue\b", one.text)) for one in spoken)
    shares = [sum(one.old == kind for one in spoken) / len(spoken) for kind in ("refused", "named")]
    assert shares[0] > shares[1] > 0.05
    assert not any(one.old for one in said([RED]))


def test_two_edits_are_said_together_and_what_is_absent_is_refused():
    sleeves = Edit("length", "part", {"v": "long", "part": "sleeves", "a": "long sleeves"}, ("long",))
    assert all("red" in one.text and "long sleeves" in one.text for one in said([RED, sleeves], BLUE))
    assert not VOICES.speaks([NOT_RED, sleeves]) and VOICES.speaks([NOT_RED])
    refusals = {text for voice in VOICES.voices.values() for text in voice.refuses}
    assert refusals and all("red" in one.text and not one.old for one in said([NOT_RED]))


def test_an_old_value_that_the_new_one_contains_is_not_named():
    light = Edit("colour", "colour", {"v": "light red", "a": "light red"}, ("light", "red"))
    assert not any(one.old for one in said([RED], light))
    sleeves = [
        Edit("sleeve", "add", {"v": f"{v} sleeves", "a": f"{v} sleeves"}, (v, "sleeves")) for v in ("long", "no")
    ]
    assert any(one.old for one in said(sleeves[:1], sleeves[1]))


def test_slips_are_no_words_of_the_vocabulary():
    slips = [one for one in said([RED], BLUE) if one.voice == "slips"]
    assert any(one.typos for one in slips) and not any(one.typos for one in said([RED]) if one.voice != "slips")
    assert "teh" in VOICES.slips and not {"the", "this", "red"} & VOICES.slips


def test_no_voice_says_what_templates_hold_out():
    held_out = HeldOutTemplates(EN, also_small=("this", "that"))
    for kind in VOICES.forms.keys() - {DOUBLE}:
        one, old = Edit("x", kind, PARTS, ("zzz",)), Edit("x", "colour", {"v": "yyy", "a": "yyy"}, ("yyy",))
        texts = [spoken.text for spoken in said([one], old, 1500)]
        assert not [text for text in texts if held_out.find_in(re.sub("zzz|yyy", "{}", text))], kind


# The reserved voices


def test_two_voices_are_reserved_each_with_plain_sentences_and_such_that_name_the_old_value():
    assert set(RESERVED.voices) == {"marketplace", "storyteller"} and not RESERVED.voices.keys() & VOICES.voices.keys()
    for voice in RESERVED.voices.values():
        assert len(voice.says) == 4 and len(voice.refuses_old) + len(voice.refers_to_old) == 3


def test_nothing_that_training_can_say_is_a_reserved_sentence():
    trained = [bare(text) for voice in VOICES.voices.values() for text in sentences(voice)]
    trained += [bare(text) for kind in EN.kinds.values() for text in (*kind.base, *kind.extra, *kind.held_out)]
    trained += [bare(frame) for frame in EN.frames]
    for voice in RESERVED.voices.values():
        for text in map(bare, sentences(voice)):
            assert text and not any(f" {text} " in f" {other} " for other in trained), text


@pytest.mark.parametrize("named", ["en-reserved", str(voices.FOLDER / "en-reserved.toml")])
def test_no_option_of_a_data_set_opens_the_reserved_voices(named):
    with pytest.raises(DataError, match="reserved for evaluation"):
        DrawnSource(DrawnOptions("easy", voices=named))
    with pytest.raises(DataError, match="reserved for evaluation"):
        voices.training_voices(named, (), EN)


def test_training_texts_hold_no_reserved_sentence():
    said_by_them = [bare(text) for voice in RESERVED.voices.values() for text in sentences(voice)]
    source = open_source("drawn", None, items=1600, triplets=6000, voice_ratio=1.0, augment_prob=1.0)
    texts = {bare(triplet.text) for triplet in source.triplets(0)}
    opened = [text.split()[:3] for text in said_by_them]
    assert len(texts) > 3000 and not [text for text in texts if text.split()[:3] in opened]


# Training


def test_a_refused_value_is_labelled_and_one_that_is_named_is_not():
    source = DrawnSource(DrawnOptions("standard", items=1600, triplets=4000, augment_prob=1.0, voice_ratio=1.0))
    refused = 0
    for triplet in source.triplets(0):
        reference, target = (source.attributes(item) for item in (triplet.reference, triplet.targets[0]))
        for label in triplet.word_labels:
            assert target[label.attribute_key] in label.values
        if len(triplet.word_labels) == 2 and triplet.kind != "double":
            new, old = triplet.word_labels
            assert old.absent and not new.absent and old.attribute == new.attribute
            assert reference[old.attribute_key] not in old.values and old.values
            said_so = any(re.search(rf"\b{word}\b", triplet.text.lower()) for word in old.words)
            assert said_so or old.words == ("plain",)  # "without a pattern"
            refused += 1
    assert refused > 200


def test_whole_voices_can_be_left_out():
    only = [name for name in VOICES.voices if name != "gift"]
    kept = voices.training_voices(None, only, EN)
    assert list(kept.voices) == ["gift"]
    assert voices.training_voices(None, (), load_templates("de")) is None
    with pytest.raises(UsageError, match="no voice 'gitf'"):
        voices.training_voices(None, ["gitf"], EN)
    with pytest.raises(UsageError, match="leaves no voice"):
        voices.training_voices(None, [*only, "gift"], EN)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[voices.x]\nsays = ["red"]', "must hold"),
        ('[voices.x]\nsays = ["{new}, not {old}"]', "must hold"),
        ('[voices.x]\nsays = ["{new}"]\nrefuses_old = ["{new}"]', "must hold"),
        ('[voices.x]\nsays = ["{new"]', "is no template"),
        ("[voices.x]", "says"),
        ("x", "mine.toml"),
        (
            '[voices.x]\nsays = ["{new}"]\n[forms.colour]\nnew = []\nbe = ["{v}"]\nin = ["{v}"]\none = ["{v}"]',
            "is empty",
        ),
    ],
)
def test_a_fault_of_a_file_is_one_line(tmp_path, text, fault):
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(DataError, match=fault) as raised:
        voices.load_voices(str(file))
    assert "\n" not in str(raised.value)
    with pytest.raises(NotFoundError, match="no voices"):
        voices.load_voices(str(tmp_path / "none.toml"))
