"""Fit t_c, t_v and ω of the served weights on ranked lists as serving makes them (docs/method.md §5).

Training streams both boundaries from the weights of each step, over queries and images that it has seen. What is served
is a running average of the weights, and ranks others. So t is solved for again, with the served weights, on queries
held out of training where the source has some.

Learned along with the rest, ω would fit training batches, whose candidates are much easier than the best hundred of a
gallery; there the head spoiled what stage 1 had right. On images that training has seen, stage 1 is too sure of itself
and the head counts for too little: so sources that can hold some out of training do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse.config import FITTING_QUERIES
from nsfse.data import EvalQuery, EvaluationProtocol, Pixels, TrainingTriplet
from nsfse.evaluation.ranker import map_valid_texts
from nsfse.models.boundary import Refit
from nsfse.models.nsfse import NSFSE
from nsfse.models.similarity_head import NEG_INF, PairSimilarities
from nsfse.models.torch_scorer import TorchScorer, query_encoding
from nsfse.training.dataloader import AttributeClasses
from nsfse.training.losses import BoundarySamples, boundary_samples
from nsfse.training.word_naming import fit_naming
from nsfse_runtime.types import QueryFeatures, TargetFeatures

CANDIDATES, BATCH = 100, 128
MISMATCHED = 32  # random wrong images a query in the statistics of t
MIN_WEIGHT, MAX_WEIGHT = 1e-3, 100.0  # none of ω_g, ω_c and ω_v is switched off altogether

Images = Callable[[Sequence[str]], Pixels]


@dataclass(frozen=True)
class WeightSample:
    """One query: the gallery's row of its first right answer, and `others`, the rows that are no wrong answers.

    Those are the reference's and the further right answers'.
    """

    query: QueryFeatures
    answer: int
    others: tuple[int, ...]


@dataclass(frozen=True)
class CandidateLists:
    """A gallery's features, and samples of queries over it."""

    gallery: TargetFeatures
    samples: tuple[WeightSample, ...]


def fit_served(
    scorer: TorchScorer,
    protocol: EvaluationProtocol,
    images: Images,
    queries: int = FITTING_QUERIES,
    triplets: Sequence[TrainingTriplet] = (),
    classes: AttributeClasses | None = None,
) -> dict[str, Refit]:
    """Fit t_c, t_v, then ω with these, and what words name, of a scorer's model, in place. Nothing else changes.

    Args:
        scorer: A scorer of an NSFSE model.
        protocol: Queries and their gallery.
        images: Reads images by id, as the scorer takes them.
        queries: About how many of the protocol's queries are used.
        triplets: Training triplets, whose labelled words tell what words name (nsfse.training.word_naming).
        classes: The values of the attributes that the model's vectors have blocks of.

    Returns:
        What became of `t_c` and `t_v`.
    """
    model = nsfse_of(scorer)
    lists = make_lists(scorer, protocol, images, queries)
    refits = fit_boundaries(model, lists)
    fitted = _fusion_weights(model, lists)
    with torch.no_grad():
        model.head.mix.copy_(fitted[:3])
        if model.blocks:
            model.blocks.agreement_weights.copy_(fitted[3:])
    if model.blocks and classes:
        fit_naming(scorer, model.blocks, lists.gallery, triplets, classes)
    return refits


def nsfse_of(scorer: TorchScorer) -> NSFSE:
    """Return a scorer's model. Raises TypeError for a baseline, which has neither boundaries nor ω."""
    if not isinstance(scorer.model, NSFSE):
        raise TypeError(f"{scorer.model.config.method} has no boundaries to fit")
    return scorer.model


