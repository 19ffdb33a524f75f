"""t_c, t_v and ω of the weights that are served: fitted on lists as serving makes them (docs/method.md §5).

Training streams both boundaries from the weights of each step, over queries and images that it has seen; what is
served is a running average of the weights, asked of others. So t is solved for again, with the served weights on
queries held out of training where the source has some.

Learned along with the rest, ω is fitted to training batches, whose candidates are much easier than the best hundred of
a gallery; on those the head then spoiled what stage 1 had right. On images that training has seen stage 1 is too sure
of itself, and the head counts for too little: sources that can hold some out of training do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse.config import FITTING_QUERIES
from nsfse.data import EvalQuery, EvaluationProtocol, Pixels
from nsfse.evaluation.ranker import map_valid_texts
from nsfse.models.boundary import Refit
from nsfse.models.nsfse import NSFSE
from nsfse.models.similarity_head import FAR, PairSide
from nsfse.models.torch_scorer import TorchScorer, side_of
from nsfse.training.losses import Terms, boundary_terms
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.types import QueryFeatures, TargetFeatures

CANDIDATES, BATCH = 100, 128
MISMATCHED = 32  # random wrong images a query in the statistics of t
LEAST = 1e-3  # no part is switched off altogether

Images = Callable[[Sequence[str]], Pixels]


@dataclass(frozen=True)
class Question:
    """One query of a gallery: the row of its first right answer there, and the rows that are no wrong answers.

    `others` are those of the reference and of the further right answers.
    """

    query: QueryFeatures
    answer: int
    others: tuple[int, ...]


@dataclass(frozen=True)
class Lists:
    """A gallery's features, and queries asked of it."""

    gallery: TargetFeatures
    questions: tuple[Question, ...]


def fit_served(
    model: NSFSE, tokenizer: Tokenizer, protocol: EvaluationProtocol, images: Images, queries: int = FITTING_QUERIES
) -> dict[str, Refit]:
    """Fit t_c, t_v, and then ω with these, of `model`, in place; return what became of `t_c` and `t_v`.

    About `queries` of the protocol are asked of its gallery. Nothing else of the model changes.
    """
    lists = make_lists(model, tokenizer, protocol, images, queries)
    found = fit_boundaries(model, lists)
    with torch.no_grad():
        model.head.mix.copy_(_mix(model, lists))
    return found


