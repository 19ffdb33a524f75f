"""Does a bundle compute what its model computes? Torch, ONNX Runtime and numpy on the same images and texts.

Both scorers run as in serving: images and texts in, scores out, in batches of several sizes and with texts of every
length. Padding, dynamic dimensions and rounding are part of the comparison.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nsfse.evaluation.reference_head import HeadConstants, boundary_margin, score_pairs
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.types import Floats, PairScores, Pixels, QueryFeatures, Scorer, TargetFeatures

BATCHES = (1, 2, 7, 16)
LEAST_COSINE = 0.9999
MAX_DIFFERENCE = 1e-3  # of scores, of word scores and of weights
TOP_K = 10
TIE = 1e-5  # scores nearer than this are ties
STEP = (
    1e-5  # pairs with a product nearer than this to a boundary are on a step of S (see reference_head.boundary_margin)
)


@dataclass(frozen=True)
class Sample:
    """Images and texts to verify an export with.

    Attributes:
        images: `[N, H, W, 3]` uint8; all are the gallery, the first of them the references.
        texts: One for each query.

    Raises:
        UsageError: There are fewer than 26 of either.
    """

    images: Pixels
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if (size := min(len(self.images), len(self.texts))) < sum(BATCHES):
            raise UsageError(
                f"a sample of {size} cannot verify an export; give {sum(BATCHES)} images and texts or more"
            )


@dataclass(frozen=True)
class _Outputs:
    """All that one scorer computes of a sample."""

    gallery: TargetFeatures
    references: TargetFeatures
    sentences: Floats
    queries: list[QueryFeatures]
    scores: list[PairScores]


def draw_sample(image_size: tuple[int, int], tokenizer: bytes, max_words: int, gallery: int = 64) -> Sample:
    """Draw images of coloured rectangles, and texts of 1 ... `max_words` words of the tokenizer's vocabulary."""
    random = np.random.default_rng(0)
    vocabulary = Tokenizer.from_buffer(tokenizer).get_vocab()
    words = sorted(word for word in vocabulary if word.isalnum()) or sorted(vocabulary)
    lengths = random.permutation(np.linspace(1, max_words, sum(BATCHES)).round().astype(int))
    texts = tuple(" ".join(random.choice(words, length)) for length in lengths)
    return Sample(np.stack([_rectangles(image_size, random) for _ in range(gallery)]), texts)


