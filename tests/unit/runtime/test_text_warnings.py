"""Words that a model does not read or follow are reported, and no hit is a match then."""

import random
import string
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from nsfse.demo import app
from nsfse_runtime import Bundle, Query, Retriever
from nsfse_runtime.errors import NsfseError, TextError
from nsfse_runtime.inference.confidence import FEATURES, Decision
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.retrieval.negation import negated
from nsfse_runtime.retrieval.query import ComposedQuery
from nsfse_runtime.retrieval.results import Result, build_hits
from nsfse_runtime.retrieval.text_warnings import NOT_WHOLE, TextReading, UnknownWord
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import PairScores, QueryFeatures, TargetFeatures
from tests.demo_images import cut

COLOURS = ("red", "green", "blue", "yellow", "purple", "brown", "black", "white")
PHRASES = [
    *(f"make it {colour}" for colour in COLOURS),
    *(f"{one}, not {other}" for one, other in pairwise(COLOURS)),
    *(f"i'd like it in {colour}" for colour in COLOURS),
    *("no stripes please", "without dots", "with long sleeves", "turn it into trousers", "the checked version"),
    *("any color but blue", "remove the collar", "a shirt in this style", "show me this with a belt"),
]


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A retriever over some drawings of the demo."""
    folder = tmp_path_factory.mktemp("box")
    scorer = OnnxScorer(Bundle.open(app.DRAWN.bundle))
    return Retriever(scorer, app.open_gallery(cut(app.DRAWN, folder, 80), folder, scorer))


def answers(box, *texts, reference=4, **options):
    found = box.answer([Query(references=(box.gallery.ids[reference],), texts=(text,), **options) for text in texts])
    assert not [each for each in found if isinstance(each, NsfseError)], found
    return found


def certain(found: Result) -> bool:
    return found.has_match is not None or any(
        hit.confidence is not None or hit.is_match is not None for hit in found.hits
    )


def alike(one: Result, other: Result) -> bool:
    return [(hit.id, hit.score, hit.evidence) for hit in one.hits] == [
        (hit.id, hit.score, hit.evidence) for hit in other.hits
    ]


def misspelt(word, known, rng):
    """Return `word` with one letter added, lost, changed or swapped, such that it is none of `known`."""
    while True:
        at, letter = rng.randrange(len(word)), rng.choice(string.ascii_lowercase)
        swapped = word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
        slip = rng.choice([word[:at] + letter + word[at:], word[:at] + word[at + 1 :], swapped])
        slip = rng.choice([slip, word[:at] + letter + word[at + 1 :]])
        if slip and slip not in known and slip.isalpha():
            return slip


def test_an_unknown_word_has_no_effect_and_is_named(box):
    plain, *others = answers(box, "make it red", "make it red xyzzy", "make xyzzy it red!", "xyzzy: make it red")
    assert certain(plain) and not plain.notes and plain.hits[0].confidence is not None
    for found, position in zip(others, (3, 1, 0), strict=True):
        assert alike(found, plain) and not certain(found)
        assert found.texts == (TextReading(words=3, unknown=(UnknownWord("xyzzy", None, position),)),)
        assert found.notes == ("unknown word: xyzzy", NOT_WHOLE)
    assert answers(box, "make it red xyzzy", min_confidence=0.01)[0].hits == ()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("without xyzzy", "unknown word: xyzzy"),
        ("without stripe", "unknown word: stripe; did you mean stripes?"),
        ("make it redd", "unknown word: redd; did you mean red?"),
        ("make it rde", "unknown word: rde; did you mean red?"),
        ("make it gray", "unknown word: gray"),
        ("no bags please", "unknown word: bags; did you mean bag?"),
        ("make it red \U0001f534", "unknown word: \U0001f534"),
    ],
)
def test_nothing_is_certain_of_an_unknown_word(box, text, note):
    (found,) = answers(box, text)
    assert found.notes[0] == note and not certain(found) and len(found.hits) == 10
    (unknown,) = found.texts[0].unknown
    assert unknown.word not in [word.word for word in found.hits[0].evidence]


def test_a_word_that_only_makes_a_sentence_whole_takes_nothing_away(box):
    with_it, without = answers(box, "this should be red", "this be red")
    assert alike(with_it, without) and certain(with_it) and with_it.hits == without.hits
    assert with_it.notes == ("unknown word: should",)


def test_no_misspelt_word_is_answered_with_confidence(box):
    rng, known = random.Random(7), set(box._scorer.tokenizer._tokenizer.get_vocab())
    mistyped = []
    for number in range(60):
        words = PHRASES[number % len(PHRASES)].replace(",", "").split()
        at = rng.choice([at for at, word in enumerate(words) if word.isalpha()])
        slip = misspelt(words[at], known, rng)
        mistyped.append((" ".join([*words[:at], slip, *words[at + 1 :]]), slip))
    found = answers(box, *(text for text, _ in mistyped), k=3)
    for (text, slip), each in zip(mistyped, found, strict=True):
        assert [word.word for word in each.texts[0].unknown] == [slip], text
        assert not certain(each) and slip not in [word.word for word in each.hits[0].evidence], text


def test_what_is_beyond_the_limit_is_named(box):
    rng, known = random.Random(3), [word for word in box._scorer.tokenizer.words() if len(word) > 1]
    texts = [" ".join(rng.choices(known, k=30)) for _ in range(20)]
    for text, found in zip(texts, answers(box, *texts, k=2), strict=True):
        assert found.texts[0].unread == tuple(text.split()[24:]) and not certain(found)
        assert f"not read, after the first 24 words: {' '.join(text.split()[24:])}" in found.notes
    whole, cut = answers(
        box, *("make it red please thanks thank you " * 3 + more for more in ("now and", "in it in red"))
    )
    assert not whole.texts[0].unread and cut.texts[0].unread == ("red",)


@pytest.mark.parametrize("text", ["not a bag", "a shoe instead of the bag", "not this bag", "a dress, not a bag"])
def test_a_negation_that_is_not_followed_is_reported(box, text):
    (found,) = answers(box, text)
    ignored = found.texts[0].ignored_negation
    if ignored is None:  # a model that follows it gives the word a weight under 0
        assert all(word.weight < 0 for hit in found.hits for word in hit.evidence if word.word == "bag")
        return
    assert ignored.word == "bag" and text.endswith(ignored.phrase) and not certain(found)
    assert found.notes == (f"this model did not follow '{ignored.phrase}'; use --exclude-text bag", NOT_WHOLE)


def test_what_is_followed_and_what_is_no_negation_is_answered_as_before(box):
    texts = ("make it red", "no stripes", "without stripes", "not red", "any other colour than red", "red not blue")
    for found in answers(box, *texts, *PHRASES):
        assert certain(found) and not found.notes and found.hits[0].confidence is not None


WEIGHTS = {"bag": 0.9, "red": 0.9, "green": -0.9, "want": 0.2, "this": 0.5, "shoe": 0.05}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("not a bag", "not a bag"),
        ("Not a BAG", "Not a BAG"),
        ("a green one but no bag", "no bag"),
        ("anything but red", "anything but red"),
        ("any colour but red", "any colour but red"),
        ("another one than red", "another one than red"),
        ("green instead of a red one", "instead of a red"),
        ("i don't want a bag", "don't want a bag"),
        ("keine bag", "keine bag"),
        ("nicht red sondern green", "nicht red"),
        ("lose the bag", "lose the bag"),
        ("no green, no bag", "no bag"),
        ("not green", None),
        ("no green but red", None),
        ("not this , a bag", None),
        ("a bag , not a shoe", None),
        ("the same one but red", None),
        ("not", None),
        ("red not", None),
        ("i don't want green , red", None),
        ("", None),
    ],
)
def test_negations_and_what_they_negate(text, phrase):
    words = text.split()
    weights = np.array([WEIGHTS.get(word.lower(), 0.01) for word in words], np.float32)
    found = negated(words, weights)
    assert (found and found[0]) == phrase and (found is None or found[1] == phrase.split()[-1])
    assert negated(words, -weights * (weights > 0)) is None


class Sure(Decision, frozen=True):
    """A decision that is certain of everything."""

    def confidence(self, features):
        return np.full(len(features), 1.0)


@pytest.mark.parametrize("decided", [True, False])
def test_a_hit_that_strikes_the_heaviest_word_is_no_match(decided):
    count = len(FEATURES)
    decision = Sure((0.0,) * count, (1.0,) * count, (0.0,) * (count + count * (count + 1) // 2), 0.0, 0.75)
    weights, rows = np.array([0.3, 0.6, -0.1], np.float32), np.zeros((3, 2), np.float32)
    part = QueryFeatures(rows[0], rows, rows, weights, weights, ("a", "bag", "red"))
    pair = PairScores(np.ones(4, np.float32), np.array([[2, 0.6, 0], [2, 0.4, 0], [0, 0.6, 0], [9, 0.6, 1]]), 0.5)
    query = ComposedQuery(rows[0], (part,), weights, (slice(0, 3),), reference=rows[0])
    ranking = Ranking(np.arange(4), pair.score, pair, pair.score, 1.0)
    targets = TargetFeatures(np.zeros((4, 2), np.float32), np.zeros((4, 1, 2), np.float32))
    hits = build_hits("abcd", "", query, ranking, pair, decision if decided else None, targets)
    assert [hit.is_match for hit in hits] == ([True, False, True, True] if decided else [True, False, False, True])
    if decided:
        assert [hit.confidence for hit in hits] == [1, pytest.approx(0.75), 1, 1] and hits[1].confidence < 0.75
    (first, *_) = build_hits("abcd", "", query, ranking, pair, decision if decided else None, targets, whole=False)
    assert first.is_match is None and first.confidence is None


def test_an_unwanted_word_that_is_there_is_no_match():
    weights, rows = np.array([-0.9, 0.1], np.float32), np.zeros((2, 2), np.float32)
    part = QueryFeatures(rows[0], rows, rows, weights, weights, ("stripes", "please"))
    query = ComposedQuery(rows[0], (part,), weights, (slice(0, 2),), reference=rows[0])
    assert query.misses_heaviest_word(PairScores(rows[:, 0], np.array([[0.9, 0.9], [0.1, 0.1]]), 0.5)).tolist() == [
        True,
        False,
    ]


def test_every_text_of_a_query_has_its_reading(box):
    a, b = box.gallery.ids[:2]
    found, aligned, mistaken = box.answer(
        [
            Query(references=(a, b), texts=("make it redd", "with dots"), negative_texts=("stripe or belt", "collar")),
            Query(references=(a, b), texts=("make it", "with dots"), negative_texts=("or belt", "collar")),
            Query(references=(a,), texts=("red", "xyzzy")),
        ]
    )
    assert [(text.negative, text.words, text.unread) for text in found.texts] == [
        (False, 2, ()),
        (False, 2, ()),
        (True, 1 if "or" not in box._scorer.tokenizer.words() else 2, ()),
        (True, 1, ()),
    ]
    assert [[word.word for word in text.unknown][:1] for text in found.texts] == [["redd"], [], ["stripe"], []]
    assert alike(found, aligned) and not certain(found)
    assert sum(text.words for text in found.texts) == len(found.hits[0].evidence)
    assert isinstance(mistaken, TextError) and "xyzzy" in str(mistaken)


def test_only_texts_that_are_whole_are_called_matches_in_longer_queries(box):
    a = box.gallery.ids[4]
    for minus in (("stripes",), ("stripes stripe",)):
        found = box.query(a, "make it red", negative_texts=minus)
        assert [hit.is_match is None for hit in found.hits] == [len(found.notes) > 0] * 10
        assert bool(found.notes) == ("stripe " in f"{minus[0]} ")
