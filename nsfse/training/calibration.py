"""What tells a match, fitted on lists as serving makes them, the right answers in the gallery and then taken out.

docs/method.md §10. Nothing here needs torch: a bundle's scorer does as well as a run's.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse.config import FITTING_QUERIES
from nsfse.data import EvalQuery, EvaluationProtocol, HasCategoryEdits, Source, TrainingTriplet, calibration_split
from nsfse.evaluation.evaluate import BATCH, image_ids, scorable_queries, unlisted
from nsfse.evaluation.features import EncodedImages, Images, encode_in_batches
from nsfse.evaluation.ranker import ProtocolRanker
from nsfse_runtime.inference.confidence import FEATURES, Decision, logistic, products, standardised
from nsfse_runtime.retrieval.hit_features import hit_features
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import QueryFeatures, Reals, Scorer

__all__ = ["Asked", "ask", "fit_decision", "logistic_regression", "of_training", "samples", "threshold_of"]

RERANK, HITS = 100, 10  # what Retriever.query does unless told otherwise
SAMPLES = 5  # the first hits of either list that are fitted to
FALSE_ALARMS = 0.1  # share of complete galleries of which it may be said, at most, that nothing in them matches
ASKED = 3  # times as many queries as the mix is fitted to: there are more weights, and it is done once
CATEGORY_EDITS = 0.5
"""As many queries as this share of the others exclude or replace the kind of thing, where the source knows kinds."""
L2 = 30.0
STEPS, LEAST = 100, 1e-6

Asks = Sequence[tuple[EvalQuery, int]]
"""Queries, each with the position of one of its phrasings."""


@dataclass(frozen=True)
class Asked:
    """One query, asked of a whole gallery and of the same without its right answers.

    `complete` [K, F] and `without` [M, F] are the features of the first hits (see inference/confidence.py), `right` [K]
    says which of the former are right.
    """

    complete: Reals
    right: NDArray[np.bool_]
    without: Reals


def fit_decision(
    scorer: Scorer,
    source: Source,
    split: str,
    triplets: Sequence[TrainingTriplet],
    images: Images,
    queries: int = FITTING_QUERIES,
) -> Decision | None:
    """Fit what tells a match on what `source` holds out, or on the protocols of `split`, or on training `triplets`.

    About ASKED times `queries` are asked, and of the same galleries CATEGORY_EDITS of that many which exclude or
    replace the kind of thing, where the source knows it: no training text does, and what a model that cannot follow
    finds for these is to have a low confidence. `images` reads the source's images for the scorer. None where there
    is no query to ask.
    """
    held = calibration_split(source)
    given = [held] if held else [found for found in source.protocols(split) if found.remove_reference]
    protocols = given or [of_training(triplets)]
    asked: list[Asked] = []
    edited: list[Asked] = []
    encoded: EncodedImages | None = None
    missing = frozenset(source.missing) | unlisted(source, protocols)
    for protocol, asks in zip(protocols, _spread(protocols, missing, ASKED * queries), strict=True):
        if not asks:
            continue
        wanted = image_ids(protocol, [query for query, _ in asks])
        if encoded is None or not encoded.covers(wanted):
            encoded = encode_in_batches(scorer, wanted, images, batch=BATCH)
        asked += ask(scorer, protocol, asks, encoded)
        if isinstance(source, HasCategoryEdits):
            edits = source.category_edits(protocol.gallery, round(CATEGORY_EDITS * len(asks)))
            edited += ask(scorer, protocol, [(query, 0) for query in edits], encoded, unanswered=True)
    return _fit(asked, edited) if asked else None


def of_training(triplets: Sequence[TrainingTriplet]) -> EvaluationProtocol:
    """Return training triplets as queries of a gallery of their own images."""
    shown = (triplet for triplet in triplets if not triplet.recolour_seed)  # serving knows no recoloured references
    known = tuple(triplet.as_query() for triplet in shown)
    gallery = tuple(dict.fromkeys(name for q in known for name in (q.targets[0], q.reference)))
    return EvaluationProtocol("training", "1", gallery, known)


def _spread(
    protocols: Sequence[EvaluationProtocol], missing: Collection[str], rankings: int
) -> list[list[tuple[EvalQuery, int]]]:
    """Choose, for each protocol, what to ask: queries spread evenly over all, told in one phrasing after another."""
    every = [(at, q) for at, protocol in enumerate(protocols) for q in scorable_queries(protocol, missing) if q.targets]
    chosen = np.linspace(0, len(every), min(rankings, len(every)), endpoint=False).astype(int)
    asks: list[list[tuple[EvalQuery, int]]] = [[] for _ in protocols]
    for turn in range(max(1, rankings // max(1, len(every)))):
        for number, row in enumerate(chosen):
            at, query = every[row]
            if turn < len(query.texts):
                asks[at].append((query, (number + turn) % len(query.texts)))
    return asks


def ask(
    scorer: Scorer, protocol: EvaluationProtocol, asks: Asks, encoded: EncodedImages, *, unanswered: bool = False
) -> Iterator[Asked]:
    """Ask `asks` of the protocol's gallery as serving does, each twice; those that serving would refuse are left out.

    A query's own reference is no hit. One that the gallery cannot answer is left out, or, where `unanswered`, asked
    once: there is nothing to take away.
    """
    search = ProtocolRanker(scorer, protocol, encoded, RERANK)
    gallery = frozenset(protocol.gallery)
    found = scorer.info.boundaries
    views = found.views if found else 0

    def features(query: QueryFeatures, reference: str, ranking: Ranking) -> Reals:
        targets = search.targets([protocol.gallery[row] for row in ranking.rows])
        rows = hit_features(query, search.targets([reference]).vectors[0], ranking, targets, views)
        return np.empty((0, len(FEATURES) + views)) if rows is None else rows

    for start in range(0, len(asks), BATCH):
        chunk = asks[start : start + BATCH]
        for (query, _), composed in zip(chunk, search.composed(chunk), strict=True):
            answers = gallery.intersection(query.targets) - {query.reference}
            if composed is None or not (answers or unanswered):
                continue
            whole = features(composed, query.reference, ranking := search.ranking(composed, query.reference, HITS))
            right = np.array([protocol.gallery[row] in answers for row in ranking.rows], np.bool_)
            rest = search.ranking(composed, query.reference, HITS, answers) if answers else None
            yield Asked(whole, right, whole[:0] if rest is None else features(composed, query.reference, rest))


def _fit(asked: Sequence[Asked], edited: Sequence[Asked] = ()) -> Decision:
    """Fit to all lists; the threshold parts galleries with an answer of `asked` from all that show no right hit."""
    features, right = samples([*asked, *edited])
    centre, spread = _scale(features)
    weights, bias = logistic_regression(products(standardised(features, centre, spread)), right, L2)
    numbers = {"centre": centre.tolist(), "spread": spread.tolist(), "weights": weights.tolist(), "bias": bias}
    decision = msgspec.convert(numbers | {"threshold": 0.0}, Decision)
    complete = np.array([decision.confidence(one.complete).max() for one in asked])
    gone = [one.without for one in asked] + [one.complete for one in edited if not one.right.any()]
    without = np.array([decision.confidence(part).max(initial=0.0) for part in gone])
    return msgspec.structs.replace(decision, threshold=threshold_of(complete, without))


def threshold_of(complete: Reals, without: Reals) -> float:
    """Return from where on a hit matches, given the best confidence of galleries with answers [N] and without [M].

    It parts the two as well as can be, that nothing matches being said of FALSE_ALARMS of the former at most.
    """
    choices = np.sort(complete)[: int(FALSE_ALARMS * len(complete)) + 1]
    said = (without < choices[:, None]).mean(1)
    falsely = (complete < choices[:, None]).mean(1)
    return float(choices[np.argmax(said - falsely)])


def samples(asked: Sequence[Asked]) -> tuple[Reals, NDArray[np.bool_]]:
    """Return the features [N, F] of the first SAMPLES hits of all lists, and whether each is right [N]."""
    features = [part[:SAMPLES] for one in asked for part in (one.complete, one.without)]
    right = [part[:SAMPLES] for one in asked for part in (one.right, np.zeros(len(one.without), np.bool_))]
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

    def loss(found: Reals) -> float:
        logits = rows @ found
        return float((np.logaddexp(0.0, logits) - goal * logits).sum() + 0.5 * (penalty * found**2).sum())

    found = np.zeros(rows.shape[1])
    for _ in range(STEPS):
        given = logistic(rows @ found)
        slope = rows.T @ (given - goal) + penalty * found
        step = np.linalg.solve((rows.T * (given * (1.0 - given))) @ rows + np.diag(penalty), slope)
        while loss(found - step) > loss(found):
            step = 0.5 * step
        found = found - step
    weights = found[:-1] / spread
    return weights, float(found[-1] - weights @ centre)
