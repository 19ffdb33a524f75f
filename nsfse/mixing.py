"""How much stage 1, words and regions count in S: fitted on lists as serving makes them (docs/method.md §5, ω).

Learned along with the rest, ω is fitted to training batches, whose candidates are much easier than the best hundred of
a gallery; on those the head then spoiled what stage 1 had right. On pictures that training has seen stage 1 is too sure
of itself, and the head counts for too little: sources that can hold some out of training do.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse.config import FITTING_QUERIES
from nsfse.data import Pixels, Protocol, Triplet
from nsfse.model import NSFSE
from nsfse.ranking import each_readable
from nsfse.scorer import TorchScorer, side_of
from nsfse.similarity import FAR
from nsfse_runtime.features import QueryFeatures, TargetFeatures
from nsfse_runtime.text import Tokenizer

CANDIDATES, BATCH = 100, 128
LEAST = 1e-3  # no part is switched off altogether


def fit_mix(
    model: NSFSE,
    tokenizer: Tokenizer,
    protocol: Protocol,
    pictures: Callable[[Sequence[str]], Pixels],
    queries: int = FITTING_QUERIES,
) -> Tensor:
    """Return `head.mix` [3] (before its softplus) that ranks the targets of a protocol best by cross entropy.

    About `queries` of it are asked; those in words unknown to the model say nothing of it, and are left out.
    """
    scorer = TorchScorer(model, tokenizer)
    names = protocol.gallery
    row = {name: at for at, name in enumerate(names)}
    parts = [scorer.encode_images(pictures(names[at : at + BATCH])) for at in range(0, len(names), BATCH)]
    gallery = TargetFeatures(
        np.concatenate([part.vectors for part in parts]), np.concatenate([part.regions for part in parts])
    )
    asked = protocol.queries[:: -(-len(protocol.queries) // queries)]
    texts = [triplet.texts[number % len(triplet.texts)] for number, triplet in enumerate(asked)]
    lists = []
    for at in range(0, len(asked), BATCH):
        chunk, said = asked[at : at + BATCH], texts[at : at + BATCH]
        for triplet, query in zip(chunk, _composed(scorer, gallery, row, chunk, said), strict=True):
            if query is not None:
                others = [row[name] for name in (triplet.reference, *triplet.targets[1:]) if name in row]
                lists.append(_scored(model, scorer, gallery, query, row[triplet.targets[0]], others))
    return _fit(torch.stack(lists).clone()) if lists else model.head.mix.detach().cpu()


def _composed(
    scorer: TorchScorer,
    gallery: TargetFeatures,
    row: Mapping[str, int],
    asked: Sequence[Triplet],
    texts: Sequence[str],
) -> list[QueryFeatures | None]:
    references = gallery.take([row[triplet.reference] for triplet in asked])
    return each_readable(lambda at: scorer.compose(references.take(at), [texts[i] for i in at]), len(texts))


def _scored(
    model: NSFSE, scorer: TorchScorer, gallery: TargetFeatures, query: QueryFeatures, target: int, others: Sequence[int]
) -> Tensor:
    """Return what S is made of [C, 3]: of the target, then of the best candidates by stage 1 without `others`."""
    cosines = torch.from_numpy(gallery.vectors @ query.vector)
    cosines[[*others]] = FAR
    wrong = cosines.clone()
    wrong[target] = FAR
    rows = torch.cat([torch.tensor([target]), wrong.topk(min(CANDIDATES, len(wrong) - 1)).indices])
    with torch.inference_mode():
        regions = torch.from_numpy(gallery.regions[rows.numpy()])[None].to(scorer.device)
        pair = model.head.pair_side(side_of(query).to(scorer.device), regions)
    return torch.stack([cosines[rows], pair.cross[0].cpu(), pair.visual[0].cpu()], 1)


def _fit(parts: Tensor) -> Tensor:
    """Fit three weights to `parts` [Q, C, 3], the target first, a convex problem; that of stage 1 is then 2."""
    weights = torch.tensor([20.0, 5.0, 5.0]).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    blocked = parts[..., 0] <= FAR
    known = parts.masked_fill(blocked[..., None], 0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = (known * weights).sum(-1).masked_fill(blocked, FAR)
        loss = F.cross_entropy(logits, torch.zeros(len(parts), dtype=torch.long))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = weights.detach()
    found = (2.0 * found / found[0].clamp_min(1.0)).clamp(LEAST, 100.0)
    return found + torch.log(-torch.expm1(-found))  # softplus backwards; log(expm1(x)) is infinite from 89 on
