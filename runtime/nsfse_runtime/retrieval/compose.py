"""Images, texts and exclusions → what the search takes (docs/queries.md): a batch of queries, composed together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.retrieval.query import ComposedQuery, Query
from nsfse_runtime.types import Floats, QueryFeatures, Scorer, TargetFeatures, vector_only_query

NEGATIVE_VECTOR_SHARE = 0.2
"""What a negative text takes from the stage-1 vector (docs/queries.md)."""
NEGATIVE_WORD_SHARE = 0.1
"""How much the words of a negative text count in S."""
NEGATIVE_PENALTY = 3.0
"""How much S loses for the words of a negative text over the boundary."""
NEGATIVE_SENTENCE_SHARE = 0.4
"""What a negative text takes from the vector of words alone (docs/queries.md §10)."""


@dataclass(frozen=True, slots=True)
class QueryInputs:
    """A query with the features of its images.

    Attributes:
        query: The query.
        references: Features of its m references, [m, d] and [m, R, d]; None without any.
        negative_images: Features of its p negative images, [p, d] and [p, R, d]; None without any.
    """

    query: Query
    references: TargetFeatures | None
    negative_images: TargetFeatures | None = None


@dataclass
class _ReferenceState:
    """One reference of one query while it is composed: its `edits` so far, and its composed negative texts."""

    query: Query
    reference: TargetFeatures
    edits: list[QueryFeatures] = field(default_factory=list)
    negatives: list[QueryFeatures] = field(default_factory=list)

    @property
    def current(self) -> TargetFeatures:
        """Return the image that the next text edits: the reference, or the result of the edits so far."""
        return as_target_features(self.edits[-1]) if self.edits else self.reference


def compose_batch(scorer: Scorer, batch: Sequence[QueryInputs]) -> list[ComposedQuery | NsfseError]:
    """Compose a batch of queries together.

    Args:
        scorer: The model.
        batch: Queries with the features of their images.

    Returns:
        For each query what the search takes, or the error (TextError) for which it alone cannot be
        composed.
    """
    try:
        return list(_compose_all(scorer, batch))
    except NsfseError as error:
        if len(batch) == 1:
            return [error]
        return [composed for inputs in batch for composed in compose_batch(scorer, [inputs])]


def as_target_features(query: QueryFeatures) -> TargetFeatures:
    """Return the image that a query describes, as features [1, d], [1, R, d]: its vector and its first probes."""
    count = len(query.probes) - len(query.words)
    return TargetFeatures(query.vector[None], query.probes[None, :count])


def stack_features(images: Sequence[TargetFeatures]) -> TargetFeatures:
    """Return several images' features as one."""
    vectors = np.concatenate([image.vectors for image in images])
    return TargetFeatures(vectors, np.concatenate([image.regions for image in images]))


def _compose_all(scorer: Scorer, batch: Sequence[QueryInputs]) -> list[ComposedQuery]:
    groups = [
        [_ReferenceState(inputs.query, inputs.references.take([row])) for row in range(len(inputs.references))]
        if inputs.references
        else []
        for inputs in batch
    ]
    states = [state for group in groups for state in group]
    for step in range(max((len(state.query.texts) for state in states), default=0)):
        unfinished = [state for state in states if len(state.query.texts) > step]
        images, texts = [state.current for state in unfinished], [state.query.texts[step] for state in unfinished]
        for state, edit in zip(unfinished, _compose(scorer, images, texts), strict=True):
            state.edits.append(weigh_edit(edit, state.current.vectors[0], state.query.weights[step]))
    negatives = [(state, text) for state in states for text in state.query.negative_texts]
    images, texts = [state.reference for state, _ in negatives], [text for _, text in negatives]
    for (state, _), negative in zip(negatives, _compose(scorer, images, texts), strict=True):
        state.negatives.append(negative)
    return [
        replace(build_composed_query(scorer, inputs, group), images=inputs.references)
        for inputs, group in zip(batch, groups, strict=True)
    ]


def _compose(scorer: Scorer, images: Sequence[TargetFeatures], texts: Sequence[str]) -> list[QueryFeatures]:
    return scorer.compose(stack_features(images), texts) if texts else []


