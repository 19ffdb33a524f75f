"""What a query may ask, and how one with several pictures, texts and exclusions becomes scores (docs/queries.md)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from nsfse_runtime.errors import NsfseError, UsageError
from nsfse_runtime.features import Floats, PairScores, Pixels, QueryFeatures, Scorer, TargetFeatures


class PictureId(str):
    """The id of a gallery picture and nothing else: no file is looked for under that name."""

    __slots__ = ()


Reference = bytes | str | os.PathLike[str] | PictureId | Pixels
"""A picture's bytes, a file or an id, an id alone, or pixels [h, w, 3] already fitted to the model's `image_size`."""

MINUS_TEXT, MINUS_PICTURE = 0.5, 0.5
"""How much of the stage-1 vector an exclusion takes away (β and η of docs/queries.md)."""


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

    `vector` [d] is stage 1's; `parts` has one composed query a reference, `against` one a picture to avoid. `told` says
    whether stage 2 has anything to add.
    """

    vector: Floats
    parts: tuple[QueryFeatures, ...]
    against: tuple[QueryFeatures, ...] = ()
    told: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the words of all texts, L of them."""
        return self.parts[0].tokens

    @property
    def word_weights(self) -> Floats:
        """Return κ [L], the mean over the references, their sizes summing to 1."""
        if len(self.parts) == 1 and abs(float(np.abs(self.parts[0].word_weights).sum()) - 1) < 1e-3:
            return self.parts[0].word_weights
        mean: Floats = np.mean([part.word_weights for part in self.parts], axis=0, dtype=np.float32)
        return mean / max(float(np.abs(mean).sum()), 1e-12)

    @property
    def all(self) -> tuple[QueryFeatures, ...]:
        """Return what stage 2 scores: `parts`, then `against`."""
        return self.parts + self.against

    def maps(self, targets: TargetFeatures) -> Floats:
        """Return each word's correspondences [K, L, R] with the regions of K targets, the mean over the references."""
        found: Floats = np.mean([part.words @ targets.regions.swapaxes(1, 2) for part in self.parts], axis=0)
        return found

    def combined(self, pairs: Sequence[PairScores]) -> PairScores:
        """Return the whole score of K candidates from those of `all`, each of K."""
        if len(pairs) == 1:
            return pairs[0]
        wanted, unwanted = pairs[: len(self.parts)], pairs[len(self.parts) :]
        score = like_all([pair.score for pair in wanted])
        for pair in unwanted:
            score = score - pair.score
        words: Floats = np.mean([pair.word_scores for pair in wanted], axis=0, dtype=np.float32)
        return PairScores(score, words, wanted[0].boundary)


def like_all(scores: Sequence[Floats]) -> Floats:
    """Return one score [K] from those of several references."""
    mean: Floats = np.mean(scores, axis=0, dtype=np.float32)
    return mean


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
        return Asked(lanes[0].steps[0].vector, (lanes[0].steps[0],))
    sentence = _sentence(scorer, query.texts) if query.balance > 0.5 else None
    unwanted = scorer.sentence(list(query.minus_texts)) if query.minus_texts else np.empty((0, 0), np.float32)
    avoided = [given.minus.take([at]) for at in range(len(given.minus))] if given.minus else []
    parts = tuple(_part(lane, sentence, unwanted, [picture.vectors[0] for picture in avoided]) for lane in lanes)
    against = tuple(against_picture(parts, picture) for picture in avoided)
    mean: Floats = np.mean([part.vector for part in parts], axis=0, dtype=np.float32)
    told = 0 < query.balance < 1 or bool(query.minus_texts or against)
    return Asked(unit(mean), parts, against, told)


def _sentence(scorer: Any, texts: Sequence[str]) -> Floats:
    return unit(scorer.sentence(list(texts)).sum(0))


def _part(lane: _Lane, sentence: Floats | None, unwanted: Floats, avoided: Sequence[Floats]) -> QueryFeatures:
    part = joined(lane.steps) if lane.steps else _picture_alone(lane.start)
    if lane.query.balance != 0.5:
        part = balanced(part, lane.start.vectors[0], sentence, lane.query.balance)
    for minus, vector in zip(lane.minus, unwanted, strict=True):
        part = without_words(part, minus, vector)
    for vector in avoided:
        part = replace(part, vector=away(part.vector, vector))
    return part


def _picture_alone(picture: TargetFeatures) -> QueryFeatures:
    """Return the query of a picture without a text: its vector alone counts."""
    return _without_text(picture.vectors[0], picture.regions[0], np.zeros(len(picture.regions[0]), np.float32))


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
    """Return `query` leant towards its reference's vector `picture` [d] or the texts' `sentence` [d]."""
    share = 1 - abs(2 * balance - 1)
    other = picture if sentence is None else sentence
    return replace(
        query,
        vector=unit(share * query.vector + (1 - share) * other) if share else other,
        word_weights=np.float32(share) * query.word_weights,
        probe_weights=np.float32(share) * query.probe_weights,
    )


def without_words(query: QueryFeatures, minus: QueryFeatures, sentence: Floats) -> QueryFeatures:
    """Return `query` with the words of a minus-text, which must not be there; `sentence` [d] is the text's."""
    asked = minus.probes[len(minus.probes) - len(minus.words) :]
    return QueryFeatures(
        unit(query.vector - np.float32(MINUS_TEXT) * sentence),
        np.concatenate([query.words, minus.words]),
        np.concatenate([query.probes, asked]),
        np.concatenate([query.word_weights, -np.abs(minus.word_weights)]),
        np.concatenate([query.probe_weights, np.zeros(len(asked), np.float32)]),
        query.tokens + minus.tokens,
    )


def away(vector: Floats, picture: Floats) -> Floats:
    """Return `vector` [d] less what `picture` [d] has beside it."""
    beside = picture - (picture @ vector) * vector
    return unit(vector - np.float32(MINUS_PICTURE) * beside)


def against_picture(parts: Sequence[QueryFeatures], picture: TargetFeatures) -> QueryFeatures:
    """Return the query for what `picture`, of one row, has and no part asks for: hits that have it are worse."""
    regions = picture.regions[0]
    near = np.max([(regions @ part.probes[: len(regions)].T).max(1) for part in parts], axis=0)
    strange = np.clip(1 - near, 0, None)
    return _without_text(np.zeros_like(picture.vectors[0]), regions, strange / max(float(strange.sum()), 1e-12))


def _without_text(vector: Floats, regions: Floats, weights: Floats) -> QueryFeatures:
    """Return a query of kept `regions` [R, d] with `weights` [R] and no words."""
    return QueryFeatures(vector, regions[:0], regions, weights[:0].astype(np.float32), weights.astype(np.float32), ())


def unit(vector: Floats) -> Floats:
    """Return `vector` [d] at unit length."""
    found: Floats = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return found
