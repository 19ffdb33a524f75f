"""The similarity head: query-side words and probes, then both similarities with a candidate (docs/method.md §2-5)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.boundary import AdaptiveBoundary
from nsfse.models.composer import Composer

FAR = -1e4  # a logit that softmax turns into 0
LEAST_SHARE = 1e-6
SIGN_START = 0.5  # words start as asking for what they name
SIGN_REACH = 4  # words on either side: "any other colour than red"


@dataclass(frozen=True)
class QuerySide:
    """The query's half of the head, computed once.

    words [B, L, d] (infused, ŵ), probes [B, R+L, d] (the kept regions first, then one probe a word), word_weights
    [B, L] (κ: sizes sum to 1, under 0 for what must not be there), probe_weights [B, R+L] (ν), mask [B, L].
    """

    words: Tensor
    probes: Tensor
    word_weights: Tensor
    probe_weights: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "QuerySide":
        """Return the queries on `device`."""
        return QuerySide(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Reading:
    """A text read beside its reference: words [B, L, d] (ŵ), asked [B, L, d] (their probes b), weights [B, L] (κ),
    signs [B, L] (under 0 where κ is), claimed [B, R] (how much any word claims a region), mask [B, L].
    """

    words: Tensor
    asked: Tensor
    weights: Tensor
    signs: Tensor
    claimed: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> "Reading":
        """Return the queries `rows`."""
        return Reading(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def gist(self) -> Tensor:
        """Return what the words and their probes say together, [B, 2d]."""
        signed = self.weights[:, None]
        return torch.cat([signed @ self.words, signed.abs() @ self.asked], -1).squeeze(1)


@dataclass(frozen=True)
class PairSide:
    """What a pair gave: cross [B, M] (S_c), visual [B, M] (S_v), x [B, M, L] and y [B, M, R+L] (the best of each)."""

    cross: Tensor
    visual: Tensor
    x: Tensor
    y: Tensor


def masked_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the last axis of `logits` where `keep`; rows that keep nothing become 0."""
    weights = torch.softmax(logits.masked_fill(~keep, FAR), dim=-1)
    return weights * keep


def gathered_cosine(weights: Tensor, products: Tensor, gram: Tensor) -> Tensor:
    """cos(u, Σ_j a_j v_j) from a [..., K, R], ⟨u, v_j⟩ [..., K, R] and the Gram matrix [..., R, R]; 0 for a = 0."""
    norm = ((weights @ gram) * weights).sum(-1)
    return (weights * products).sum(-1) / norm.clamp_min(1e-8).sqrt()


def grams(regions: Tensor) -> Tensor:
    """Return the Gram matrices [..., R, R] of `regions` [..., R, d]."""
    return regions @ regions.transpose(-1, -2)


def _small_mlp(dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))