def build_composed_query(scorer: Scorer, inputs: QueryInputs, states: Sequence[_ReferenceState]) -> ComposedQuery:
    """Return what the search takes, from the composed texts of each reference."""
    query = inputs.query
    if query.is_simple:
        (part,) = states[0].edits
        texts, reference = (slice(0, len(part.tokens)),), states[0].reference.vectors[0]
        return ComposedQuery(part.vector, (part,), part.word_weights, texts, reference=reference)
    sentence = _mean_sentence(scorer, query) if query.share_of_words > 0.5 else None
    negative_sentences = _negative_sentences(scorer, query)
    if sentence is not None and not states:
        return _words_alone(scorer, inputs, sentence, negative_sentences)
    parts = tuple(_part(scorer, state, sentence, negative_sentences) for state in states)
    mean: Floats = np.mean([part.vector for part in parts], axis=0, dtype=np.float32)
    vector = parts[0].vector if len(parts) == 1 else unit(mean)
    negative_queries = _negative_queries(inputs)
    return ComposedQuery(
        vector=vector,
        parts=parts,
        word_weights=_evidence_weights(states),
        texts=_text_slices(states[0]),
        word_penalties=tuple(_word_penalties(state, scorer.info.mix[0]) for state in states),
        negative_queries=negative_queries,
        negative_thresholds=tuple(_negative_threshold(scorer, negative, vector) for negative in negative_queries),
        needs_rerank=(
            0 < query.share_of_words < 1
            or bool(query.negative_texts or negative_queries)
            or (len(parts) > 1 and query.share_of_words == 0)
        ),
    )


def _words_alone(
    scorer: Scorer, inputs: QueryInputs, sentence: Floats, negative_sentences: Iterable[Floats]
) -> ComposedQuery:
    """Return the query of texts without an image: the vector of their `sentence` [d], and no words of evidence."""
    for negative in negative_sentences:
        sentence = sentence - np.float32(NEGATIVE_SENTENCE_SHARE) * negative
    negative_queries, vector = _negative_queries(inputs), unit(sentence)
    part = replace(negative_queries[0], vector=vector) if negative_queries else vector_only_query(vector)
    no_words = np.empty(0, np.float32)
    return ComposedQuery(
        vector=vector,
        parts=(part,),
        word_weights=no_words,
        texts=(slice(0, 0),) * (len(inputs.query.texts) + len(inputs.query.negative_texts)),
        word_penalties=(no_words.reshape(0, 0),),
        negative_queries=negative_queries,
        negative_thresholds=tuple(_negative_threshold(scorer, negative, vector) for negative in negative_queries),
        needs_rerank=bool(negative_queries),
    )


def _negative_queries(inputs: QueryInputs) -> tuple[QueryFeatures, ...]:
    images = inputs.negative_images
    return tuple(_image_query(images.take([row])) for row in range(len(images))) if images else ()


def _negative_threshold(scorer: Scorer, negative: QueryFeatures, vector: Floats) -> float:
    """Return the score of an image half-way from the query's `vector` [d] to a negative image, with that image."""
    ends = TargetFeatures(np.stack([vector, negative.vector]), np.stack([negative.probes] * 2))
    return float(scorer.score_pairs(negative, ends).score.mean())


def _word_penalties(state: _ReferenceState, w_global: float) -> Floats:
    """Return what S loses for each word [N, L] of N negative texts, each as a whole."""
    first = sum(len(edit.words) for edit in state.edits)
    ends = np.cumsum([first, *(len(negative.words) for negative in state.negatives)])
    penalties = np.zeros((len(state.negatives), ends[-1]), np.float32)
    weighted = zip(penalties, state.negatives, state.query.negative_weights, strict=True)
    for (row, negative, weight), start in zip(weighted, ends, strict=False):
        row[start : start + len(negative.words)] = NEGATIVE_PENALTY * w_global * weight * np.abs(negative.word_weights)
    return penalties


def _mean_sentence(scorer: Scorer, query: Query) -> Floats:
    return unit(np.asarray(query.weights, np.float32) @ scorer.sentence(list(query.texts)))


def _negative_sentences(scorer: Scorer, query: Query) -> Floats:
    """Return the sentence of each negative text [N, d], as long as its weight."""
    if not query.negative_texts:
        return np.empty((0, 0), np.float32)
    weights = np.asarray(query.negative_weights, np.float32)
    sentences: Floats = weights[:, None] * scorer.sentence(list(query.negative_texts))
    return sentences


