"""The losses of docs/method.md §6, each a function of tensors.

Right answers other than the target are masked out of every denominator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse.models.boundary import AdaptiveBoundary
from nsfse.models.similarity_head import NEG_INF

SOFTNESS = 0.05  # δ of the boundary loss
MIN_WEIGHT = 1e-4


@dataclass(frozen=True)
class BoundarySamples:
    """Correspondences `best` [B, M, K] and how much each counts as matched and as mismatched [B, M, K]."""

    best: Tensor
    matched: Tensor
    mismatched: Tensor


def masked_cross_entropy(logits: Tensor, blocked: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of queries over candidates, some of which are masked out.

    Args:
        logits: Scores [B, U].
        blocked: True [B, U] for candidates that are no negatives.
        target: The right candidate [B], in 0...U-1.
        smoothing: Share of the label that all candidates not blocked have alike.
    """
    free = logits.masked_fill(blocked, NEG_INF)
    even = torch.log_softmax(free, -1).masked_fill(blocked, 0.0).sum(1) / (~blocked).sum(1)
    return (1.0 - smoothing) * F.cross_entropy(free, target) - smoothing * even.mean()


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the KL divergence from the pair head's distribution over candidates [B, M] (detached) to stage 1's."""
    return F.kl_div(
        torch.log_softmax(student, -1), torch.log_softmax(teacher.detach(), -1), reduction="batchmean", log_target=True
    )


def boundary_samples(best: Tensor, weights: Tensor, matched: Tensor, mismatched: Tensor) -> BoundarySamples:
    """Weigh `best` [B, M, K] by `weights` [B, K] of its rows and by how much a candidate counts as either [B, M].

    Rows of a weight under 0 name what must not be there, and do not count.
    """
    w = weights.detach()[:, None].clamp_min(0)
    return BoundarySamples(best, w * matched[..., None], w * mismatched[..., None])


def boundary_loss(boundary: AdaptiveBoundary, samples: BoundarySamples) -> Tensor:
    """Push matched correspondences above t and mismatched ones below; 0 until there is a t."""
    if not boundary.ready:
        return samples.best.sum() * 0.0
    return boundary_margin_loss(boundary, samples)


def word_grounding_loss(
    boundary: AdaptiveBoundary, words: Tensor, regions: Tensor, named: Tensor, fulfils: Tensor
) -> Tensor:
    """Push labelled words above t in images that have what they name, and below t in images that lack it.

    Both kinds of images count alike for every word. Until there is a t, the middle of both kinds stands for it.

    Args:
        boundary: Where t is.
        words: Unit words [B, L, d].
        regions: Unit regions [U, R, d] of all images of the batch.
        named: 1 [B, L] where a word asks for what it names, -1 where for its absence, 0 for other words.
        fulfils: For each of the N labelled words, row by row: 1 [N, U] for images that are as it asks, -1 for images
            that are not, 0 where nothing is known.
    """
    rows, places = named.nonzero(as_tuple=True)
    x = (words[rows, places] @ regions.flatten(0, 1).T).view(len(rows), *regions.shape[:2]).amax(-1)
    has = fulfils * named[rows, places][:, None]
    matched, mismatched = ((has == kind).float() for kind in (1, -1))
    return boundary_margin_loss(boundary, BoundarySamples(x, _shared(matched), _shared(mismatched)))


def _shared(kind: Tensor) -> Tensor:
    return kind / kind.sum(1, keepdim=True).clamp_min(1.0)


def boundary_margin_loss(boundary: AdaptiveBoundary, samples: BoundarySamples) -> Tensor:
    """Part the two kinds at t, which moves with the middle of both means: the loss cannot lower them together.

    With α > 1 the mismatched push is the stronger one: a fixed t followed the statistics down, and all ended at 0.
    """
    middle = 0.5 * (_mean(samples.best, samples.matched) + _mean(samples.best, samples.mismatched))
    t = boundary.t + middle - middle.detach() if boundary.ready else middle
    below = F.softplus((t - samples.best) / SOFTNESS)
    above = F.softplus((samples.best - t) / SOFTNESS)
    return _mean(below, samples.matched) + boundary.alpha * _mean(above, samples.mismatched)


def attribute_loss(logits: Sequence[Tensor], labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the cross entropy of attributes over the rows whose value is known, the mean over the attributes.

    Args:
        logits: Those of each attribute's values, [N, C_a].
        labels: Numbers of the values [N, A], -1 where not known.
        smoothing: Share of the label that all values have alike: neighbours such as navy and black are often confused.
    """
    entropies = []
    for rows, values in zip(logits, labels.T, strict=True):
        sums = F.cross_entropy(rows, values, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
        entropies.append(sums / (values >= 0).sum().clamp_min(1))
    return torch.stack(entropies).mean()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


def word_role_loss(weights: Tensor, signs: Tensor, named: Tensor) -> Tensor:
    """Give labelled words weight, and the sign of what they ask for; the two signs count alike, however rare one is.

    Args:
        weights: κ [B, L] of a TextReading.
        signs: Its signs [B, L].
        named: 1 [B, L] where a word asks for what it names, -1 where for its absence, 0 for other words.
    """
    known = named != 0
    rows = known.any(1).float()
    share = (weights.abs() * known).sum(1).clamp_min(MIN_WEIGHT)
    sign_loss, kinds = torch.zeros((), device=signs.device), torch.zeros((), device=signs.device)
    for kind in (1, -1):
        labelled = (named == kind).float()
        sign_loss = sign_loss + (F.softplus(-kind * signs) * labelled).sum() / labelled.sum().clamp_min(1.0)
        kinds = kinds + labelled.amax()
    return sign_loss / kinds.clamp_min(1.0) - (share.log() * rows).sum() / rows.sum().clamp_min(1.0)


def sentence_word_role_loss(sentence: Tensor, words: Tensor, ids: Tensor, named: Tensor, scale: Tensor) -> Tensor:
    """Return the cross entropy of a sentence's own labelled words among those of the whole batch.

    For methods of one vector, in place of `word_role_loss` (docs/method.md §9). A word and its sign are one class,
    whose vector is the mean of its words times the sign. Other classes of the same sentence are no negatives; both
    signs count alike.

    Args:
        sentence: Unit rows [B, d].
        words: Unit rows [B, L, d].
        ids: Word ids [B, L].
        named: 1 [B, L] where a word asks for what it names, -1 where for its absence, 0 for other words.
        scale: The temperature's inverse.
    """
    rows, places = named.nonzero(as_tuple=True)
    if not len(rows):
        return sentence.sum() * 0.0
    signs = named[rows, places]
    kinds, which = torch.unique(2 * ids[rows, places] + (signs < 0), return_inverse=True)
    members = F.one_hot(which, len(kinds)).to(words.dtype)
    sign = 1.0 - 2.0 * (kinds % 2).to(words.dtype)
    vectors = sign[:, None] * (members.T @ words[rows, places]) / members.sum(0)[:, None]
    logits = scale * sentence @ vectors.T
    present = (F.one_hot(rows, len(sentence)).to(words.dtype).T @ members) > 0
    own = logits[rows, which][:, None]
    entropies = F.cross_entropy(
        logits.masked_fill(present, NEG_INF)[rows].scatter(1, which[:, None], own), which, reduction="none"
    )
    means = [entropies[signs == kind].mean() for kind in (1, -1) if bool((signs == kind).any())]
    return torch.stack(means).mean()


def choose_candidates(
    logits: Tensor, blocked: Tensor, target: Tensor, reference: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Return [B, count] candidates of a batch: target, reference, then half the hardest and half random others.

    The reference is what the text says is not meant: the surest mismatch there is. `blocked` [B, U] are never chosen
    but for want of others.
    """
    free = logits.detach().masked_fill(blocked, NEG_INF)
    free.scatter_(1, torch.stack([target, reference], 1), NEG_INF)
    count = min(count, logits.shape[1])
    hard = (count - 1) // 2
    hardest = free.topk(hard, 1).indices
    chance = torch.rand(free.shape, generator=generator).to(free.device)
    rest = chance.masked_fill(free <= NEG_INF, -1.0).scatter(1, hardest, -1.0)
    others = torch.cat([hardest, rest.topk(count - 2 - hard, 1).indices], 1)
    return torch.cat([target[:, None], reference[:, None], others], 1)


def without_reference(scores: Tensor) -> Tensor:
    """Return `scores` [B, M] of `choose_candidates` without the reference's: no gallery shows it again, [B, M − 1]."""
    return torch.cat([scores[:, :1], scores[:, 2:]], 1)


def match_weights(candidates: Tensor) -> Tensor:
    """Return [B, M]: how much each of `choose_candidates` [B, M] counts as a match: the target alone does."""
    return F.one_hot(torch.zeros_like(candidates[:, 0]), candidates.shape[1]).float()


def mismatch_weights(candidates: Tensor, reference: bool) -> Tensor:
    """Return [B, M]: how much each of `choose_candidates` [B, M] counts as a mismatch.

    The random half does: hard ones share most words. With `reference`, half of all the weight is the reference's: the
    text says what it is not. The boundary itself is fitted without: references hardly differ from matches before the
    loss has pushed them below, and t stayed asleep.
    """
    first = 2 + (candidates.shape[1] - 1) // 2
    weights = torch.zeros(candidates.shape, device=candidates.device)
    weights[:, first:] = 1.0
    if reference:
        weights[:, 1] = max(1, candidates.shape[1] - first)
    return weights
