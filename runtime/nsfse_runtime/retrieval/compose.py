"""Images, texts and exclusions → what the search takes (docs/queries.md): a batch of queries, composed together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.retrieval.query import Asked, Query
from nsfse_runtime.types import Floats, QueryFeatures, Scorer, TargetFeatures

MINUS_VECTOR, MINUS_WORDS, MINUS_FOUND = 0.2, 0.1, 3.0
"""What a minus-text takes from stage 1's vector, what its words count, and what is found of them (docs/queries.md)."""


@dataclass(frozen=True, slots=True)
class Given:
    """A query and its images' features: `references` [m, d], [m, R, d], `negative_images` [p, d], [p, R, d] or None."""

    query: Query
    references: TargetFeatures
    negative_images: TargetFeatures | None = None


def ask(scorer: Scorer, batch: Sequence[Given]) -> list[Asked | NsfseError]:
    """Compose a batch of queries together; one that cannot be read (TextError) does not spoil the others."""
    try:
        return list(_ask(scorer, batch))
    except NsfseError as error:
        if len(batch) == 1:
            return [error]
        return [found for given in batch for found in ask(scorer, [given])]


@dataclass
class _Lane:
    """One reference of one query on its way: `steps` are its composed texts so far, `negatives` its negative texts."""

    query: Query
    start: TargetFeatures
    steps: list[QueryFeatures]
    negatives: list[QueryFeatures]

    @property
    def here(self) -> TargetFeatures:
        """Return the image that the next text changes: the reference, or what the texts so far imagine."""
        return imagined(self.steps[-1]) if self.steps else self.start


def imagined(query: QueryFeatures) -> TargetFeatures:
    """Return the image that a query asks for, as features [1, d], [1, R, d]: its vector and its kept regions."""
    kept = len(query.probes) - len(query.words)
    return TargetFeatures(query.vector[None], query.probes[None, :kept])


def _ask(scorer: Scorer, batch: Sequence[Given]) -> list[Asked]:
    lanes = [
        [_Lane(given.query, given.references.take([at]), [], []) for at in range(len(given.references))]
        for given in batch
    ]
    flat = [lane for group in lanes for lane in group]
    for step in range(max((len(lane.query.texts) for lane in flat), default=0)):
        moving = [lane for lane in flat if len(lane.query.texts) > step]
        images, texts = [lane.here for lane in moving], [lane.query.texts[step] for lane in moving]
        for lane, found in zip(moving, _compose(scorer, images, texts), strict=True):
            lane.steps.append(found)
    named = [(lane, text) for lane in flat for text in lane.query.negative_texts]
    for (lane, _), found in zip(
        named, _compose(scorer, [lane.start for lane, _ in named], [text for _, text in named]), strict=True
    ):
        lane.negatives.append(found)
    return [_asked(scorer, given, group) for given, group in zip(batch, lanes, strict=True)]


def _compose(scorer: Scorer, images: Sequence[TargetFeatures], texts: Sequence[str]) -> list[QueryFeatures]:
    return scorer.compose(stacked(images), texts) if texts else []


def stacked(images: Sequence[TargetFeatures]) -> TargetFeatures:
    """Return several images' features as one."""
    return TargetFeatures(
        np.concatenate([each.vectors for each in images]), np.concatenate([each.regions for each in images])
    )


