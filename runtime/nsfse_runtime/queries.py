"""What a query may ask, and how one with several pictures, texts and exclusions becomes scores (docs/queries.md)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import NsfseError, UsageError
from nsfse_runtime.features import Floats, PairScores, Pixels, QueryFeatures, Scorer, TargetFeatures, mix_of
from nsfse_runtime.search import pairs_scored


class PictureId(str):
    """The id of a gallery picture and nothing else: no file is looked for under that name."""

    __slots__ = ()


Reference = bytes | str | os.PathLike[str] | PictureId | Pixels
"""A picture's bytes, a file or an id, an id alone, or pixels [h, w, 3] already fitted to the model's `image_size`."""

MINUS_VECTOR, MINUS_WORDS, MINUS_FOUND = 0.2, 0.2, 3.0
"""What a minus-text takes from stage 1's vector, what its words count, and what is found of them (docs/queries.md)."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question to a gallery.

    `references` are one picture or more to start from: files, bytes, or ids of the gallery. `texts` say what should be
    different, one edit each; `minus_texts` name what must not be there, `minus` are pictures that hits must not be
    like. `balance` runs from 0, like the picture alone, over 0.5, both as trained, to 1, like the words alone. `k`,
    `where`, `rerank` and `min_score` are those of `Retriever.query`; with `maps` the evidence has its regions.
    """

    references: tuple[Reference, ...]
    texts: tuple[str, ...] = ()
    minus_texts: tuple[str, ...] = ()
    minus: tuple[Reference, ...] = ()
    balance: float = 0.5
    k: int = 10
    where: Mapping[str, str | Sequence[str]] | None = None
    rerank: int = 100
    min_score: float = 0.0
    maps: bool = False

    @property
    def plain(self) -> bool:
        """Return whether this is one picture and one text, as the model was trained."""
        several = len(self.references) > 1 or len(self.texts) != 1 or self.minus_texts or self.minus
        return not several and self.balance == 0.5

    def check(self) -> None:
        """Raise UsageError for what no gallery can answer."""
        if self.k < 1 or self.rerank < 0:
            raise UsageError(
                f"k is {self.k} and rerank is {self.rerank}; give a k of 1 or more and a rerank of 0 or more"
            )
        if not 0 <= self.min_score <= 1:
            raise UsageError(f"min_score is {self.min_score}; give a confidence from 0 to 1")
        if not 0 <= self.balance <= 1:
            raise UsageError(f"balance is {self.balance}; give 0 (like the picture) to 1 (like the words)")
        if not self.references:
            raise UsageError("a query needs a picture to start from; give one or more references")
        if not self.texts and self.balance > 0:
            raise UsageError("a query needs a text; say what should be different, or give a balance of 0")


@dataclass(frozen=True, slots=True)
class Given:
    """A query and its pictures' features: `references` [m, d], [m, R, d], `minus` [p, d], [p, R, d] if it has any."""

    query: Query
    references: TargetFeatures
    minus: TargetFeatures | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A query as the search takes it.

    `vector` [d] is stage 1's; `parts` has one composed query a reference, and `unwanted` for each of them what S loses
    for a word over the boundary [L]. `against` has a query for each picture to avoid, and `bearable` how high that may
    score before it counts. `tokens` are the L words of all texts, `word_weights`
    [L] their κ for the evidence, whose sizes sum to 1, `texts` which words are of one text. `told` says whether stage 2
    has anything to add.
    """

    vector: Floats
    parts: tuple[QueryFeatures, ...]
    word_weights: Floats
    texts: tuple[slice, ...]
    unwanted: tuple[Floats, ...] = ()
    against: tuple[QueryFeatures, ...] = ()
    bearable: tuple[float, ...] = ()
    told: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the words of all texts."""
        return self.parts[0].tokens

    @property
    def all(self) -> tuple[QueryFeatures, ...]:
        """Return what stage 2 scores: `parts`, then `against`."""
        return self.parts + self.against

    def pairs_scored(self, scorer: Scorer, asked: int, pictures: int) -> int:
        """Return how many candidates stage 2 looks at where `asked` are wanted (see search.pairs_scored).

        What several queries say together is no single vector: a model of one stage has a second one then.
        """
        if not self.told:
            return 0
        return pairs_scored(scorer, asked, pictures) or (asked if len(self.all) > 1 else 0)

    def combined(self, pairs: Sequence[PairScores]) -> PairScores:
        """Return the whole score of K candidates from those of `all`, each of K."""
        if not self.unwanted:
            return pairs[0]
        wanted, avoided = pairs[: len(self.parts)], pairs[len(self.parts) :]
        score = like_all([_less(pair, loss) for pair, loss in zip(wanted, self.unwanted, strict=True)])
        for pair, bearable in zip(avoided, self.bearable, strict=True):
            score = score - 2 * np.maximum(0, pair.score - np.float32(bearable))
        words: Floats = np.mean([pair.word_scores for pair in wanted], axis=0, dtype=np.float32)
        return PairScores(score, words, wanted[0].boundary)

    def fulfilled(self, pair: PairScores) -> NDArray[np.bool_]:
        """Return which of K candidates are over the boundary in every text, its words taken together by their κ."""
        margins = pair.word_scores - pair.boundary
        each = [margins[:, text] @ self.word_weights[text] >= 0 for text in self.texts]
        return np.logical_and.reduce(each) if each else np.ones(len(margins), np.bool_)

    def maps(self, targets: TargetFeatures) -> Floats:
        """Return each word's correspondences [K, L, R] with the regions of K targets, the mean over the references."""
        found: Floats = np.mean([part.words @ targets.regions.swapaxes(1, 2) for part in self.parts], axis=0)
        return found


