import pytest

from nsfse.data.synthetic.compound_queries import PARTS
from nsfse.data.synthetic.edits import DETAILS, PATTERN_NOUNS
from nsfse.data.synthetic.items import ATTRIBUTES
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource

FREE = ("length", "detail")


@pytest.fixture(scope="module", params=["easy", "standard"])
def source(request):
    return DrawnSource(DrawnOptions(request.param, items=160, gallery=1600))


@pytest.fixture(scope="module")
def asked(source):
    return {protocol.name.removeprefix("drawn-"): protocol.queries for protocol in source.compound_protocols()}


def named(query):
    """The attributes that the edit's own answer has and the reference has not, or may have not."""
    return {label.attribute for label in query.word_labels}


def looks(source, items):
    return [source.describe(item) for item in items]


def test_there_are_many_of_each_kind_and_they_are_the_same_again(source, asked):
    assert set(asked) == set(PARTS)
    for part, kinds in PARTS.items():
        counts = [sum(query.kind == kind for query in asked[part]) for kind in kinds]
        assert min(counts) >= 40
    again = DrawnSource(DrawnOptions(source.level.name, items=320, gallery=1600, seed=4)).compound_protocols()
    assert {protocol.name.removeprefix("drawn-"): protocol.queries for protocol in again} == asked


def test_no_image_of_a_query_answers_it_and_hard_negatives_do_not(asked):
    for query in (query for queries in asked.values() for query in queries):
        assert query.targets and query.hard_negatives
        assert not {*query.reference_ids} & {*query.targets, *query.hard_negatives}
        assert not {*query.targets} & {*query.hard_negatives}
        assert {len(query.texts)} == {len(texts) for texts in (query.texts, *query.more_texts)}


def test_an_answer_to_two_references_has_something_of_either(source, asked):
    for query in asked["two-references"]:
        one, other = looks(source, (query.reference, *query.more_references))
        apart = [name for name in ATTRIBUTES if one[name] != other[name]]
        assert len(apart) == 2
        for target in looks(source, query.targets):
            took = [target[name] == one[name] for name in apart]
            assert sorted(took) == [False, True]
            assert all(target[name] in (one[name], other[name]) for name in apart)
            changed = {name for name in ATTRIBUTES if name not in apart and target[name] != one[name]}
            assert 1 <= len(changed - set(FREE)) + len(changed & set(FREE)) <= 3


def test_an_answer_to_several_edits_has_all_of_them(source, asked):
    for query in asked["several-edits"]:
        (start,) = looks(source, [query.reference])
        assert len(query.more_texts) == {"two": 1, "three": 2}[query.kind]
        for target in looks(source, query.targets):
            changed = {name for name in ATTRIBUTES if target[name] != start[name]}
            if "category" in changed:
                changed -= set(FREE)
            assert len(changed) == 1 + len(query.more_texts)


def test_an_answer_has_nothing_that_must_not_be_there(source, asked):
    for query in asked["minus"]:
        assert bool(query.negative_images) == (query.kind == "image") != bool(query.negative_texts)
        (start,), unwanted = looks(source, [query.reference]), looks(source, query.negative_images)
        for target in looks(source, query.targets):
            values = {target["colour"], PATTERN_NOUNS.get(target["pattern"], target["pattern"])}
            values |= {DETAILS[target["category"]]} if target["detail"] == "with" else set()
            assert not values & set(query.negative_texts)
            assert target not in unwanted
        if query.kind == "has" and query.negative_texts[0] in source.level.values[1]:
            assert start["colour"] == query.negative_texts[0]
