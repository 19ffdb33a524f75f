"""The similarity head in numpy (docs/method.md §4, §5, §7): the readable form, and what the pair graph is held against.

All is computed from inner products. An image's regions v_j enter through X_kj = ⟨w_k, v_j⟩,
Y_kj = ⟨b_k, v_j⟩ and G = VVᵀ. The reason: the cosine of a unit row u with a weighted sum of regions
is Σ_j a_j⟨u, v_j⟩ / √(aᵀGa).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.manifest import AttributeBlock, Manifest
from nsfse_runtime.types import Floats, PairScores, QueryFeatures, TargetFeatures

Reals = NDArray[np.floating[Any]]
_LEAST_NORM = 1e-8  # of aᵀGa, as in training
_LEAST_SHARE = 1e-3  # before a logarithm


@dataclass(frozen=True, slots=True)
class HeadConstants:
    """All of the pair head that is not in the features.

    Attributes:
        t_c: The boundary of words.
        t_v: The boundary of probes.
        gamma: γ, the weight of the negative branch.
        attention_scale: λ.
        w_global: ω_g, the weight of the global similarity.
        w_cross: ω_c, the weight of the words' similarity.
        w_visual: ω_v, the weight of the probes' similarity.
        views: V, how many of an image's last regions are views of the whole image. Each is compared
            with the same view alone.
        blocks: The attributes that the last channels of a vector describe; none in older bundles.
    """

    t_c: float
    t_v: float
    gamma: float
    attention_scale: float
    w_global: float
    w_cross: float
    w_visual: float
    views: int = 0
    blocks: tuple[AttributeBlock, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> "HeadConstants":
        """Read them from a bundle's manifest. Raises IntegrityError where one is missing."""
        needed = [name for name in cls.__slots__ if name not in ("views", "blocks")]
        if missing := [name for name in needed if name not in manifest.head]:
            raise IntegrityError(f"the manifest of {manifest.name} has no head constant {missing[0]}; export it again")
        constants: dict[str, Any] = {name: manifest.head[name] for name in needed}
        return cls(**constants, views=int(manifest.head.get("views", 0)), blocks=manifest.blocks)

    def to_dict(self) -> dict[str, float]:
        """Return them as the manifest's `head`; `blocks` are a part of their own."""
        return {name: value for name, value in asdict(self).items() if name != "blocks"}


def score_pairs(query: QueryFeatures, targets: TargetFeatures, head: HeadConstants) -> PairScores:
    """Score one query against K targets, in the precision of the features.

    S = ω_g⟨q, g⟩ + ω_c Σ_k κ_k(p_k + γ n_k) + ω_v Σ_k ν_k(p_k + γ n_k) + Σ_a ω_a A_a, with A_a of `agreements`; its
    word guides a probe's attention. Where κ_k < 0 the word names what must not be there, and n_k is how far it is over
    the boundary. Of a view's products only that with the same view counts.

    Args:
        query: Vector [d], words [L, d] and probes [P+L, d] with their weights.
        targets: Vectors [K, d] and regions [K, R, d].
        head: The head's constants.

    Returns:
        S [K] and the words' best correspondences [K, L].
    """
    words, probes, gram = products(query, targets)
    first_view, local_regions = len(query.probes) - len(query.words) - head.views, probes.shape[2] - head.views
    cross = branches(words, words, gram, head.t_c, head, query.word_weights < 0) @ query.word_weights
    view = probes[:, first_view : first_view + head.views, local_regions:].diagonal(axis1=1, axis2=2)
    near, word_probes = (
        np.delete(probes, slice(first_view, first_view + head.views), axis=1),
        probes[:, first_view + head.views :],
    )
    guide = np.concatenate([probes[:, :first_view], 0.5 * words + 0.5 * word_probes], axis=1)
    branch_sums = branches(near, guide, gram, head.t_v, head)
    branch_sums = np.concatenate(
        [branch_sums[:, :first_view], view_branches(view, head), branch_sums[:, first_view:]], axis=1
    )
    visual = branch_sums @ query.probe_weights
    score = head.w_global * (targets.vectors @ query.vector) + head.w_cross * cross + head.w_visual * visual
    if head.blocks:
        weights = np.array([block.weight for block in head.blocks], score.dtype)
        score = score + agreements(query.vector, targets.vectors, head.blocks) @ weights
    return PairScores(cast(Floats, score), cast(Floats, words.max(-1)), head.t_c)


