"""Fit the evidence of a dual encoder that nobody trained to the images of a gallery, without labels [O].

A word against random images is mismatched almost always. So the words' correspondences with a gallery are a mixture of
two kinds, which expectation-maximisation parts, and the boundary is solved for as in training (docs/method.md §11).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.abstention import compose_samples
from nsfse.evaluation.features import EncodedImages
from nsfse.models.boundary import solve_boundary
from nsfse.models.torch_scorer import TorchScorer
from nsfse.models.training_free import NOTHING_TO_SEE, TrainingFree, WordSpace, bare
from nsfse.training.calibration import fit_samples
from nsfse_runtime.errors import DataError
from nsfse_runtime.inference.confidence import Decision
from nsfse_runtime.inference.region_codec import pack
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.types import Floats, Pixels, Reals

Gaussian = tuple[float, float]
"""Mean and standard deviation."""

LEAST_IMAGES = 50
MOST_WORDS, NAMED_WORDS = 2000, 100
"""Words of the vocabulary that are looked for, and those of them that a few images match best."""
LEAST_LETTERS = 3
LEAST_AGREEMENT = 0.3
"""Correlation of regions with whole images, over words, from which on regions are used."""
QUERIES, BATCH, STEPS = 600, 64, 200


@dataclass(frozen=True)
class Mixture:
    """Two kinds of correspondences, `matched` for the greater, whose share is `share`."""

    matched: Gaussian
    mismatched: Gaussian
    share: float

    def posterior(self, x: Reals) -> Reals:
        """Return how likely each of `x`, of any shape, is matched; it never falls as x rises."""
        (mu_p, sd_p), (mu_n, sd_n) = self.matched, self.mismatched
        logit = np.log(self.share / (1 - self.share)) + np.log(sd_n / sd_p)
        logit = logit + 0.5 * ((x - mu_n) / sd_n) ** 2 - 0.5 * ((x - mu_p) / sd_p) ** 2
        likely: Reals = 0.5 + 0.5 * np.tanh(0.5 * np.clip(logit, -50, 50))
        return np.where(x < mu_n, 0.0, np.where(x > mu_p, np.maximum(likely, 0.5), likely))


def fit_mixture(x: Reals) -> Mixture:
    """Fit two Gaussians to `x`, of any shape, by expectation-maximisation; the mismatched start at the middle."""
    x = x.ravel().astype(np.float64)
    middle, top = np.quantile(x, (0.5, 0.97))
    spread = max(float(np.quantile(x, 0.5) - np.quantile(x, 0.16)), 1e-6)
    means, deviations, shares = np.array([middle, top]), np.array([spread, spread]), np.array([0.95, 0.05])
    for _ in range(STEPS):
        logs = np.log(shares / deviations)[:, None] - 0.5 * ((x - means[:, None]) / deviations[:, None]) ** 2
        weights = np.exp(logs - np.logaddexp.reduce(logs, axis=0))
        total = weights.sum(1)
        means = weights @ x / total
        deviations = np.sqrt(np.maximum((weights * (x - means[:, None]) ** 2).sum(1) / total, 1e-12))
        shares = np.clip(total / len(x), 1e-4, 1 - 1e-4)
        shares /= shares.sum()
    low, high = np.argsort(means)
    kinds = [(float(mean), float(deviation)) for mean, deviation in zip(means, deviations, strict=True)]
    return Mixture(kinds[high], kinds[low], float(shares[high]))


@dataclass(frozen=True)
class WordFit:
    """Words' correspondences `x` [M, N] with N images in one kind of regions, and what was fitted to them.

    `named` are the rows of words that a few images match best. `mixture` is theirs, and `risk` that of its boundary.
    """

    x: Reals
    named: NDArray[np.intp]
    mixture: Mixture
    risk: float
    space: dict[str, Tensor]


@dataclass(frozen=True)
class Evidence:
    """What was fitted.

    Attributes:
        place: Where words are looked for, `regions` or `whole`.
        boundary: t_c and its statistics.
        words: The words of the vocabulary that a few images match best.
        agreement: Correlation of what regions and whole images say of a word.
        decision: The confidence.
    """

    place: Literal["regions", "whole"]
    boundary: dict[str, float]
    words: tuple[str, ...]
    agreement: float
    decision: Decision


def fit_without_labels(model: TrainingFree, tokens: FastTokenizer, batches: Iterable[Pixels]) -> Evidence | None:
    """Fit the words' space, boundary and confidence of `model`, in place, to images [B, H, W, 3] uint8 in `batches`.

    Returns:
        What was fitted; None where no word stands out from random images.

    Raises:
        DataError: There are fewer than LEAST_IMAGES images.
    """
    vectors, regions = _encode(model, batches)
    if len(vectors) < LEAST_IMAGES:
        raise DataError(f"{len(vectors)} images are too few to fit evidence to; give {LEAST_IMAGES} or more")
    names, words = vocabulary(model, tokens)
    alpha = model.config.alpha
    whole, parts = fit_words(words, vectors[:, None], alpha), fit_words(words, regions, alpha)
    agreement = float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(whole.x, parts.x, strict=True)]))
    place: Literal["regions", "whole"] = "whole"
    if agreement >= LEAST_AGREEMENT and parts.risk <= whole.risk:
        place = "regions"
    chosen, rows = (parts, regions) if place == "regions" else (whole, vectors[:, None])
    if chosen.risk >= min(1.0, alpha):
        return None
    model.config = msgspec.structs.replace(model.config, evidence=place)
    model.space.load_state_dict(chosen.space)
    x = torch.from_numpy(chosen.x[chosen.named])
    likely = torch.from_numpy(chosen.mixture.posterior(chosen.x[chosen.named]))
    model.head.cross_boundary.refit(x, likely, x, 1 - likely)
    scorer = TorchScorer(model, Tokenizer(tokens, model.config.max_words))
    decision = fit_confidence(scorer, names, chosen, vectors.numpy(), model.space.regions(rows).numpy())
    named = tuple(names[row] for row in chosen.named)
    return Evidence(place, model.head.cross_boundary.summary(), named, agreement, decision)


def _encode(model: TrainingFree, batches: Iterable[Pixels]) -> tuple[Tensor, Tensor]:
    """Return unit vectors [N, d] and unit regions [N, R, d] as the encoder makes them."""
    parts = [(torch.empty(0, model.config.dim), torch.empty(0, 1, model.config.dim))]
    with torch.inference_mode():
        for pixels in batches:
            parts.append(model.image_encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0))
    vectors, regions = zip(*parts[1:] or parts, strict=True)
    return torch.cat(vectors), torch.cat(regions)


def vocabulary(model: TrainingFree, tokens: FastTokenizer) -> tuple[tuple[str, ...], Tensor]:
    """Return the first MOST_WORDS of a vocabulary that are whole words, and their sentences [M, d] after the prompt.

    Vocabularies learned from texts have frequent words first.
    """
    single = {number: word for word, number in _alone(tokens)}
    chosen = sorted(single)[:MOST_WORDS]
    if not chosen:
        raise DataError("the tokenizer has no whole words to look for in images; give another model")
    rows = []
    with torch.inference_mode():
        for start in range(0, len(chosen), BATCH):
            ids = torch.tensor(chosen[start : start + BATCH])[:, None]
            rows.append(model.prompted(ids, torch.ones(len(ids), 1, 1, dtype=torch.bool))[:, 0])
    return tuple(single[number] for number in chosen), torch.cat(rows)


def _alone(tokens: FastTokenizer) -> Iterator[tuple[str, int]]:
    """Yield the words of a vocabulary that are one token each, with its id."""
    for piece, number in tokens.get_vocab().items():
        word = bare(piece)
        shown = word.isalpha() and len(word) >= LEAST_LETTERS and word not in NOTHING_TO_SEE
        if shown and tokens.encode(word).ids == [number]:
            yield word, number


def fit_words(words: Tensor, regions: Tensor, alpha: float) -> WordFit:
    """Fit the space of `words` [M, d] and of `regions` [N, R, d], and the mixture of words that a few have."""
    space = WordSpace(words.shape[1])
    space.load_state_dict({"word_mean": words.mean(0), "region_mean": regions.flatten(0, 1).mean(0)})
    x = torch.einsum("md,nrd->mnr", space.words(words), space.regions(regions)).amax(-1).numpy().astype(np.float64)
    named = np.argsort(-_skewness(x), kind="stable")[:NAMED_WORDS]
    mixture = fit_mixture(x[named])
    solved = solve_boundary(mixture.matched, mixture.mismatched, alpha)
    return WordFit(x, named, mixture, solved[1] if solved else math.inf, space.state_dict())


def _skewness(x: Reals) -> Reals:
    """Return the skewness [M] of the rows of `x` [M, N]: great where a few images have a word, and most do not."""
    centred = x - x.mean(1, keepdims=True)
    skewness: Reals = (centred**3).mean(1) / np.maximum(x.std(1), 1e-6) ** 3
    return skewness


def fit_confidence(
    scorer: TorchScorer, names: Sequence[str], fit: WordFit, vectors: Floats, regions: Floats
) -> Decision:
    """Fit the confidence to queries made of images and words, whose right answers are what the mixtures say.

    An image is right that is like the reference, and has the word. A mixture parts both from random images.
    """
    likely = fit.mixture.posterior(fit.x)
    random = np.random.default_rng(0)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    alike = fit_mixture(cosines[~np.eye(len(cosines), dtype=bool)]).posterior(cosines) >= 0.5
    ids = [str(number) for number in range(len(vectors))]
    queries = []
    for word in random.choice(fit.named, QUERIES):
        reference = int(random.integers(len(ids)))
        answers = np.flatnonzero((likely[word] >= 0.5) & alike[reference])
        answers = answers[answers != reference]
        if likely[word, reference] < 0.5 and len(answers):
            queries.append(EvalQuery(ids[reference], (names[word],), tuple(ids[row] for row in answers)))
    protocol = EvaluationProtocol("made", "1", tuple(ids), tuple(queries))
    rows = {name: row for row, name in enumerate(ids)}
    encoded = EncodedImages(scorer.fingerprint, rows, vectors, *pack(regions))
    decision = fit_samples([*compose_samples(scorer, protocol, [(query, 0) for query in queries], encoded)])
    return msgspec.structs.replace(decision, word_bounds=None)
