"""Does a bundle say what its model says? Torch, ONNX Runtime and numpy on the same images and texts.

Both scorers are driven as serving drives them: images and texts in, scores out, in batches of several sizes with
texts of every length side by side, so that padding, dynamic dimensions and rounding are all in what is compared.
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
MOST_DIFFERENCE = 1e-3  # of scores, of word scores and of weights
TOP = 10
TIE = 1e-5  # scores nearer than this have no order
STEP = 1e-5  # pairs with a product nearer than this to a boundary are on a step of S (see rerank.boundary_margin)


@dataclass(frozen=True)
class Sample:
    """What to verify with: `images` [N, H, W, 3] uint8, the gallery, and `texts`; UsageError for fewer than 26."""

    images: Pixels
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if (found := min(len(self.images), len(self.texts))) < sum(BATCHES):
            raise UsageError(
                f"a sample of {found} cannot verify an export; give {sum(BATCHES)} images and texts or more"
            )


@dataclass(frozen=True)
class _Answers:
    """All that one scorer said about a sample."""

    gallery: TargetFeatures
    references: TargetFeatures
    sentences: Floats
    queries: list[QueryFeatures]
    scores: list[PairScores]


def draw_sample(image_size: tuple[int, int], tokenizer: bytes, max_words: int, gallery: int = 64) -> Sample:
    """Draw images of coloured boxes, and texts of 1 ... `max_words` words of the tokenizer's vocabulary."""
    random = np.random.default_rng(0)
    vocabulary = Tokenizer.from_buffer(tokenizer).get_vocab()
    words = sorted(word for word in vocabulary if word.isalnum()) or sorted(vocabulary)
    lengths = random.permutation(np.linspace(1, max_words, sum(BATCHES)).round().astype(int))
    texts = tuple(" ".join(random.choice(words, length)) for length in lengths)
    return Sample(np.stack([_boxes(image_size, random) for _ in range(gallery)]), texts)


