"""What tells a match, fitted on lists as serving makes them, the right answers in the gallery and then taken out.

docs/method.md §10. Nothing here needs torch: a bundle's scorer does as well as a run's.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse.config import FITTING_QUERIES
from nsfse.data import Protocol, Source, Triplet, held_out
from nsfse.encoded import EncodedPictures, Images, encode_pictures
from nsfse.evaluate import BATCH, answerable, pictures_of
from nsfse.ranking import Search, TextScorer
from nsfse_runtime.decision import FEATURES, Decision, Reals, hit_features, logistic
from nsfse_runtime.features import QueryFeatures
from nsfse_runtime.search import Ranking

__all__ = ["Asked", "ask", "fit_decision", "logistic_regression", "of_training", "quantile", "samples"]

RERANK, HITS = 100, 10  # what Retriever.query does unless told otherwise
SAMPLES = 5  # the first hits of either list that are fitted to
FALSE_ALARMS = 0.1  # share of complete galleries of which it may be said that nothing in them matches
L2 = 1.0
STEPS, LEAST = 100, 1e-6

Asks = Sequence[tuple[Triplet, int]]
"""Queries, each with the position of one of its phrasings."""


@dataclass(frozen=True)
class Asked:
    """One query, asked of a whole gallery and of the same without its right answers.

    `complete` [K, 6] and `without` [M, 6] are the features of the first hits (see nsfse_runtime.decision), `right` [K]
    says which of the former are right.
    """

    complete: Reals
    right: NDArray[np.bool_]
    without: Reals


def fit_decision(
    scorer: TextScorer,
    source: Source,
    split: str,
    triplets: Sequence[Triplet],
    images: Images,
    queries: int = FITTING_QUERIES,
) -> Decision | None:
    """Fit what tells a match on what `source` holds out, or on the protocols of `split`, or on training `triplets`.

    About so many `queries` are asked. `images` reads the source's pictures for the scorer. None where there is no query
    to ask.
    """
    held = held_out(source)
    given = [held] if held else [found for found in source.protocols(split) if found.remove_reference]
    protocols = given or [of_training(triplets)]
    asked: list[Asked] = []
    encoded: EncodedPictures | None = None
    for protocol, asks in zip(protocols, _spread(protocols, source.missing, queries), strict=True):
        if not asks:
            continue
        wanted = pictures_of(protocol, [query for query, _ in asks])
        if encoded is None or not encoded.covers(wanted):
            encoded = encode_pictures(scorer, wanted, images, batch=BATCH)
        asked += ask(scorer, protocol, asks, encoded)
    return _fit(asked) if asked else None


def of_training(triplets: Sequence[Triplet]) -> Protocol:
    """Return training triplets as queries of a gallery of their own pictures."""
    known = tuple(triplet for triplet in triplets if not triplet.recolour)  # serving knows no recoloured references
    gallery = tuple(dict.fromkeys(name for t in known for name in (t.targets[0], t.reference)))
    return Protocol("training", "1", gallery, known)


def _spread(protocols: Sequence[Protocol], missing: Collection[str], rankings: int) -> list[list[tuple[Triplet, int]]]:
    """Choose, for each protocol, what to ask: queries spread evenly over all, told in one phrasing after another."""
    every = [(at, q) for at, protocol in enumerate(protocols) for q in answerable(protocol, missing) if q.targets]
    chosen = np.linspace(0, len(every), min(rankings, len(every)), endpoint=False).astype(int)
    asks: list[list[tuple[Triplet, int]]] = [[] for _ in protocols]
    for turn in range(max(1, rankings // max(1, len(every)))):
        for number, row in enumerate(chosen):
            at, query = every[row]
            if turn < len(query.texts):
                asks[at].append((query, (number + turn) % len(query.texts)))
    return asks


def ask(scorer: TextScorer, protocol: Protocol, asks: Asks, encoded: EncodedPictures) -> Iterator[Asked]:
    """Ask `asks` of the protocol's gallery as serving does, each twice; those that serving would refuse are left out.

    A query's own reference is no hit, and a query that the gallery cannot answer is left out, too.
    """
    search = Search(scorer, protocol, encoded, RERANK)
    gallery = frozenset(protocol.gallery)
    for start in range(0, len(asks), BATCH):
        chunk = asks[start : start + BATCH]
        for (query, _), composed in zip(chunk, search.composed(chunk), strict=True):
            answers = gallery.intersection(query.targets) - {query.reference}
            if composed is None or not answers:
                continue
            whole = search.ranking(composed, query.reference, HITS)
            without = search.ranking(composed, query.reference, HITS, answers)
            right = np.array([protocol.gallery[row] in answers for row in whole.rows], np.bool_)
            yield Asked(_features(composed, whole), right, _features(composed, without))


def _features(query: QueryFeatures, ranking: Ranking) -> Reals:
    found = hit_features(query, ranking)
    return np.empty((0, len(FEATURES))) if found is None else found


def _fit(asked: Sequence[Asked]) -> Decision:
    weights, bias = logistic_regression(*samples(asked))
    decision = msgspec.convert({"weights": weights.tolist(), "bias": bias, "threshold": 0.0}, Decision)
    best = np.array([decision.confidence(one.complete).max() for one in asked])
    return msgspec.structs.replace(decision, threshold=quantile(best, FALSE_ALARMS))


def samples(asked: Sequence[Asked]) -> tuple[Reals, NDArray[np.bool_]]:
    """Return the features [N, 6] of the first SAMPLES hits of all lists, and whether each is right [N]."""
    features = [part[:SAMPLES] for one in asked for part in (one.complete, one.without)]
    right = [part[:SAMPLES] for one in asked for part in (one.right, np.zeros(len(one.without), np.bool_))]
    return np.concatenate(features), np.concatenate(right)


def quantile(values: Reals, share: float) -> float:
    """Return the value that all but `share` of `values` [N] reach."""
    return float(np.sort(values)[int(share * len(values))])


def logistic_regression(features: Reals, right: NDArray[np.bool_]) -> tuple[Reals, float]:
    """Return weights [F] and a bias that tell how likely a sample is right, from `features` [N, F] and `right` [N].

    Convex: cross entropy and L2 on the weights of standardised features, by Newton's steps, halved until they lead
    down. Labels are as Platt's, a little within 0 and 1, so that a few samples, or samples all alike, are not certain.
    """
    centre, spread = features.mean(0), features.std(0)
    spread = np.where(spread > LEAST, spread, 1.0)
    rows = np.column_stack([(features - centre) / spread, np.ones(len(features))])
    yes, no = np.count_nonzero(right), np.count_nonzero(~right)
    goal = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    penalty = np.append(np.full(features.shape[1], L2), 0.0)

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