def _asked(scorer: Scorer, given: Given, lanes: Sequence[_Lane]) -> Asked:
    query = given.query
    if query.plain:
        (part,) = lanes[0].steps
        spans, reference = (slice(0, len(part.tokens)),), lanes[0].start.vectors[0]
        return Asked(part.vector, (part,), part.word_weights, spans, reference=reference)
    sentence = _sentence(scorer, query.texts) if query.balance > 0.5 else None
    unwanted = scorer.sentence(list(query.negative_texts)) if query.negative_texts else ()
    parts = tuple(_part(scorer, lane, sentence, unwanted) for lane in lanes)
    mean: Floats = np.mean([part.vector for part in parts], axis=0, dtype=np.float32)
    vector = parts[0].vector if len(parts) == 1 else unit(mean)
    avoided = (
        [given.negative_images.take([at]) for at in range(len(given.negative_images))] if given.negative_images else []
    )
    against = tuple(_image_alone(image) for image in avoided)
    bearable = tuple(_halfway(scorer, each, vector) for each in against)
    told = (
        0 < query.balance < 1 or bool(query.negative_texts) or bool(against) or (len(parts) > 1 and query.balance == 0)
    )
    losses = tuple(_losses(lane, scorer.info.mix[0]) for lane in lanes)
    return Asked(vector, parts, _evidence_weights(lanes), _spans(lanes[0]), losses, against, bearable, told)


def _halfway(scorer: Scorer, avoided: QueryFeatures, vector: Floats) -> float:
    """Return what an image scores against `avoided` half-way from the query's `vector` [d] to that image itself."""
    ends = TargetFeatures(np.stack([vector, avoided.vector]), np.stack([avoided.probes] * 2))
    return float(scorer.score_pairs(avoided, ends).score.mean())


def _losses(lane: _Lane, w_global: float) -> Floats:
    """Return what S loses for each word [N, L] of N minus-texts, each taken as a whole."""
    ends = np.cumsum([sum(len(step.words) for step in lane.steps), *(len(minus.words) for minus in lane.negatives)])
    losses = np.zeros((len(lane.negatives), ends[-1]), np.float32)
    for row, minus, start in zip(losses, lane.negatives, ends, strict=False):
        row[start : start + len(minus.words)] = MINUS_FOUND * w_global * np.abs(minus.word_weights)
    return losses


def _sentence(scorer: Scorer, texts: Sequence[str]) -> Floats:
    mean: Floats = np.mean(scorer.sentence(list(texts)), axis=0, dtype=np.float32)
    return unit(mean)


def _evidence_weights(lanes: Sequence[_Lane]) -> Floats:
    """Return κ [L] of all words, those of minus-texts under 0: the mean over the references, sizes summing to 1."""
    none = np.empty(0, np.float32)
    each = [
        np.concatenate(
            [none, *(s.word_weights for s in lane.steps), *(-np.abs(m.word_weights) for m in lane.negatives)]
        )
        for lane in lanes
    ]
    mean: Floats = np.mean(each, axis=0, dtype=np.float32)
    return mean / max(float(np.abs(mean).sum()), 1e-12)


def _spans(lane: _Lane) -> tuple[slice, ...]:
    ends = np.cumsum([0, *(len(text.tokens) for text in (*lane.steps, *lane.negatives))]).tolist()
    return tuple(slice(start, end) for start, end in pairwise(ends))


def _part(scorer: Scorer, lane: _Lane, sentence: Floats | None, unwanted: Iterable[Floats]) -> QueryFeatures:
    w_global, w_cross = scorer.info.mix
    stress = MINUS_WORDS * w_global / w_cross if w_cross else 1.0
    part = joined(lane.steps) if lane.steps else _image_alone(lane.start)
    if lane.query.balance != 0.5:
        part = balanced(part, lane.start.vectors[0], sentence, lane.query.balance)
    for minus, vector in zip(lane.negatives, unwanted, strict=True):
        part = without_words(part, minus, vector, stress)
    return part


def _image_alone(image: TargetFeatures) -> QueryFeatures:
    """Return the query of an image, of one row, without a text: its vector alone counts."""
    regions = image.regions[0]
    none, zeros = np.empty(0, np.float32), np.zeros(len(regions), np.float32)
    return QueryFeatures(image.vectors[0], regions[:0], regions, none, zeros, ())


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


def balanced(query: QueryFeatures, image: Floats, sentence: Floats | None, balance: float) -> QueryFeatures:
    """Return `query` leant towards its reference's vector `image` [d] or, where given, the texts' `sentence` [d]."""
    share = np.float32(1 - abs(2 * balance - 1))
    other = image if sentence is None else sentence
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