def _less(pair: PairScores, loss: Floats) -> Floats:
    """Return the score [K] less `loss` [L] for every word as far as it is over the boundary."""
    if not loss.any():
        return pair.score
    found: Floats = pair.score - np.maximum(0, pair.word_scores - np.float32(pair.boundary)) @ loss
    return found


def like_all(scores: Sequence[Floats]) -> Floats:
    """Return one score [K] from those of several references: the least, each less its mean over the candidates."""
    if len(scores) == 1:
        return scores[0]
    each = np.stack(scores)
    means = each.mean(1, keepdims=True)
    found: Floats = (each - means).min(0) + means.mean()
    return found


def ask(scorer: Any, batch: Sequence[Given]) -> list[Asked | NsfseError]:
    """Compose a batch of queries together; one that cannot be read (TextError) does not spoil the others."""
    try:
        return list(_ask(scorer, batch))
    except NsfseError as error:
        if len(batch) == 1:
            return [error]
        return [found for given in batch for found in ask(scorer, [given])]


@dataclass
class _Lane:
    """One reference of one query on its way: `steps` are its composed texts so far, `minus` its minus-texts."""

    query: Query
    start: TargetFeatures
    steps: list[QueryFeatures]
    minus: list[QueryFeatures]

    @property
    def here(self) -> TargetFeatures:
        """Return the picture that the next text changes: the reference, or what the texts so far imagine."""
        return imagined(self.steps[-1]) if self.steps else self.start


def imagined(query: QueryFeatures) -> TargetFeatures:
    """Return the picture that a query asks for, as features [1, d], [1, R, d]: its vector and its kept regions."""
    kept = len(query.probes) - len(query.words)
    return TargetFeatures(query.vector[None], query.probes[None, :kept])


def _ask(scorer: Any, batch: Sequence[Given]) -> list[Asked]:
    lanes = [
        [_Lane(given.query, given.references.take([at]), [], []) for at in range(len(given.references))]
        for given in batch
    ]
    flat = [lane for group in lanes for lane in group]
    for step in range(max((len(lane.query.texts) for lane in flat), default=0)):
        moving = [lane for lane in flat if len(lane.query.texts) > step]
        pictures, texts = [lane.here for lane in moving], [lane.query.texts[step] for lane in moving]
        for lane, found in zip(moving, _compose(scorer, pictures, texts), strict=True):
            lane.steps.append(found)
    named = [(lane, text) for lane in flat for text in lane.query.minus_texts]
    for (lane, _), found in zip(
        named, _compose(scorer, [lane.start for lane, _ in named], [text for _, text in named]), strict=True
    ):
        lane.minus.append(found)
    return [_asked(scorer, given, group) for given, group in zip(batch, lanes, strict=True)]


def _compose(scorer: Scorer, pictures: Sequence[TargetFeatures], texts: Sequence[str]) -> list[QueryFeatures]:
    return scorer.compose(stacked(pictures), texts) if texts else []


def stacked(pictures: Sequence[TargetFeatures]) -> TargetFeatures:
    """Return several pictures' features as one."""
    return TargetFeatures(
        np.concatenate([each.vectors for each in pictures]), np.concatenate([each.regions for each in pictures])
    )


def _asked(scorer: Any, given: Given, lanes: Sequence[_Lane]) -> Asked:
    query = given.query
    if query.plain:
        (part,) = lanes[0].steps
        return Asked(part.vector, (part,), part.word_weights, (slice(0, len(part.tokens)),))
    sentence = _sentence(scorer, query.texts) if query.balance > 0.5 else None
    unwanted = scorer.sentence(list(query.minus_texts)) if query.minus_texts else ()
    parts = tuple(_part(scorer, lane, sentence, unwanted) for lane in lanes)
    mean: Floats = np.mean([part.vector for part in parts], axis=0, dtype=np.float32)
    vector = parts[0].vector if len(parts) == 1 else unit(mean)
    avoided = [given.minus.take([at]) for at in range(len(given.minus))] if given.minus else []
    against = tuple(_picture_alone(picture) for picture in avoided)
    bearable = tuple(_halfway(scorer, each, vector) for each in against)
    told = 0 < query.balance < 1 or bool(query.minus_texts) or bool(against) or (len(parts) > 1 and query.balance == 0)
    losses = tuple(_losses(lane, mix_of(scorer)[0]) for lane in lanes)
    return Asked(vector, parts, _evidence_weights(lanes), _spans(lanes[0]), losses, against, bearable, told)