def _rectangles(size: tuple[int, int], random: np.random.Generator) -> Pixels:
    image = np.full((*size, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(random.integers(1, 6)):
        top, left = (random.integers(0, limit) for limit in size)
        height, width = (random.integers(1, limit + 1) for limit in size)
        image[top : top + height, left : left + width] = random.integers(0, 256, 3)
    return image


def verify(reference: Scorer, candidate: Scorer, head: HeadConstants | None, sample: Sample) -> dict[str, Any]:
    """Compare `candidate` (a bundle) and the numpy head, where there is one, with `reference` (torch).

    Returns:
        The figures for the manifest.

    Raises:
        IntegrityError: A cosine is under 0.9999, scores or weights differ by more than 0.001, or another top 10.
    """
    expected, actual = _outputs(reference, sample), _outputs(candidate, sample)
    cosines = {name: min(map(least_cosine, a, b)) for name, a, b in _rows(expected, actual)}
    weights = max(_difference(a, b) for a, b in _weights(expected, actual))
    candidates, clear = {"onnx": actual.scores}, [np.ones(len(expected.gallery), bool) for _ in expected.queries]
    if head is not None:
        candidates["numpy"] = [score_pairs(query, expected.gallery, head) for query in expected.queries]
        clear = [boundary_margin(query, expected.gallery, head) > STEP for query in expected.queries]
    differences = {name: _score_difference(expected.scores, scores, clear) for name, scores in candidates.items()} | {
        "words": max(
            _difference(a.word_scores, b.word_scores) for a, b in zip(expected.scores, actual.scores, strict=True)
        ),
        "weights": weights,
    }
    same = {name: sum(map(_same_top, expected.scores, scores, clear)) for name, scores in candidates.items()}
    _refuse(cosines, differences, same, len(expected.queries))
    return {
        "batches": list(BATCHES),
        "queries": len(expected.queries),
        "gallery": len(expected.gallery),
        "longest_text": max(len(text.split()) for text in sample.texts),
        "least_cosine": cosines,
        "greatest_difference": differences,
        "same_top_10": same,
        "pairs_on_a_boundary": int(sum((~mask).sum() for mask in clear)),
    }


def _outputs(scorer: Scorer, sample: Sample) -> _Outputs:
    targets, sentences, queries = [], [], []
    for batch in _batches(sum(BATCHES)):
        encoded = scorer.encode_images(sample.images[batch])
        texts = sample.texts[batch]
        targets.append(encoded)
        sentences.append(scorer.sentence(texts))
        queries += scorer.compose(encoded, texts)
    count = len(sample.images)
    gallery = _concatenate(
        [scorer.encode_images(sample.images[start : start + BATCHES[-1]]) for start in range(0, count, BATCHES[-1])]
    )
    scores = [_score(scorer, query, gallery) for query in queries]
    return _Outputs(gallery, _concatenate(targets), np.concatenate(sentences), queries, scores)


def _batches(count: int) -> Iterator[slice]:
    """Cut 0 ... count-1 into batches of all sizes, the rest in one."""
    start = 0
    for size in (*BATCHES, count):
        if start < count:
            yield slice(start, min(start + size, count))
        start += size


def _score(scorer: Scorer, query: QueryFeatures, gallery: TargetFeatures) -> PairScores:
    parts = [scorer.score_pairs(query, gallery.take(np.arange(len(gallery))[part])) for part in _batches(len(gallery))]
    words = np.concatenate([part.word_scores for part in parts])
    return PairScores(np.concatenate([part.score for part in parts]), words, parts[0].boundary)


def _concatenate(parts: Sequence[TargetFeatures]) -> TargetFeatures:
    return TargetFeatures(np.concatenate([p.vectors for p in parts]), np.concatenate([p.regions for p in parts]))


def _rows(a: _Outputs, b: _Outputs) -> Iterator[tuple[str, list[Floats], list[Floats]]]:
    """Yield, by name, the arrays of both whose rows must point the same way."""
    yield "vectors", [a.references.vectors, a.gallery.vectors], [b.references.vectors, b.gallery.vectors]
    yield "regions", [a.references.regions, a.gallery.regions], [b.references.regions, b.gallery.regions]
    yield "sentence", [a.sentences], [b.sentences]
    yield "query", [q.vector for q in a.queries], [q.vector for q in b.queries]
    yield "words", [q.words for q in a.queries], [q.words for q in b.queries]
    yield "probes", [q.probes for q in a.queries], [q.probes for q in b.queries]


def _weights(a: _Outputs, b: _Outputs) -> Iterator[tuple[Floats, Floats]]:
    for x, y in zip(a.queries, b.queries, strict=True):
        yield x.word_weights, y.word_weights
        yield x.probe_weights, y.probe_weights


def least_cosine(a: Floats, b: Floats) -> float:
    """Return the least cosine of any two rows of `a` and `b` [..., d]; -1 where their shapes differ."""
    if a.shape != b.shape:
        return -1.0
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.maximum(norms, 1e-12)).min(initial=1.0))


def _difference(a: Floats, b: Floats) -> float:
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else float("inf")


def _score_difference(a: Sequence[PairScores], b: Sequence[PairScores], clear: Sequence[NDArray[np.bool_]]) -> float:
    return max(_difference(x.score[mask], y.score[mask]) for x, y, mask in zip(a, b, clear, strict=True))


def _same_top(a: PairScores, b: PairScores, clear: NDArray[np.bool_]) -> bool:
    """Return whether both rank the same images first; ties count as the same."""
    expected, actual = a.score[clear], b.score[clear]
    best = np.sort(expected)[::-1][:TOP_K]
    return bool(np.abs(best - expected[np.argsort(-actual, kind="stable")][:TOP_K]).max(initial=0.0) <= TIE)


def _refuse(cosines: dict[str, float], differences: dict[str, float], same: dict[str, int], queries: int) -> None:
    # Written so that a NaN is refused, too.
    failures = [f"cosine of {name} {value:.6f}" for name, value in cosines.items() if not value >= LEAST_COSINE]
    failures += [f"{name} apart by {value:.2g}" for name, value in differences.items() if not value <= MAX_DIFFERENCE]
    failures += [
        f"{name} has the same top {TOP_K} for {n} of {queries} queries" for name, n in same.items() if n < queries
    ]
    if failures:
        raise IntegrityError(
            f"the export does not agree with torch ({', '.join(failures)}); nothing was written: "
            "try other versions of torch and onnxruntime, or report it"
        )