def agreements(query: Floats, vectors: Floats, blocks: Sequence[AttributeBlock]) -> Reals:
    """Return log(10⁻³ + Σ_v p̃_a p_a) [K, A]: how likely each attribute has the value that is wanted.

    Args:
        query: The query's vector [d].
        vectors: Those of K images [K, d].
        blocks: The A attributes, in the order of their channels; the last one's are the last.
    """
    sums: list[Reals] = []
    end = len(query)
    for block in reversed(blocks):
        start = end - block.values
        wanted, found = (rows[..., start:end] ** 2 / block.share for rows in (query, vectors))
        sums.insert(0, found @ wanted)
        end = start
    agreement: Reals = np.log(np.stack(sums, 1) + _LEAST_SHARE)
    return agreement


def correspondences(query: QueryFeatures, targets: TargetFeatures, views: int) -> tuple[Reals, Reals]:
    """Return the best of each: x [K, L] of words and y [K, P+L] of probes, a view's with the same view alone."""
    words, probes, _ = products(query, targets)
    best: Reals = probes.max(-1)
    first_view = len(query.probes) - len(query.words) - views
    best[:, first_view : first_view + views] = probes[
        :, first_view : first_view + views, probes.shape[2] - views :
    ].diagonal(axis1=1, axis2=2)
    return words.max(-1), best


def products(query: QueryFeatures, targets: TargetFeatures) -> tuple[Reals, Reals, Reals]:
    """Return X [K, L, R], Y [K, P+L, R] and G [K, R, R]; one product makes X and Y."""
    count, regions, dim = targets.regions.shape
    rows = np.concatenate([query.words, query.probes])
    near = (rows @ targets.regions.reshape(-1, dim).T).reshape(len(rows), count, regions).swapaxes(0, 1)
    gram = targets.regions @ targets.regions.swapaxes(1, 2)
    return near[:, : len(query.words)], near[:, len(query.words) :], gram


def view_branches(view: Reals, head: HeadConstants) -> Reals:
    """Return p + γn of views, each with one product `view` [K, V]: the two positive terms are then equal."""
    branch_sums: Reals = view + view * (view > head.t_v) + head.gamma * np.minimum(0, view - head.t_v)
    return branch_sums


def branches(
    near: Reals, guide: Reals, gram: Reals, t: float, head: HeadConstants, unwanted: NDArray[np.bool_] | bool = False
) -> Reals:
    """Return the positive and the negative branch of M rows, p + γn.

    Positive: the cosine with the regions over `t`, attended by `guide`, and the mean product weighted
    by relevance. The cosine is 0 where no region is over `t`. Negative: how far the best product stays
    under `t`.

    Args:
        near: Products [K, M, R] of rows and regions.
        guide: What attention is computed from [K, M, R].
        gram: Products [K, R, R] of regions.
        t: The boundary.
        head: The head's constants.
        unwanted: Rows [M] whose negative branch is how far the best product is over `t`.

    Returns:
        Sums of both branches [K, M].
    """
    attention = _softmax(head.attention_scale * guide, near > t)
    norm = np.sqrt(np.maximum(((attention @ gram) * attention).sum(-1), _LEAST_NORM))
    gathered = (attention * near).sum(-1) / norm
    relevance = _softmax(head.attention_scale * _unit(np.where(near > 0, near, 0.1 * near), axis=1))
    positive: Reals = gathered + (relevance * near).sum(-1)
    over: Reals = near.max(-1) - t
    negative: Reals = np.where(unwanted, np.maximum(0, over), np.minimum(0, over))
    return positive + head.gamma * negative


def boundary_margin(query: QueryFeatures, targets: TargetFeatures, head: HeadConstants) -> Reals:
    """Return how near any product of a pair comes to its boundary.

    S has a step there: a region enters or leaves the attended set. Two computations that differ by
    rounding agree only on pairs whose margin is larger than it.

    Args:
        query: Words [L, d] and probes [P+L, d].
        targets: Regions [K, R, d].
        head: The head's constants.

    Returns:
        Margins [K], in units of a product.
    """
    words, probes, _ = products(query, targets)
    near: Reals = np.minimum(np.abs(words - head.t_c).min((1, 2)), np.abs(probes - head.t_v).min((1, 2)))
    return near


def _softmax(logits: Reals, mask: NDArray[np.bool_] | None = None) -> Reals:
    """Softmax over the last axis, over those in `mask` where given; all 0 where it has none."""
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    peak = logits.max(-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(peak), peak, 0))
    softmax: Reals = weights / np.maximum(weights.sum(-1, keepdims=True), np.finfo(weights.dtype).tiny)
    return softmax


def _unit(rows: Reals, axis: int) -> Reals:
    unit: Reals = rows / np.maximum(np.linalg.norm(rows, axis=axis, keepdims=True), 1e-12)
    return unit
