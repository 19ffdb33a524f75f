"""Significance of a difference: a paired bootstrap over queries and seeds (docs/benchmarks.md).

Queries and trainings (seeds) are two crossed samples, so both are resampled in each replicate. This
is the pigeonhole bootstrap (Owen, Annals of Applied Statistics 1(2), 2007), which errs on the side
of no difference. Few seeds underestimate their own deviation; their part is therefore widened to
Student's t with Welch's degrees of freedom.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse.data import gallery_digest
from nsfse.evaluation.metrics import ranks_of_targets
from nsfse.evaluation.results import ProtocolResult

RESAMPLES = 10_000
LEVEL = 0.05
"""A lead is claimed from a p under it."""
RECALLS = ("R@1", "R@10")
OLDER = "results of an older version"
OTHER_QUERIES = "not the same queries"

_START = 20240229  # of every random choice here
_CHUNK = 1_000_000  # drawn queries at once
_DECIMALS = 9  # two shares of the same size differ by rounding alone

Hits = NDArray[np.int64]


class Difference(msgspec.Struct, frozen=True):
    """How far one method is over another, in points, with a 95 % interval and a two-sided p."""

    points: float
    low: float
    high: float
    p: float


class Versus(msgspec.Struct, frozen=True):
    """A method over `method`: the differences of R@1 and R@10, or why there is no p."""

    method: str
    r1: Difference | None = None
    r10: Difference | None = None
    seeds_resampled: bool = False
    no_p: str = ""


@dataclass(frozen=True)
class Outcomes:
    """Hits of one method on one protocol, by seed: `hits` [S, Q, 2] phrasings with a right answer at R@1 and R@10.

    `phrasings` [Q] is how many each query has; `queries` is a digest of gallery and queries.
    """

    hits: Hits
    phrasings: Hits
    queries: str


def outcomes(result: ProtocolResult) -> dict[str, str]:
    """Return the hits behind a score, compact enough for its JSON file.

    Args:
        result: A protocol's rankings.

    Returns:
        For R@1 and R@10 a word for each query, with 1 or 0 for each phrasing. `queries` is a digest of
        the gallery and the queries: two methods are paired only where it is equal.
    """
    row_of = {item: row for row, item in enumerate(result.protocol.gallery)}
    rankings = result.rankings
    targets = [frozenset(row_of[item] for item in r.query.targets if item in row_of) for r in rankings]
    ranks = ranks_of_targets([ranked.rows for ranked in rankings], targets).tolist()
    starts = [number for number, ranked in enumerate(rankings) if ranked.position == 0]
    groups = [range(*pair) for pair in pairwise([*starts, len(rankings)])]
    digest = hashlib.sha256(gallery_digest(result.protocol.gallery).encode())
    for group in groups:
        query = rankings[group[0]].query
        digest.update(
            repr((query.reference_ids, query.texts, query.more_texts, query.negative_texts, query.targets)).encode()
        )
    words = {
        f"R@{k}": " ".join("".join("01"[ranks[number] < k] for number in group) for group in groups) for k in (1, 10)
    }
    return {"queries": digest.hexdigest(), **words}


def read_outcomes(scores: Sequence[Mapping[str, Any]]) -> Outcomes | None:
    """Return what `outcomes` noted in the scores of one method, one for each seed; None where one lacks it."""
    entries = [entry.get("outcomes") for entry in scores]
    if not entries or not all(entries) or len({entry["queries"] for entry in entries if entry}) > 1:
        return None
    words = [[entry[recall].split(" ") for recall in RECALLS] for entry in entries if entry]
    hits = np.array([[[word.count("1") for word in query_words] for query_words in seed] for seed in words], np.int64)
    phrasings = np.array([len(word) for word in words[0][0]], np.int64)
    return Outcomes(hits.transpose(0, 2, 1), phrasings, entries[0]["queries"] if entries[0] else "")


class Bootstrap:
    """Replicates of every method's recalls on one protocol: the same resampled queries for all, seeds of its own.

    What a comparison of two methods gives depends on these two alone, not on the others nor on their order.
    """

    def __init__(self, outcomes_of: Mapping[str, Outcomes], resamples: int = RESAMPLES) -> None:
        """Resample methods that have the same queries. Raises ValueError where they differ."""
        if len({method_outcomes.queries for method_outcomes in outcomes_of.values()}) > 1:
            raise ValueError("only methods of the same queries are paired")
        self._means: dict[str, NDArray[np.float64]] = {}
        self._replicates: dict[str, NDArray[np.float64]] = {}
        self._seeds: dict[str, NDArray[np.float64]] = {}
        if not outcomes_of:
            return
        phrasings = next(iter(outcomes_of.values())).phrasings
        whole = math.lcm(*np.unique(phrasings).tolist())
        # Sums of whole numbers: no order of summing them, nor a processor's, changes any of them.
        shares = {
            name: method_outcomes.hits * (whole // phrasings)[:, None] for name, method_outcomes in outcomes_of.items()
        }
        columns = np.concatenate([hits.transpose(1, 0, 2).reshape(len(phrasings), -1) for hits in shares.values()], 1)
        sums = _resampled_sums(columns, resamples)
        column = 0
        for name, hits in shares.items():
            seeds, queries, recalls = hits.shape
            part = sums[:, column : column + seeds * recalls].reshape(resamples, seeds, recalls)
            column += seeds * recalls
            self._replicates[name] = part * (100.0 / (whole * queries))
            self._means[name] = hits.sum(1) * (100.0 / (whole * queries))
            rng = np.random.default_rng([_START, zlib.crc32(name.encode())])
            drawn = rng.integers(0, seeds, (resamples, seeds))
            self._seeds[name] = np.stack([(drawn == seed).sum(1) for seed in range(seeds)], 1) / seeds

    def versus(self, method: str, other: str) -> Versus:
        """Compare two methods; seeds count as resampled where both have two or more."""
        r1, r10 = (self._difference(method, other, recall) for recall in range(len(RECALLS)))
        return Versus(other, r1, r10, min(len(self._means[method]), len(self._means[other])) > 1)

    def _difference(self, method: str, other: str, recall: int) -> Difference:
        means = [self._means[name][:, recall] for name in (method, other)]
        replicates = [self._replicates[name][:, :, recall] for name in (method, other)]
        points = means[0].mean() - means[1].mean()
        if min(map(len, means)) > 1:
            weights = [self._seeds[name] for name in (method, other)]
            crossed = [(w * y).sum(1) for w, y in zip(weights, replicates, strict=True)]
            moved = [(w * mean).sum(1) - mean.mean() for w, mean in zip(weights, means, strict=True)]
            wider = [move * math.sqrt(len(mean) / (len(mean) - 1)) for move, mean in zip(moved, means, strict=True)]
            scale = self._student(means, (method, other))
            values = crossed[0] - crossed[1] - (moved[0] - moved[1]) + scale * (wider[0] - wider[1])
        else:
            values = replicates[0].mean(1) - replicates[1].mean(1)
        values = np.round(values, _DECIMALS)
        tail = 1 + min(int((values <= 0).sum()), int((values >= 0).sum()))
        low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
        return Difference(float(points), float(low), float(high), min(1.0, 2 * tail / (len(values) + 1)))

    def _student(self, means: Sequence[NDArray[np.float64]], names: tuple[str, str]) -> NDArray[np.float64]:
        """Return √(ν/χ²_ν) for each replicate, ν Welch's degrees of freedom of two `means` [S]."""
        parts = [float(mean.var(ddof=1)) / len(mean) for mean in means]
        below = sum(part**2 / (len(mean) - 1) for part, mean in zip(parts, means, strict=True))
        resamples = len(self._seeds[names[0]])
        if below == 0:
            return np.ones(resamples)
        freedom = sum(parts) ** 2 / below
        rng = np.random.default_rng([_START, zlib.crc32("\n".join(sorted(names)).encode())])
        return np.sqrt(freedom / rng.chisquare(freedom, resamples))


def _resampled_sums(columns: Hits, resamples: int) -> NDArray[np.float64]:
    """Return [resamples, C]: the sums of `columns` [Q, C] over Q rows drawn with replacement, each time anew."""
    rng = np.random.default_rng(_START)
    queries = len(columns)
    step = max(1, _CHUNK // max(1, queries))
    wide = columns.astype(np.float64)
    parts = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, queries, (size, queries)) + queries * np.arange(size)[:, None]
        parts.append(np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries) @ wide)
    return np.concatenate(parts)
