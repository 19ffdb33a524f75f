"""Filters on metadata, against an evaluator that is as naive as can be, and the errors of what is no filter."""

import re
from datetime import UTC, datetime

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from nsfse_runtime.errors import UsageError
from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.gallery.filters import MAX_CONDITIONS, MAX_DEPTH, select

ROWS = (
    {"price": "9.99", "size": "S", "sale": "true", "added": "2026-11-30"},
    {"price": "30", "size": "M", "sale": "no", "added": "2026-11-30T10:00:00Z"},
    {"price": "30.0", "size": "S,M", "added": "2026-12-01T00:30:00+01:00"},
    {"price": "on request", "size": " S ", "sale": "FALSE", "added": "soon"},
    {"size": "L"},
    {"price": "-1e1", "sale": "maybe", "added": "2025-01-01"},
)


def table(rows):
    def column(name: str) -> Column:
        return Column(name, [row.get(name) for row in rows])

    return column


def rows_of(where, rows=ROWS):
    return np.flatnonzero(select(where, len(rows), table(rows)).mask).tolist()


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ({"size": "S"}, [0, 3]),
        ({"size": "S,M"}, [2]),
        ({"size": "M,S"}, [0, 1, 3]),
        ({"size": ["S", "M"]}, [0, 1, 3]),
        ({"size": {"$in": ["S,M", "L"]}}, [2, 4]),
        ({"size": {"$nin": ["S", "M"]}}, [2, 4, 5]),
        ({"price": 30}, [1, 2]),
        ({"price": "30"}, [1]),
        ({"price": {"$ne": 30}}, [0, 3, 4, 5]),
        ({"price": {"$lt": 30}}, [0, 5]),
        ({"price": {"$gte": 9.99, "$lte": 30}}, [0, 1, 2]),
        ({"price": {"$not": {"$lt": 30}}}, [1, 2, 3, 4]),
        ({"price": {"$exists": False}}, [4]),
        ({"sale": True}, [0]),
        ({"sale": {"$eq": False}}, [1, 3]),
        ({"sale": [True, "maybe"]}, [0, 5]),
        ({"added": {"$gte": "2026-11-30"}}, [0, 1, 2]),
        ({"added": {"$gt": "2026-11-30", "$lt": "2026-12-01"}}, [1, 2]),
        ({"$or": [{"price": {"$gt": 29}}, {"size": "L"}]}, [1, 2, 4]),
        ({"$and": [{"price": {"$gt": 0}}, {"$not": {"size": "S"}}]}, [1, 2]),
    ],
)
def test_what_a_filter_selects(where, found):
    assert rows_of(where) == found


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("price<30", "a filter is an object, not 'price<30'"),
        ({"price": {"lt": 30}}, "no operator 'lt' .did you mean .lt.."),
        ({"price": {"$regex": "x"}}, "no operator '.regex'; there are .eq .ne .lt"),
        ({"price": {"$lt": "30"}}, "compares numbers and dates .* not '30'; write the number without quotes"),
        ({"price": {"$lt": "cheap"}}, "compares numbers and dates .2026-11-30., not 'cheap'"),
        ({"price": {"$lt": True}}, "not true"),
        ({"price": {"$lt": float("nan")}}, "finite numbers"),
        ({"price": 10**400}, "finite numbers"),
        ({"price": None}, "not null; .*exists"),
        ({"price": {}}, "price has no condition"),
        ({"price": [["S"]]}, "compared with a text, number or boolean"),
        ({"price": {"$in": "S"}}, "in takes a list"),
        ({"price": {"$exists": 1}}, "exists takes true or false, not 1"),
        ({"price": {"$not": "S"}}, "not takes operators"),
        ({"$or": []}, "or takes a list of filters"),
        ({"$or": {"price": 3}}, "or takes a list of filters"),
        ({"$and": ["S"]}, "a filter is an object"),
        ({"$nor": [{}]}, "'.nor' joins no filters"),
        ({5: "S"}, "5 joins no filters"),
        ({"$and": [{"price": 3}] * (MAX_CONDITIONS + 1)}, f"more than {MAX_CONDITIONS} conditions"),
    ],
)
def test_what_is_no_filter_is_one_line_with_the_right_form(where, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        rows_of(where)
    assert "\n" not in str(caught.value) and re.search(r"for example \{", str(caught.value))


def test_a_filter_is_not_nested_for_ever():
    deep = {"price": 3}
    for _ in range(MAX_DEPTH):
        deep = {"$not": deep}
    assert len(rows_of(deep)) == 0
    with pytest.raises(UsageError, match="deep"):
        rows_of({"$not": deep})
    column = {"$lt": 3}
    for _ in range(MAX_DEPTH + 1):
        column = {"$not": column}
    with pytest.raises(UsageError, match="deep"):
        rows_of({"price": column})


def test_values_that_no_image_has_and_of_another_type_are_noted_once():
    both = {"$and": [{"price": {"$gt": 1}}, {"price": {"$lt": 30}}], "size": ["XL", "S"], "sale": "tru"}
    assert select(both, len(ROWS), table(ROWS)).notes == (
        "price of 1 image is not a number, such as on request; no comparison holds there",
        "no image has size=XL",
        "no image has sale=tru; did you mean true?",
    )
    assert select({"price": {"$exists": True}}, len(ROWS), table(ROWS)).notes == ()


def naive(row, where):
    """Say whether one image fits: MongoDB's rules, one value at a time."""
    joined = {"$and": all, "$or": any}
    for key, condition in where.items():
        if key == "$not":
            fits = not naive(row, condition)
        elif key in joined:
            fits = joined[key](naive(row, part) for part in condition)
        else:
            fits = naive_value(row.get(key), condition)
        if not fits:
            return False
    return True


def naive_value(value, condition):
    if isinstance(condition, list):
        return any(equal(value, one) for one in condition)
    if not isinstance(condition, dict):
        return equal(value, condition)
    tests = {
        "$eq": lambda operand: equal(value, operand),
        "$ne": lambda operand: not equal(value, operand),
        "$in": lambda operand: any(equal(value, one) for one in operand),
        "$nin": lambda operand: not any(equal(value, one) for one in operand),
        "$exists": lambda operand: (value is not None) == operand,
        "$not": lambda operand: not naive_value(value, operand),
        "$lt": lambda operand: (pair := both(value, operand)) is not None and pair[0] < pair[1],
        "$lte": lambda operand: (pair := both(value, operand)) is not None and pair[0] <= pair[1],
        "$gt": lambda operand: (pair := both(value, operand)) is not None and pair[0] > pair[1],
        "$gte": lambda operand: (pair := both(value, operand)) is not None and pair[0] >= pair[1],
    }
    return all(tests[operator](operand) for operator, operand in condition.items())


def both(value, operand):
    """Return a value and an operand in the operand's type; None where the value is not of it."""
    try:
        if isinstance(operand, str):
            return datetime.fromisoformat(value).replace(tzinfo=UTC), datetime.fromisoformat(operand).replace(
                tzinfo=UTC
            )
        return float(value), operand
    except (TypeError, ValueError):
        return None


def equal(value, operand):
    if value is None:
        return False
    if isinstance(operand, bool):
        return value.lower() in (("true", "yes", "1") if operand else ("false", "no", "0"))
    if isinstance(operand, str):
        return value == operand
    return (pair := both(value, operand)) is not None and pair[0] == pair[1]


CELLS = st.sampled_from(
    ["1", "0", "2.5", "-3", "1e1", "x", "true", "No", "2026-11-30", "2026-12-01T09:30", "2025-01-01"]
)
NUMBERS = st.sampled_from([-3, 0, 1, 2.5, 10])
VALUES = NUMBERS | st.booleans() | st.sampled_from(["x", "y", "1", "2026-11-30"])
ORDERED = NUMBERS | st.sampled_from(["2026-11-30", "2026-12-01T09:30"])
SIMPLE = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("$eq", "$ne"), VALUES),
        **dict.fromkeys(("$in", "$nin"), st.lists(VALUES, max_size=3)),
        **dict.fromkeys(("$lt", "$lte", "$gt", "$gte"), ORDERED),
        "$exists": st.booleans(),
    },
).filter(bool)
CONDITIONS = VALUES | st.lists(VALUES, max_size=3) | SIMPLE | st.fixed_dictionaries({"$not": SIMPLE})
FILTERS = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b"]), CONDITIONS, max_size=2),
    lambda inner: (
        st.fixed_dictionaries({"$not": inner})
        | st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)})
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), CELLS), max_size=6), where=FILTERS)
def test_a_filter_selects_what_the_naive_evaluator_does(rows, where):
    assert rows_of(where, rows) == [number for number, row in enumerate(rows) if naive(row, where)]
