"""Fit the confidence on ranked lists as serving makes them: of whole galleries and without their right answers.

See docs/method.md §10. Nothing here needs torch: a bundle's scorer does as well as a run's.
"""

from collections.abc import Collection, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse.config import FITTING_QUERIES
from nsfse.data import (
    EvalQuery,
    EvaluationProtocol,
    HasAttributes,
    HasCategoryEdits,
    Source,
    TrainingTriplet,
    calibration_split,
)
from nsfse.evaluation.abstention import FALSE_ALARMS, CalibrationSample, compose_samples
from nsfse.evaluation.evaluate import BATCH, image_ids, scorable_queries, unlisted
from nsfse.evaluation.features import EncodedImages, Images, encode_in_batches
from nsfse.training.word_bounds import fit_word_bounds, word_margins
from nsfse_runtime.inference.confidence import Decision, logistic, products, standardised
from nsfse_runtime.types import Reals, Scorer

SAMPLES = 5  # the first hits of either list that are fitted to
QUERY_FACTOR = 3  # times as many queries as ω is fitted to: there are more weights, and it is done once
WORD_QUERIES = 400  # at least, and under twice as many, where so many name attributes
CATEGORY_EDITS = 0.5
"""As many queries as this share of the others exclude or replace the kind of thing, where the source knows kinds."""
L2 = 30.0
STEPS, LEAST = 100, 1e-6