def make_lists(scorer: TorchScorer, protocol: EvaluationProtocol, images: Images, queries: int) -> CandidateLists:
    """Encode the protocol's gallery and about `queries` of its queries, spread evenly, one phrasing after another.

    A query's answer is the first of its right answers in the gallery; queries without any, those whose reference is
    not in the gallery, and those in words unknown to the model are left out.
    """
    names = protocol.gallery
    row = {name: number for number, name in enumerate(names)}
    parts = [scorer.encode_images(images(names[start : start + BATCH])) for start in range(0, len(names), BATCH)]
    if not parts:
        return CandidateLists(TargetFeatures(np.empty((0, 0), np.float32), np.empty((0, 0, 0), np.float32)), ())
    gallery = TargetFeatures(
        np.concatenate([part.vectors for part in parts]), np.concatenate([part.regions for part in parts])
    )
    answered = [query for query in protocol.queries if query.reference in row and _answers(query, row)]
    answered = answered[:: -(-len(answered) // queries) or 1]
    texts = [query.texts[number % len(query.texts)] for number, query in enumerate(answered)]
    samples = []
    for start in range(0, len(answered), BATCH):
        chunk = answered[start : start + BATCH]
        composed = _compose(scorer, gallery, row, chunk, texts[start : start + BATCH])
        for query, features in zip(chunk, composed, strict=True):
            if features is not None:
                answer, *more = _answers(query, row)
                samples.append(WeightSample(features, answer, (row[query.reference], *more)))
    return CandidateLists(gallery, tuple(samples))


def _answers(query: EvalQuery, row: Mapping[str, int]) -> list[int]:
    """Return the rows of a query's right answers, in its order: the reference is none, whatever the query says."""
    return [row[name] for name in query.targets if name in row and name != query.reference]


def _compose(
    scorer: TorchScorer,
    gallery: TargetFeatures,
    row: Mapping[str, int],
    queries: Sequence[EvalQuery],
    texts: Sequence[str],
) -> list[QueryFeatures | None]:
    references = gallery.take([row[query.reference] for query in queries])
    return map_valid_texts(lambda rows: scorer.compose(references.take(rows), [texts[row] for row in rows]), len(texts))


def fit_boundaries(model: NSFSE, lists: CandidateLists) -> dict[str, Refit]:
    """Solve for `t_c` and `t_v` with the correspondences of the queries of `lists`; return what became of each.

    Matched are those with a query's answer; mismatched are those with random wrong images, as in training: the hardest
    are set aside, for they share most words and, called mismatched, hide the difference. Weights are those of training.
    """
    cross: list[BoundarySamples] = []
    visual: list[BoundarySamples] = []
    for number, sample in enumerate(lists.samples):
        side, wrong = query_encoding(sample.query), random_wrong(lists.gallery, sample, number)
        if len(wrong):
            pair = _pair(model, lists.gallery, sample.query, np.array([sample.answer, *wrong]))
            matched = torch.zeros(1, 1 + len(wrong), device=pair.x.device)
            matched[0, 0] = 1.0
            side = side.to(pair.x.device)
            cross.append(boundary_samples(pair.x, side.word_weights, matched, 1.0 - matched))
            visual.append(boundary_samples(pair.y, side.probe_weights, matched, 1.0 - matched))
    head = model.head
    return {
        name: boundary.refit(*(torch.cat(parts) for parts in zip(*map(_flat, terms), strict=True)))
        if terms
        else "too few samples"
        for name, boundary, terms in (("t_c", head.cross_boundary, cross), ("t_v", head.visual_boundary, visual))
    }


def _flat(terms: BoundarySamples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best = terms.best.flatten().cpu()
    return best, terms.matched.flatten().cpu(), best, terms.mismatched.flatten().cpu()


def random_wrong(gallery: TargetFeatures, sample: WeightSample, number: int) -> list[int]:
    """Return up to MISMATCHED rows of wrong answers for query `number`, the as many that stage 1 likes best set aside.

    The same for the same gallery and number, whatever came before.
    """
    cosines = gallery.vectors @ sample.query.vector
    wrong = np.setdiff1d(np.arange(len(cosines)), [sample.answer, *sample.others])
    count = min(MISMATCHED, len(wrong) // 2)
    easier = wrong[np.argsort(-cosines[wrong], kind="stable")[count:]]
    rows: list[int] = np.random.default_rng([6, number]).choice(np.sort(easier), count, replace=False).tolist()
    return rows


def _pair(model: NSFSE, gallery: TargetFeatures, query: QueryFeatures, rows: np.ndarray) -> PairSimilarities:
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model.head.pair_similarities(
            query_encoding(query).to(device), torch.from_numpy(gallery.regions[rows])[None].to(device)
        )


def _fusion_weights(model: NSFSE, lists: CandidateLists) -> Tensor:
    """Return the weights [3 + A] of S that rank the answers of `lists` best by cross entropy.

    The `head.mix` (before its softplus), then ω_a. Where there are no samples, the model's own.
    """
    parts = [_score_parts(model, lists.gallery, sample) for sample in lists.samples]
    if parts:
        return _fit(torch.stack(parts).clone())
    agreement = [model.blocks.agreement_weights] if model.blocks else []
    return torch.cat([model.head.mix.detach(), *agreement]).cpu()


def _score_parts(model: NSFSE, gallery: TargetFeatures, sample: WeightSample) -> Tensor:
    """Return what S is made of [C, 3 + A]: of the answer, then of the best candidates by stage 1 without `others`."""
    cosines = torch.from_numpy(gallery.vectors @ sample.query.vector)
    cosines[[*sample.others]] = NEG_INF
    wrong = cosines.clone()
    wrong[sample.answer] = NEG_INF
    rows = torch.cat([torch.tensor([sample.answer]), wrong.topk(min(CANDIDATES, len(wrong) - 1)).indices])
    pair = _pair(model, gallery, sample.query, rows.numpy())
    parts = torch.stack([cosines[rows], pair.cross[0].cpu(), pair.visual[0].cpu()], 1)
    if not model.blocks:
        return parts
    device = pair.cross.device
    query, vectors = (
        torch.from_numpy(array)[None].to(device) for array in (sample.query.vector, gallery.vectors[rows])
    )
    with torch.inference_mode():
        return torch.cat([parts, model.blocks.agreements(query, vectors)[0].cpu()], 1)


def _fit(parts: Tensor) -> Tensor:
    """Fit the weights of `parts` [Q, C, 3 + A], the target first, a convex problem; that of stage 1 is then 2.

    None is under 0: parts that mislead beside the others are left out, and the rest is fitted again.
    """
    kept = torch.ones(parts.shape[2], dtype=torch.bool)
    weights = _least_loss(parts)
    while (misleading := weights[1:] < 0).any():
        kept[1:] &= ~misleading
        weights = torch.zeros_like(weights)
        weights[kept] = _least_loss(parts[..., kept])
    weights = 2.0 * weights / weights[0].clamp_min(1.0)
    mix = weights[:3].clamp(MIN_WEIGHT, MAX_WEIGHT)
    mix = mix + torch.log(-torch.expm1(-mix))  # softplus backwards; log(expm1(x)) is infinite from 89 on
    return torch.cat([mix, weights[3:].clamp_max(MAX_WEIGHT)])


def _least_loss(parts: Tensor) -> Tensor:
    """Return the weights [P] of `parts` [Q, C, P] with the least cross entropy, the target first."""
    weights = torch.tensor([20.0, *[5.0] * (parts.shape[2] - 1)]).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    blocked = parts[..., 0] <= NEG_INF
    known = parts.masked_fill(blocked[..., None], 0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = (known * weights).sum(-1).masked_fill(blocked, NEG_INF)
        loss = F.cross_entropy(logits, torch.zeros(len(parts), dtype=torch.long))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()
