"""From where on a word is called matched or mismatched: nine verdicts in ten must be true."""

import numpy as np
import pytest

from nsfse.training.word_bounds import LEAST_WORDS, PRECISION, fit_word_bounds


def test_each_bound_is_the_nearest_to_0_of_the_wanted_precision():
    # Over 0.5 all are right, between 0 and 0.5 every other one; under -0.2 all are wrong, from there to 0 none.
    high, middle = np.linspace(0.5, 1, 200), np.linspace(0.01, 0.49, 200)
    near, low = np.linspace(-0.19, -0.01, 200), np.linspace(-1, -0.2, 200)
    margins = np.concatenate([high, middle, near, low])
    fulfilled = np.concatenate([np.ones(200), np.arange(200) % 2, np.ones(200), np.zeros(200)]).astype(bool)
    below, above = fit_word_bounds(margins, fulfilled)
    assert fulfilled[margins >= above].mean() >= PRECISION > fulfilled[margins >= above - 0.05].mean()
    assert (~fulfilled[margins <= below]).mean() >= PRECISION > (~fulfilled[margins <= below + 0.05]).mean()
    assert 0.3 < above < 0.5 and -0.2 < below < -0.1


def test_sure_words_need_no_gap():
    margins = np.linspace(-1, 1, 400)
    assert fit_word_bounds(margins, margins > 0) == pytest.approx((0, 0), abs=0.01)


@pytest.mark.parametrize("count", [0, 2 * LEAST_WORDS - 2])
def test_few_words_give_no_bounds(count):
    margins = np.linspace(-1, 1, count)
    assert fit_word_bounds(margins, margins > 0) is None


def test_words_that_tell_nothing_give_no_bounds():
    assert fit_word_bounds(np.linspace(-1, 1, 400), np.arange(400) % 2 == 0) is None
