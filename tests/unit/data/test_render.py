import itertools
import time

import numpy as np
import pytest

from nsfse.data.synthetic.render import BACKGROUNDS, COLOURS, MILD, PATTERNS, SIZES, STRONG, paint
from nsfse.data.synthetic.shapes import SHAPES, shape

PLAIN = {
    "category": "shirt",
    "colour": "red",
    "pattern": "plain",
    "length": "long",
    "detail": "with",
    "size": "large",
    "background": "white",
}
CHANGES = {
    "category": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "length": ("short", "medium", "long"),
    "detail": ("with", "without"),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}


def test_same_arguments_give_the_same_pixels_and_another_seed_others():
    first = paint(PLAIN, 7, (64, 48))
    assert first.shape == (64, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, paint(PLAIN, 7, (64, 48)))
    assert not np.array_equal(first, paint(PLAIN, 8, (64, 48)))


@pytest.mark.parametrize("category", SHAPES)
def test_each_attribute_changes_what_is_drawn(category):
    plain = PLAIN | {"category": category}
    for name, values in CHANGES.items():
        seen = [paint(plain | {name: value}, 3, (64, 64), MILD).astype(int) for value in values]
        for one, other in itertools.combinations(seen, 2):
            changed = (np.abs(one - other).max(axis=2) > 24).mean()
            assert changed > 0.004, f"{category}: {name}"


@pytest.mark.parametrize("category", SHAPES)
def test_shapes_are_centred_and_stay_in_the_image(category):
    for length, detail in itertools.product((0.0, 0.5, 1.0), (True, False)):
        points = np.concatenate([part.points for part in shape(category, length, detail)])
        assert np.allclose(points.min(axis=0) + points.max(axis=0), 0, atol=1e-9)
        assert np.abs(points).max() < 1.15


@pytest.mark.parametrize("size", [(16, 16), (40, 96), (224, 160)])
def test_any_size_shows_the_product(size):
    image = paint(PLAIN, 1, size, STRONG)
    red = (image[..., 0] > 110) & (image[..., 1] < 80)
    assert image.shape == (*size, 3)
    assert red.sum() > 0.1 * min(size) ** 2


def test_an_image_takes_no_multiple_of_the_time_it_should():
    """3 ms are the aim and the research log has the figure; here only what no slow machine explains fails."""
    paint(PLAIN, 0, (64, 64))
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for seed in range(24):
            paint(PLAIN | {"category": list(SHAPES)[seed % 12], "pattern": PATTERNS[seed % 6]}, seed, (64, 64))
        best = min(best, (time.process_time() - started) / 24)
    assert best < 0.02
