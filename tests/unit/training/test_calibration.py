"""What tells a match is fitted on lists as serving makes them; the fit is convex, and the same each time."""

import msgspec
import numpy as np
import pytest

from nsfse.data import EvalQuery, EvaluationProtocol, TrainingTriplet
from nsfse.evaluation.abstention import compose_samples
from nsfse.evaluation.features import encode_in_batches
from nsfse.training import calibration
from nsfse.training.calibration import fit_decision, logistic_regression, threshold_of
from nsfse_runtime.inference.confidence import FEATURES, logistic
from tests.unit.evaluation.number_scorer import NumberScorer, number_images

GALLERY = tuple("0123456789")


class Numbers:
    """A source of NumberScorer's images with the protocols that it is given."""

    name, missing = "numbers", ()

    def __init__(self, *protocols):
        self.found = list(protocols)

    def protocols(self, split):
        return self.found if split == "val" else []


def protocol(*queries, gallery=GALLERY, **options):
    return EvaluationProtocol("toy", "1", gallery, queries, ks=(1, 2, 5), **options)


def asked(*queries, **options):
    toy = protocol(*queries, **options)
    encoded = encode_in_batches(NumberScorer(), GALLERY, number_images)
    return list(compose_samples(NumberScorer(), toy, [(q, at) for q in queries for at in range(len(q.texts))], encoded))


def test_the_regression_parts_what_one_feature_tells_whatever_its_unit():
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 5)) * [1, 1, 1000, 0.001, 0] + [0, 5, 0, 0, 7]
    right = features[:, 2] > 300
    features[right, 2] += 1000
    weights, bias = logistic_regression(features, right)
    confidence = logistic(features @ weights + bias)
    assert confidence[right].min() > confidence[~right].max()
    assert confidence[right].mean() > 0.95 and confidence[~right].mean() < 0.05
    again = logistic_regression(features.copy(), right.copy())
    assert again[0].tolist() == weights.tolist() and again[1] == bias
    assert weights[4] == 0  # a feature that never differs