def fit_decision(
    scorer: Scorer,
    source: Source,
    split: str,
    triplets: Sequence[TrainingTriplet],
    images: Images,
    queries: int = FITTING_QUERIES,
) -> Decision | None:
    """Fit the confidence and its threshold.

    About QUERY_FACTOR times `queries` are ranked. Where the source knows kinds of things, CATEGORY_EDITS of that many
    more exclude or replace the kind: no training text does, and hits for these are to have a low confidence.

    Args:
        scorer: The model.
        source: Its calibration split is used, where it has one.
        split: Otherwise the protocols of this split.
        triplets: Otherwise these training triplets.
        images: Reads the source's images for the scorer.
        queries: How many queries ω is fitted to.

    Returns:
        The decision, or None where there is no query.
    """
    held = calibration_split(source)
    given = [held] if held else [protocol for protocol in source.protocols(split) if protocol.remove_reference]
    protocols = given or [protocol_from_triplets(triplets)]
    answered: list[CalibrationSample] = []
    edited: list[CalibrationSample] = []
    words: list[tuple[Reals, NDArray[np.bool_]]] = []
    encoded: EncodedImages | None = None
    missing = frozenset(source.missing) | unlisted(source, protocols)
    for protocol, phrasings in zip(protocols, _spread(protocols, missing, QUERY_FACTOR * queries), strict=True):
        if not phrasings:
            continue
        wanted = image_ids(protocol, [query for query, _ in phrasings])
        if encoded is None or not encoded.covers(wanted):
            encoded = encode_in_batches(scorer, wanted, images, batch=BATCH)
        answered += compose_samples(scorer, protocol, phrasings, encoded)
        if isinstance(source, HasCategoryEdits):
            edits = source.category_edits(protocol.gallery, round(CATEGORY_EDITS * len(phrasings)))
            edited += compose_samples(scorer, protocol, [(query, 0) for query in edits], encoded, unanswered=True)
        if isinstance(source, HasAttributes):
            labelled = [one for one in phrasings if one[0].word_labels]
            fewer = labelled[:: max(1, len(labelled) // WORD_QUERIES)]
            words.append(word_margins(scorer, source, protocol, fewer, encoded))
    if not answered:
        return None
    bounds = fit_word_bounds(*map(np.concatenate, zip(*words, strict=True))) if words else None
    return msgspec.structs.replace(fit_samples(answered, edited), word_bounds=bounds)


def protocol_from_triplets(triplets: Sequence[TrainingTriplet]) -> EvaluationProtocol:
    """Return training triplets as queries of a gallery of their own images."""
    shown = (triplet for triplet in triplets if not triplet.recolour_seed)  # serving knows no recoloured references
    known = tuple(triplet.as_query() for triplet in shown)
    gallery = tuple(dict.fromkeys(name for q in known for name in (q.targets[0], q.reference)))
    return EvaluationProtocol("training", "1", gallery, known)


def _spread(
    protocols: Sequence[EvaluationProtocol], missing: Collection[str], rankings: int
) -> list[list[tuple[EvalQuery, int]]]:
    """Choose queries for each protocol, evenly spread over all, in one phrasing after another."""
    every = [
        (number, q)
        for number, protocol in enumerate(protocols)
        for q in scorable_queries(protocol, missing)
        if q.targets and q.reference
    ]
    chosen = np.linspace(0, len(every), min(rankings, len(every)), endpoint=False).astype(int)
    phrasings: list[list[tuple[EvalQuery, int]]] = [[] for _ in protocols]
    for turn in range(max(1, rankings // max(1, len(every)))):
        for number, row in enumerate(chosen):
            protocol_number, query = every[row]
            if turn < len(query.texts):
                phrasings[protocol_number].append((query, (number + turn) % len(query.texts)))
    return phrasings


def fit_samples(answered: Sequence[CalibrationSample], edited: Sequence[CalibrationSample] = ()) -> Decision:
    """Fit to all lists; the threshold parts galleries with an answer of `answered` from all that show no right hit."""
    features, right = samples([*answered, *edited])
    centre, spread = _scale(features)
    weights, bias = logistic_regression(products(standardised(features, centre, spread)), right, L2)
    numbers = {"centre": centre.tolist(), "spread": spread.tolist(), "weights": weights.tolist(), "bias": bias}
    decision = msgspec.convert(numbers | {"threshold": 0.0}, Decision)
    complete = np.array([decision.confidence(one.complete).max() for one in answered])
    gone = [one.without for one in answered] + [one.complete for one in edited if not one.right.any()]
    without = np.array([decision.confidence(part).max(initial=0.0) for part in gone])
    return msgspec.structs.replace(decision, threshold=threshold_of(complete, without))


def threshold_of(complete: Reals, without: Reals) -> float:
    """Return the confidence from which on a hit matches.

    `complete` [N] are the best confidences of galleries with an answer, `without` [M] of those without. The threshold
    parts the two as well as possible, with at most FALSE_ALARMS of the former below it.
    """
    choices = np.sort(complete)[: int(FALSE_ALARMS * len(complete)) + 1]
    rejected = (without < choices[:, None]).mean(1)
    false_alarms = (complete < choices[:, None]).mean(1)
    return float(choices[np.argmax(rejected - false_alarms)])


def samples(answered: Sequence[CalibrationSample]) -> tuple[Reals, NDArray[np.bool_]]:
    """Return the features [N, F] of the first SAMPLES hits of all lists, and whether each is right [N]."""
    features = [part[:SAMPLES] for one in answered for part in (one.complete, one.without)]
    right = [part[:SAMPLES] for one in answered for part in (one.right, np.zeros(len(one.without), np.bool_))]
    return np.concatenate(features), np.concatenate(right)


def _scale(features: Reals) -> tuple[Reals, Reals]:
    """Return the mean [F] and the standard deviation [F] of `features` [N, F]; 1 for one that does not differ."""
    spread = features.std(0)
    return features.mean(0), np.where(spread > LEAST, spread, 1.0)


def logistic_regression(features: Reals, right: NDArray[np.bool_], l2: float = 1.0) -> tuple[Reals, float]:
    """Return weights [F] and a bias that tell how likely a sample is right, from `features` [N, F] and `right` [N].

    Convex: cross entropy and `l2` on the weights of standardised features, by Newton's steps, halved until they lead
    down. Labels are as Platt's, a little within 0 and 1, so that a few samples, or samples all alike, are not certain.
    """
    centre, spread = _scale(features)
    rows = np.column_stack([(features - centre) / spread, np.ones(len(features))])
    yes, no = np.count_nonzero(right), np.count_nonzero(~right)
    goal = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    penalty = np.append(np.full(features.shape[1], l2), 0.0)

    def loss(parameters: Reals) -> float:
        logits = rows @ parameters
        return float((np.logaddexp(0.0, logits) - goal * logits).sum() + 0.5 * (penalty * parameters**2).sum())

    fitted = np.zeros(rows.shape[1])
    for _ in range(STEPS):
        likely = logistic(rows @ fitted)
        slope = rows.T @ (likely - goal) + penalty * fitted
        step = np.linalg.solve((rows.T * (likely * (1.0 - likely))) @ rows + np.diag(penalty), slope)
        while loss(fitted - step) > loss(fitted):
            step = 0.5 * step
        fitted = fitted - step
    weights = fitted[:-1] / spread
    return weights, float(fitted[-1] - weights @ centre)