def _halfway(scorer: Scorer, avoided: QueryFeatures, vector: Floats) -> float:
    """Return what a picture scores against `avoided` half-way from the query's `vector` [d] to that picture itself."""
    ends = TargetFeatures(np.stack([vector, avoided.vector]), np.stack([avoided.probes] * 2))
    return float(scorer.score_pairs(avoided, ends).score.mean())


def _losses(lane: _Lane, w_global: float) -> Floats:
    """Return what S loses for each word [L] over the boundary: only those of minus-texts must not be there."""
    wanted = sum(len(step.words) for step in lane.steps)
    each = [np.zeros(wanted, np.float32), *(np.abs(minus.word_weights) for minus in lane.minus)]
    return np.float32(MINUS_FOUND * w_global) * np.concatenate(each)


def _sentence(scorer: Any, texts: Sequence[str]) -> Floats:
    mean: Floats = np.mean(scorer.sentence(list(texts)), axis=0, dtype=np.float32)
    return unit(mean)


def _evidence_weights(lanes: Sequence[_Lane]) -> Floats:
    """Return κ [L] of all words, those of minus-texts under 0: the mean over the references, sizes summing to 1."""
    none = np.empty(0, np.float32)
    each = [
        np.concatenate([none, *(s.word_weights for s in lane.steps), *(-np.abs(m.word_weights) for m in lane.minus)])
        for lane in lanes
    ]
    mean: Floats = np.mean(each, axis=0, dtype=np.float32)
    return mean / max(float(np.abs(mean).sum()), 1e-12)


def _spans(lane: _Lane) -> tuple[slice, ...]:
    ends = np.cumsum([0, *(len(text.tokens) for text in (*lane.steps, *lane.minus))]).tolist()
    return tuple(slice(start, end) for start, end in pairwise(ends))


def _part(scorer: Any, lane: _Lane, sentence: Floats | None, unwanted: Sequence[Floats]) -> QueryFeatures:
    w_global, w_cross = mix_of(scorer)
    stress = MINUS_WORDS * w_global / w_cross if w_cross else 1.0
    part = joined(lane.steps) if lane.steps else _picture_alone(lane.start)
    if lane.query.balance != 0.5:
        part = balanced(part, lane.start.vectors[0], sentence, lane.query.balance)
    for minus, vector in zip(lane.minus, unwanted, strict=True):
        part = without_words(part, minus, vector, stress)
    return part


def _picture_alone(picture: TargetFeatures) -> QueryFeatures:
    """Return the query of a picture, of one row, without a text: its vector alone counts."""
    regions = picture.regions[0]
    none, zeros = np.empty(0, np.float32), np.zeros(len(regions), np.float32)
    return QueryFeatures(picture.vectors[0], regions[:0], regions, none, zeros, ())


def joined(steps: Sequence[QueryFeatures]) -> QueryFeatures:
    """Return the query of several edits, each composed with what those before it imagine."""
    if len(steps) == 1:
        return steps[0]
    kept = len(steps[-1].probes) - len(steps[-1].words)
    return QueryFeatures(
        steps[-1].vector,
        np.concatenate([step.words for step in steps]),
        np.concatenate([steps[-1].probes[:kept], *(step.probes[kept:] for step in steps)]),
        np.concatenate([step.word_weights for step in steps]),
        np.concatenate([steps[-1].probe_weights[:kept], *(step.probe_weights[kept:] for step in steps)]),
        tuple(token for step in steps for token in step.tokens),
    )


def balanced(query: QueryFeatures, picture: Floats, sentence: Floats | None, balance: float) -> QueryFeatures:
    """Return `query` leant towards its reference's vector `picture` [d] or, where given, the texts' `sentence` [d]."""
    share = np.float32(1 - abs(2 * balance - 1))
    other = picture if sentence is None else sentence
    return replace(
        query,
        vector=unit(share * query.vector + (1 - share) * other) if share else other,
        word_weights=share * query.word_weights,
        probe_weights=share * query.probe_weights,
    )


def without_words(query: QueryFeatures, minus: QueryFeatures, sentence: Floats, stress: float) -> QueryFeatures:
    """Return `query` with the words of a minus-text under 0, `stress` times κ; `sentence` [d] is the text's vector."""
    asked = minus.probes[len(minus.probes) - len(minus.words) :]
    return QueryFeatures(
        unit(query.vector - np.float32(MINUS_VECTOR) * sentence),
        np.concatenate([query.words, minus.words]),
        np.concatenate([query.probes, asked]),
        np.concatenate([query.word_weights, -np.float32(stress) * np.abs(minus.word_weights)]),
        np.concatenate([query.probe_weights, np.zeros(len(asked), np.float32)]),
        query.tokens + minus.tokens,
    )


def unit(vector: Floats) -> Floats:
    """Return `vector` [d] at unit length."""
    found: Floats = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return found