def make_lists(model: NSFSE, tokenizer: Tokenizer, protocol: EvaluationProtocol, images: Images, queries: int) -> Lists:
    """Encode the protocol's gallery and about `queries` of its queries, spread evenly, one phrasing after another.

    A query's answer is the first of its right answers in the gallery; queries without any, those whose reference is
    not in the gallery, and those in words unknown to the model are left out.
    """
    scorer, names = TorchScorer(model, tokenizer), protocol.gallery
    row = {name: at for at, name in enumerate(names)}
    parts = [scorer.encode_images(images(names[at : at + BATCH])) for at in range(0, len(names), BATCH)]
    if not parts:
        return Lists(TargetFeatures(np.empty((0, 0), np.float32), np.empty((0, 0, 0), np.float32)), ())
    gallery = TargetFeatures(
        np.concatenate([part.vectors for part in parts]), np.concatenate([part.regions for part in parts])
    )
    asked = [triplet for triplet in protocol.queries if triplet.reference in row and _answers(triplet, row)]
    asked = asked[:: -(-len(asked) // queries) or 1]
    texts = [triplet.texts[number % len(triplet.texts)] for number, triplet in enumerate(asked)]
    found = []
    for at in range(0, len(asked), BATCH):
        chunk, said = asked[at : at + BATCH], texts[at : at + BATCH]
        for triplet, query in zip(chunk, _composed(scorer, gallery, row, chunk, said), strict=True):
            if query is not None:
                answer, *more = _answers(triplet, row)
                found.append(Question(query, answer, (row[triplet.reference], *more)))
    return Lists(gallery, tuple(found))


def _answers(triplet: EvalQuery, row: Mapping[str, int]) -> list[int]:
    """Return the rows of a query's right answers, in its order: the reference is none, whatever the query says."""
    return [row[name] for name in triplet.targets if name in row and name != triplet.reference]


def _composed(
    scorer: TorchScorer,
    gallery: TargetFeatures,
    row: Mapping[str, int],
    asked: Sequence[EvalQuery],
    texts: Sequence[str],
) -> list[QueryFeatures | None]:
    references = gallery.take([row[triplet.reference] for triplet in asked])
    return map_valid_texts(lambda at: scorer.compose(references.take(at), [texts[i] for i in at]), len(texts))


def fit_boundaries(model: NSFSE, lists: Lists) -> dict[str, Refit]:
    """Solve for `t_c` and `t_v` with the correspondences of the queries of `lists`; return what became of each.

    Matched are those with a query's answer; mismatched are those with random wrong images, as in training: the hardest
    are set aside, for they share most words and, called mismatched, hide the difference. Weights are those of training.
    """
    cross: list[Terms] = []
    visual: list[Terms] = []
    for number, question in enumerate(lists.questions):
        side, wrong = side_of(question.query), random_wrong(lists.gallery, question, number)
        if len(wrong):
            pair = _pair(model, lists.gallery, question.query, np.array([question.answer, *wrong]))
            matched = torch.zeros(1, 1 + len(wrong), device=pair.x.device)
            matched[0, 0] = 1.0
            side = side.to(pair.x.device)
            cross.append(boundary_terms(pair.x, side.word_weights, matched, 1.0 - matched))
            visual.append(boundary_terms(pair.y, side.probe_weights, matched, 1.0 - matched))
    head = model.head
    return {
        name: boundary.refit(*(torch.cat(parts) for parts in zip(*map(_flat, terms), strict=True)))
        if terms
        else "too few samples"
        for name, boundary, terms in (("t_c", head.cross_boundary, cross), ("t_v", head.visual_boundary, visual))
    }


def _flat(terms: Terms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best = terms.best.flatten().cpu()
    return best, terms.matched.flatten().cpu(), best, terms.mismatched.flatten().cpu()


def random_wrong(gallery: TargetFeatures, question: Question, number: int) -> list[int]:
    """Return up to MISMATCHED rows of wrong answers for query `number`, the as many that stage 1 likes best set aside.

    The same for the same gallery and number, whatever came before.
    """
    cosines = gallery.vectors @ question.query.vector
    wrong = np.setdiff1d(np.arange(len(cosines)), [question.answer, *question.others])
    count = min(MISMATCHED, len(wrong) // 2)
    easier = wrong[np.argsort(-cosines[wrong], kind="stable")[count:]]
    found: list[int] = np.random.default_rng([6, number]).choice(np.sort(easier), count, replace=False).tolist()
    return found


def _pair(model: NSFSE, gallery: TargetFeatures, query: QueryFeatures, rows: np.ndarray) -> PairSide:
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model.head.pair_side(side_of(query).to(device), torch.from_numpy(gallery.regions[rows])[None].to(device))


def _mix(model: NSFSE, lists: Lists) -> Tensor:
    """Return the `head.mix` [3] (before its softplus) that ranks the answers of `lists` best by cross entropy.

    Where these have no questions, the model's own.
    """
    parts = [_scored(model, lists.gallery, question) for question in lists.questions]
    return _fit(torch.stack(parts).clone()) if parts else model.head.mix.detach().cpu()


def _scored(model: NSFSE, gallery: TargetFeatures, question: Question) -> Tensor:
    """Return what S is made of [C, 3]: of the answer, then of the best candidates by stage 1 without `others`."""
    cosines = torch.from_numpy(gallery.vectors @ question.query.vector)
    cosines[[*question.others]] = FAR
    wrong = cosines.clone()
    wrong[question.answer] = FAR
    rows = torch.cat([torch.tensor([question.answer]), wrong.topk(min(CANDIDATES, len(wrong) - 1)).indices])
    pair = _pair(model, gallery, question.query, rows.numpy())
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