class WordSign(nn.Module):
    """Words [B, L, d] → signs [B, L]: under 0 where the words around say that it must not be there ("no stripes").

    It has weights of its own: in the text encoder, which learns everything else, this came hundreds of steps later.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.around = nn.Conv1d(dim, dim, 2 * SIGN_REACH + 1, padding=SIGN_REACH)
        self.sign = nn.Linear(dim, 1)
        nn.init.constant_(self.sign.bias, SIGN_START)

    def forward(self, words: Tensor) -> Tensor:
        """Return the signs [B, L] of unit rows `words` [B, L, d], zero where masked."""
        scaled = words.transpose(1, 2) * math.sqrt(words.shape[2])
        found: Tensor = self.sign(F.relu(self.around(scaled)).transpose(1, 2))
        return found.squeeze(-1)


class SimilarityHead(nn.Module):
    """Infusion, probes, both boundaries, both branches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.dim
        self.infusion, self.gamma, self.scale = config.infusion, config.gamma, config.attention_scale
        self.sentence_only, self.branches = config.words == "sentence", config.branches
        if self.infusion:
            self.infuse_scale = nn.Parameter(torch.tensor(9.0))
            self.infuse_gate = nn.Linear(2 * d, d)
            self.infuse_value = nn.Linear(d, d, bias=False)
            self.infuse_norm = nn.LayerNorm(d)
        self.probe_scale = nn.Parameter(torch.tensor(9.0))
        self.probe_gate = _small_mlp(d, d)
        self.keep = Composer(d, 2 * d)
        self.views = config.global_tokens
        self.keep_views = Composer(d, 4 * d)
        self.word_weight = _small_mlp(d, 1)
        self.word_sign = WordSign(d)
        self.probe_weight = _small_mlp(d, 1)
        self.claim_weight = nn.Parameter(torch.tensor(1.0))
        fixed = None if config.boundary == "dynamic" else config.boundary
        self.cross_boundary = AdaptiveBoundary(config.alpha, fixed=fixed)
        self.visual_boundary = AdaptiveBoundary(config.alpha, fixed=fixed)
        self.mix = nn.Parameter(torch.tensor([1.8546, 0.5413, 0.5413]))  # softplus of it is 2, 1, 1: ω_g, ω_c, ω_v

    def read(self, words: Tensor, sentence: Tensor, mask: Tensor, regions: Tensor) -> Reading:
        """Read words [B, L, d], sentence [B, d], mask [B, L] beside the reference's regions [B, R, d]."""
        if self.sentence_only:
            words, mask = sentence[:, None], mask[:, :1]
        infused = (self._infuse(words, regions) if self.infusion else words) * mask[..., None]
        affinity = infused @ regions.transpose(1, 2)
        attended = torch.softmax(self.probe_scale * affinity, -1) @ regions
        asked = F.normalize(torch.sigmoid(self.probe_gate(infused)) * attended, dim=-1) * mask[..., None]
        claimed = affinity.masked_fill(~mask[..., None], FAR).amax(1)
        signs = self.word_sign(words * mask[..., None])
        share = masked_softmax(self.word_weight(infused).squeeze(-1), mask) * torch.tanh(signs)
        weights = share / share.abs().sum(1, keepdim=True).clamp_min(LEAST_SHARE)
        return Reading(infused, asked, weights, signs, claimed, mask)

    def query_side(self, reading: Reading, sentence: Tensor, regions: Tensor) -> QuerySide:
        """Add to what was read the reference's regions [B, R, d] as sentence [B, d] leaves them."""
        places = regions[:, : -self.views]
        kept = self.keep(places, sentence[:, None].expand_as(places))
        probes = torch.cat([kept, self.view_probes(sentence, regions), reading.asked], 1)
        prior = F.pad(-self.claim_weight * reading.claimed, (0, reading.mask.shape[1]))
        every = torch.cat([torch.ones_like(reading.claimed, dtype=torch.bool), reading.mask], 1)
        weights = masked_softmax(self.probe_weight(probes).squeeze(-1) + prior, every)
        return QuerySide(reading.words, probes, reading.weights, weights, reading.mask)

    def _infuse(self, words: Tensor, regions: Tensor) -> Tensor:
        affinity = F.normalize(F.leaky_relu(words @ regions.transpose(1, 2), 0.1), dim=1)
        context = torch.softmax(self.infuse_scale * affinity, -1) @ regions
        gate = torch.sigmoid(self.infuse_gate(torch.cat([words, context], -1)))
        return F.normalize(self.infuse_norm(words + gate * self.infuse_value(context)), dim=-1)

    def view_probes(self, sentence: Tensor, regions: Tensor) -> Tensor:
        """Return what the views of the reference [B, R, d], its last regions, should be in the target, [B, V, d]."""
        views = regions[:, -self.views :]
        found: Tensor = self.keep_views(views, sentence[:, None].expand_as(views))
        return found

    def view_scores(self, probes: Tensor, regions: Tensor) -> Tensor:
        """Score B queries by their view `probes` [B, V, d] alone against U images' `regions` [U, R, d]: [B, U]."""
        view = torch.einsum("bvd,uvd->buv", probes, regions[:, -self.views :])
        return self._view_branches(view).mean(-1)

    def _view_branches(self, view: Tensor) -> Tensor:
        """Both branches of views, each compared with one product `view` alone: any shape."""
        t = self.visual_boundary.t
        return view + view * (view > t) + self.gamma * (view - t).clamp_max(0)

    def pair_side(self, query: QuerySide, regions: Tensor, gram: Tensor | None = None) -> PairSide:
        """Score B queries against M candidates each, `regions` [B, M, R, d], their Gram matrices [B, M, R, R]."""
        return self.correspond(query, *self.products(query, regions), grams(regions) if gram is None else gram)

    def products(self, query: QuerySide, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `across`, `near` and `view` of `correspond` for B queries and `regions` [B, M, R + V, d]."""
        places = regions.shape[2] - self.views  # as many of them as kept regions
        kept, views = query.probes[:, :places], query.probes[:, places : places + self.views]
        asked = query.probes[:, places + self.views :]
        across = torch.einsum("bld,bmrd->bmlr", query.words, regions)
        near = torch.einsum("bld,bmrd->bmlr", torch.cat([kept, asked], 1), regions)
        view = torch.einsum("bvd,bmvd->bmv", views, regions[:, :, places:])
        return across, near, view

    def correspond(self, query: QuerySide, across: Tensor, near: Tensor, view: Tensor, gram: Tensor) -> PairSide:
        """Turn products and Gram matrices [B, M, R + V, R + V] into similarities.

        `across` [B, M, L, R + V] are those of words, `near` [B, M, R + L, R + V] of kept regions and the words' probes,
        `view` [B, M, V] of each view with the same one alone.
        """
        t_c, t_v = self.cross_boundary.t, self.visual_boundary.t
        places = near.shape[2] - across.shape[2]
        guide = torch.cat([near[:, :, :places], 0.5 * (across + near[:, :, places:])], 2)
        x, best = across.amax(-1), near.amax(-1)
        y = torch.cat([best[..., :places], view, best[..., places:]], -1)
        over = x - t_c
        wrong = torch.where(query.word_weights[:, None] < 0, over.clamp_min(0), over.clamp_max(0))
        cross = self._branch(across, across, t_c, x, gram) + self.gamma * wrong
        found = self._branch(near, guide, t_v, best, gram) + self.gamma * (best - t_v).clamp_max(0)
        seen = torch.cat([found[..., :places], self._view_branches(view), found[..., places:]], -1)
        s_c, s_v = (query.word_weights[:, None] * cross).sum(-1), (query.probe_weights[:, None] * seen).sum(-1)
        # A branch that is switched off is 0 and not left out: a graph of the head keeps all its inputs.
        return PairSide(
            0.0 * s_c if self.branches == "visual" else s_c, 0.0 * s_v if self.branches == "cross" else s_v, x, y
        )

    def _branch(self, products: Tensor, guide: Tensor, t: Tensor | float, best: Tensor, gram: Tensor) -> Tensor:
        """Positive branch of one similarity, [B, M, K]: a gathered cosine and a relevance-weighted sum.

        `best` [B, M, K] are the largest of `products` [B, M, K, R]: none is over `t` where it is not.
        """
        attention = torch.softmax((self.scale * guide).masked_fill(products <= t, FAR), -1)
        gathered = gathered_cosine(attention, products, gram).masked_fill(best <= t, 0.0)
        leaning = F.leaky_relu(products, 0.1)
        relevance = leaning * (self.scale / leaning.norm(dim=2, keepdim=True).clamp_min(1e-12))
        return gathered + (torch.softmax(relevance, -1) * products).sum(-1)

    def total(self, stage1: Tensor, pair: PairSide) -> Tensor:
        """S = ω_g⟨q, g⟩ + ω_c S_c + ω_v S_v, for `stage1` [B, M]."""
        weight = F.softplus(self.mix)
        return weight[0] * stage1 + weight[1] * pair.cross + weight[2] * pair.visual