def _boxes(size: tuple[int, int], random: np.random.Generator) -> Pixels:
    image = np.full((*size, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(random.integers(1, 6)):
        top, left = (random.integers(0, limit) for limit in size)
        height, width = (random.integers(1, limit + 1) for limit in size)
        image[top : top + height, left : left + width] = random.integers(0, 256, 3)
    return image


def verify(reference: Scorer, candidate: Scorer, head: HeadConstants | None, sample: Sample) -> dict[str, Any]:
    """Hold `candidate` (a bundle) and the numpy head, where there is one, against `reference` (torch); return figures.

    Raises IntegrityError with the figures beyond tolerance: a cosine under 0.9999, scores or weights apart by more than
    0.001, or another top 10.
    """
    ours, theirs = _answers(reference, sample), _answers(candidate, sample)
    cosines = {name: min(map(_least_cosine, a, b)) for name, a, b in _rows(ours, theirs)}
    weights = max(_difference(a, b) for a, b in _weights(ours, theirs))
    others, clear = {"onnx": theirs.scores}, [np.ones(len(ours.gallery), bool) for _ in ours.queries]
    if head is not None:
        others["numpy"] = [score_pairs(query, ours.gallery, head) for query in ours.queries]
        clear = [boundary_margin(query, ours.gallery, head) > STEP for query in ours.queries]
    differences = {name: _score_difference(ours.scores, scores, clear) for name, scores in others.items()} | {
        "words": max(
            _difference(a.word_scores, b.word_scores) for a, b in zip(ours.scores, theirs.scores, strict=True)
        ),
        "weights": weights,
    }
    same = {name: sum(map(_same_top, ours.scores, scores, clear)) for name, scores in others.items()}
    _refuse(cosines, differences, same, len(ours.queries))
    return {
        "batches": list(BATCHES),
        "queries": len(ours.queries),
        "gallery": len(ours.gallery),
        "longest_text": max(len(text.split()) for text in sample.texts),
        "least_cosine": cosines,
        "greatest_difference": differences,
        "same_top_10": same,
        "pairs_on_a_boundary": int(sum((~one).sum() for one in clear)),
    }


def _answers(scorer: Scorer, sample: Sample) -> _Answers:
    targets, sentences, queries = [], [], []
    for part in _parts(sum(BATCHES)):
        encoded = scorer.encode_images(sample.images[part])
        texts = sample.texts[part]
        targets.append(encoded)
        sentences.append(scorer.sentence(texts))
        queries += scorer.compose(encoded, texts)
    count = len(sample.images)
    gallery = _together([scorer.encode_images(sample.images[at : at + BATCHES[-1]]) for at in range(0, count, 16)])
    scores = [_score(scorer, query, gallery) for query in queries]
    return _Answers(gallery, _together(targets), np.concatenate(sentences), queries, scores)


def _parts(count: int) -> Iterator[slice]:
    """Cut 0 ... count-1 into batches of all sizes, the rest in one."""
    start = 0
    for size in (*BATCHES, count):
        if start < count:
            yield slice(start, min(start + size, count))
        start += size


def _score(scorer: Scorer, query: QueryFeatures, gallery: TargetFeatures) -> PairScores:
    parts = [scorer.score_pairs(query, gallery.take(np.arange(len(gallery))[part])) for part in _parts(len(gallery))]
    words = np.concatenate([part.word_scores for part in parts])
    return PairScores(np.concatenate([part.score for part in parts]), words, parts[0].boundary)


def _together(parts: Sequence[TargetFeatures]) -> TargetFeatures:
    return TargetFeatures(np.concatenate([p.vectors for p in parts]), np.concatenate([p.regions for p in parts]))


def _rows(a: _Answers, b: _Answers) -> Iterator[tuple[str, list[Floats], list[Floats]]]:
    """Yield, by name, the arrays of both whose rows must point the same way."""
    yield "vectors", [a.references.vectors, a.gallery.vectors], [b.references.vectors, b.gallery.vectors]
    yield "regions", [a.references.regions, a.gallery.regions], [b.references.regions, b.gallery.regions]
    yield "sentence", [a.sentences], [b.sentences]
    yield "query", [q.vector for q in a.queries], [q.vector for q in b.queries]
    yield "words", [q.words for q in a.queries], [q.words for q in b.queries]
    yield "probes", [q.probes for q in a.queries], [q.probes for q in b.queries]


def _weights(a: _Answers, b: _Answers) -> Iterator[tuple[Floats, Floats]]:
    for one, other in zip(a.queries, b.queries, strict=True):
        yield one.word_weights, other.word_weights
        yield one.probe_weights, other.probe_weights


def _least_cosine(a: Floats, b: Floats) -> float:
    if a.shape != b.shape:
        return -1.0
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.maximum(norms, 1e-12)).min(initial=1.0))


def _difference(a: Floats, b: Floats) -> float:
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else float("inf")


def _score_difference(a: Sequence[PairScores], b: Sequence[PairScores], clear: Sequence[NDArray[np.bool_]]) -> float:
    return max(_difference(x.score[on], y.score[on]) for x, y, on in zip(a, b, clear, strict=True))


def _same_top(a: PairScores, b: PairScores, clear: NDArray[np.bool_]) -> bool:
    """Tell whether both put the same images first, those of (nearly) equal score counted as the same."""
    truth, other = a.score[clear], b.score[clear]
    best = np.sort(truth)[::-1][:TOP]
    return bool(np.abs(best - truth[np.argsort(-other, kind="stable")][:TOP]).max(initial=0.0) <= TIE)


def _refuse(cosines: dict[str, float], differences: dict[str, float], same: dict[str, int], queries: int) -> None:
    # Written so that a NaN is refused, too.
    wrong = [f"cosine of {name} {value:.6f}" for name, value in cosines.items() if not value >= LEAST_COSINE]
    wrong += [f"{name} apart by {value:.2g}" for name, value in differences.items() if not value <= MOST_DIFFERENCE]
    wrong += [f"{name} has the same top {TOP} for {n} of {queries} queries" for name, n in same.items() if n < queries]
    if wrong:
        raise IntegrityError(
            f"the export does not agree with torch ({', '.join(wrong)}); nothing was written: "
            "try other versions of torch and onnxruntime, or report it"
        )