def test_the_regression_is_the_least_of_its_loss():
    random = np.random.default_rng(1)
    features = random.normal(size=(300, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + 3
    right = random.random(300) < logistic(features @ [1.0, -2.0] + 1)
    weights, bias = logistic_regression(features, right)
    yes = right.sum()
    goal = np.where(right, (yes + 1) / (yes + 2), 1 / (302 - yes))
    pull = (features - features.mean(0)).T @ (logistic(features @ weights + bias) - goal)
    np.testing.assert_allclose(pull / features.std(0) + weights * features.std(0), 0, atol=1e-6)
    assert logistic(features @ weights + bias).mean() == pytest.approx(goal.mean())  # calibrated as a whole


@pytest.mark.parametrize("right", [[False] * 8, [True] * 8, [True]])
def test_samples_that_are_all_alike_are_not_certain(right):
    features = np.arange(5.0 * len(right)).reshape(-1, 5)
    weights, bias = logistic_regression(features, np.array(right))
    likely = (len(right) + 1) / (len(right) + 2)
    expected = likely if right[0] else 1 - likely
    np.testing.assert_allclose(logistic(features @ weights + bias), expected, atol=1e-6)


def test_the_threshold_parts_galleries_with_and_without_an_answer():
    complete = np.linspace(0.5, 1.0, 40)
    assert threshold_of(complete, np.linspace(0.0, 0.4, 40)) == 0.5  # nothing is said falsely where nothing need be
    mixed = threshold_of(complete, np.linspace(0.4, 0.6, 41))
    assert mixed == np.sort(complete)[4]  # the best would be 0.6: as many as may be said falsely, and no more
    few = np.append(complete[1:], 0.3)
    assert threshold_of(few, np.linspace(0.2, 0.49, 40)) == complete[1]  # one of 40 falsely, for all the others


def test_a_query_is_asked_with_its_answers_there_and_without_them():
    (one,) = asked(EvalQuery("0", ("3 1",), ("1", "2", "0")))
    # 3, then 1; the seven others tie in gallery order, of which 2 comes first. 0 is the reference, and no hit.
    assert one.right.tolist() == [False, True, True, *[False] * 6]
    assert one.complete[:3, 0].round(2).tolist() == [1.0, 0.99, 0.0]
    assert one.without[:2, 0].round(2).tolist() == [1.0, 0.0] and len(one.without) == 7
    np.testing.assert_allclose(one.complete[0, 2], 1 - 1.99 / 9, atol=1e-6)
    np.testing.assert_allclose(one.without[0, 2], 1 - 1 / 7, atol=1e-6)


def test_what_cannot_be_asked_is_left_out():
    assert asked(EvalQuery("0", ("three",), ("3",)), EvalQuery("0", ("1",), ("0",))) == []
    (all_right,) = asked(EvalQuery("0", ("1",), GALLERY))
    assert all_right.right.all() and all_right.without.shape == (0, len(FEATURES))


def queries(count=40, texts=1):
    random = np.random.default_rng(5)
    chosen = [random.choice(10, 3, replace=False).tolist() for _ in range(count)]
    return [EvalQuery(str(a), tuple(f"{b} {c}" for _ in range(texts)), (str(b),)) for a, b, c in chosen]


def triplets():
    return [TrainingTriplet(query.reference, query.texts[0], query.targets) for query in queries()]


def test_a_decision_knows_when_the_answers_are_gone():
    source = Numbers(protocol(*queries()))
    found = fit_decision(NumberScorer(), source, "val", [], number_images)
    assert found == fit_decision(NumberScorer(), source, "val", [], number_images)
    lists = asked(*queries())
    best = np.array([found.confidence(one.complete).max() for one in lists])
    gone = np.array([found.confidence(one.without).max() for one in lists])
    assert (best >= found.threshold).mean() >= 0.9 and (gone < found.threshold).all()


def test_where_there_is_no_protocol_training_triplets_are_asked():
    own = TrainingTriplet("1", "8", ("1",), recolour_seed=3)
    found = fit_decision(NumberScorer(), Numbers(), "val", [own, *triplets()], number_images)
    assert found == fit_decision(NumberScorer(), Numbers(), "val", triplets(), number_images)
    gallery = tuple(dict.fromkeys(name for q in queries() for name in (q.targets[0], q.reference)))
    same = Numbers(protocol(*queries(), gallery=gallery))
    assert found == fit_decision(NumberScorer(), same, "val", [], number_images)
    assert fit_decision(NumberScorer(), Numbers(), "val", [own], number_images) is None


def test_no_more_is_asked_than_needed_and_all_phrasings_alike():
    told = [EvalQuery("0", ("1", "1 2", "1 3", "1 4"), ("1",), pairid=str(n)) for n in range(50)]
    hidden = EvalQuery("0", ("1",), ())
    (first, second) = calibration._spread([protocol(*told[:30], hidden), protocol(*told[30:])], (), 20)
    assert (len(first), len(second)) == (12, 8) and len({q.pairid for q, _ in first + second}) == 20
    assert np.bincount([position for _, position in first + second]).tolist() == [5, 5, 5, 5]
    (few,) = calibration._spread([protocol(*told[:7])], (), 20)
    assert len(few) == 14 and len({(q.pairid, position) for q, position in few}) == 14
    assert calibration._spread([protocol(*told, gallery=("0", "5"))], (), 20) == [[]]


def test_a_protocol_that_keeps_the_reference_is_not_asked():
    removed, kept = protocol(*queries()), protocol(*queries()[:5], remove_reference=False)
    found = fit_decision(NumberScorer(), Numbers(removed, kept), "val", [], number_images)
    assert found == fit_decision(NumberScorer(), Numbers(removed), "val", [], number_images)
    assert msgspec.convert(msgspec.to_builtins(found), type(found)) == found


class Kinds(Numbers):
    """The same source, which knows of every image what kind of thing it shows."""

    def category_edits(self, gallery, count):
        self.asked = count
        return tuple(EvalQuery(str(at % 10), (f"{at % 10} 0",), ()) for at in range(count))


def test_edits_of_a_kind_that_the_model_does_not_follow_are_not_sure():
    """A text that names what the reference is, and no answer is right: as "not a bag", read as "a bag"."""
    source = Kinds(protocol(*queries()))
    plain, wary = (
        fit_decision(NumberScorer(), each, "val", [], number_images) for each in (Numbers(*source.found), source)
    )
    assert source.asked == round(calibration.CATEGORY_EDITS * len(queries()))
    encoded = encode_in_batches(NumberScorer(), GALLERY, number_images)
    asks = [(edit, 0) for edit in source.category_edits(GALLERY, 20)]
    toy = protocol(*(edit for edit, _ in asks))
    assert list(compose_samples(NumberScorer(), toy, asks, encoded)) == []
    lists = list(compose_samples(NumberScorer(), toy, asks, encoded, unanswered=True))
    assert len(lists) == 20 and all(len(one.without) == 0 and not one.right.any() for one in lists)
    before, after = (np.mean([found.confidence(one.complete).max() for one in lists]) for found in (plain, wary))
    assert after < 0.5 * before
    assert not any((wary.confidence(one.complete) >= wary.threshold).any() for one in lists)
    good = [(wary.confidence(one.complete) >= wary.threshold).any() for one in asked(*queries())]
    assert np.mean(good) >= 0.9