def _evidence_weights(states: Sequence[_ReferenceState]) -> Floats:
    """Return κ [L] of all words: the mean over the references; sizes sum to 1, those of negative texts are under 0."""
    none = np.empty(0, np.float32)
    weights = [
        np.concatenate(
            [
                none,
                *(edit.word_weights for edit in state.edits),
                *(
                    -weight * np.abs(negative.word_weights)
                    for negative, weight in zip(state.negatives, state.query.negative_weights, strict=True)
                ),
            ]
        )
        for state in states
    ]
    mean: Floats = np.mean(weights, axis=0, dtype=np.float32)
    return mean / max(float(np.abs(mean).sum()), 1e-12)


def _text_slices(state: _ReferenceState) -> tuple[slice, ...]:
    """Return which words are of one text."""
    ends = np.cumsum([0, *(len(text.tokens) for text in (*state.edits, *state.negatives))]).tolist()
    return tuple(slice(start, end) for start, end in pairwise(ends))


def _part(
    scorer: Scorer, state: _ReferenceState, sentence: Floats | None, negative_sentences: Iterable[Floats]
) -> QueryFeatures:
    """Return the query of one reference with all texts."""
    w_global, w_cross = scorer.info.mix
    scale = NEGATIVE_WORD_SHARE * w_global / w_cross if w_cross else 1.0
    part = join_edits(state.edits) if state.edits else _image_query(state.reference)
    if state.query.share_of_words != 0.5:
        part = apply_balance(part, state.reference.vectors[0], sentence, state.query.share_of_words)
    weights = state.query.negative_weights
    for negative, vector, weight in zip(state.negatives, negative_sentences, weights, strict=True):
        part = add_negative_text(part, negative, vector, scale * weight)
    return part


def _image_query(image: TargetFeatures) -> QueryFeatures:
    """Return the query of an image, of one row, without a text: its vector alone counts."""
    regions = image.regions[0]
    none, zeros = np.empty(0, np.float32), np.zeros(len(regions), np.float32)
    return QueryFeatures(image.vectors[0], regions[:0], regions, none, zeros, ())


def weigh_edit(edit: QueryFeatures, before: Floats, weight: float) -> QueryFeatures:
    """Return `edit` so far from the vector `before` it [d] as `weight` says, 1 as composed, and its words so heavy."""
    if weight == 1:
        return edit
    factor = np.float32(weight)
    return replace(
        edit,
        vector=unit(before + factor * (edit.vector - before)),
        word_weights=factor * edit.word_weights,
        probe_weights=factor * edit.probe_weights,
    )


def join_edits(edits: Sequence[QueryFeatures]) -> QueryFeatures:
    """Return the query of several edits, each composed with the result of those before it."""
    if len(edits) == 1:
        return edits[0]
    last = edits[-1]
    count = len(last.probes) - len(last.words)
    return QueryFeatures(
        last.vector,
        np.concatenate([edit.words for edit in edits]),
        np.concatenate([last.probes[:count], *(edit.probes[count:] for edit in edits)]),
        np.concatenate([edit.word_weights for edit in edits]),
        np.concatenate([last.probe_weights[:count], *(edit.probe_weights[count:] for edit in edits)]),
        tuple(token for edit in edits for token in edit.tokens),
    )


def apply_balance(query: QueryFeatures, image: Floats, sentence: Floats | None, balance: float) -> QueryFeatures:
    """Return `query` moved towards its reference's vector `image` [d] or, where given, the texts' `sentence` [d]."""
    share = np.float32(1 - abs(2 * balance - 1))
    other = image if sentence is None else sentence
    return replace(
        query,
        vector=unit(share * query.vector + (1 - share) * other) if share else other,
        word_weights=share * query.word_weights,
        probe_weights=share * query.probe_weights,
    )


def add_negative_text(query: QueryFeatures, negative: QueryFeatures, sentence: Floats, scale: float) -> QueryFeatures:
    """Return `query` with the words of a negative text weighed by −`scale` · |κ|; `sentence` [d] is its vector.

    The sentence is as long as the text's weight.
    """
    probes = negative.probes[len(negative.probes) - len(negative.words) :]
    return QueryFeatures(
        unit(query.vector - np.float32(NEGATIVE_VECTOR_SHARE) * sentence),
        np.concatenate([query.words, negative.words]),
        np.concatenate([query.probes, probes]),
        np.concatenate([query.word_weights, -np.float32(scale) * np.abs(negative.word_weights)]),
        np.concatenate([query.probe_weights, np.zeros(len(probes), np.float32)]),
        query.tokens + negative.tokens,
    )


def unit(vector: Floats) -> Floats:
    """Return `vector` [d] at unit length."""
    normalised: Floats = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return normalised
