import pytest

from nsfse.data.text.exclusions import excludes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("blue jogging bottoms rather than a skirt", "skirt"),
        ("I don't want trousers, I want a skirt", "trousers"),
        ("Black instead of grey", "grey"),
        ("no red or white stripes", "stripe"),
        ("not a light blue dress but a shirt", "light blue"),
        ("never dresses", "dress"),
    ],
)
def test_what_comes_after_a_cue_is_excluded(text, name):
    assert excludes(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a skirt rather than trousers", "skirt"),
        ("no pattern, in grey", "grey"),
        ("not a t-shirt", "shirt"),
        ("another skirt", "skirt"),
        ("knotted skirt", "skirt"),
        ("make it red instead", "red"),
    ],
)
def test_what_comes_before_it_or_in_another_clause_is_not(text, name):
    assert not excludes(text, name)
