"""The similarity head: query-side words and probes, then both similarities with a candidate (docs/method.md §2-5)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.boundary import AdaptiveBoundary
from nsfse.models.composer import Composer

NEG_INF = -1e4  # a logit that softmax turns into 0
MIN_WEIGHT = 1e-6
SIGN_START = 0.5  # words start as asking for what they name
SIGN_CONTEXT = 4  # words on either side: "any other colour than red"


@dataclass(frozen=True)
class QueryEncoding:
    """What the head makes of a query alone, computed once.

    words [B, L, d] (infused, ŵ), probes [B, R+L, d] (the predicted target regions, then one probe a word), word_weights
    [B, L] (κ: absolute values sum to 1, negative for what must be absent), probe_weights [B, R+L] (ν), mask [B, L].
    """

    words: Tensor
    probes: Tensor
    word_weights: Tensor
    probe_weights: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "QueryEncoding":
        """Return the queries on `device`."""
        return QueryEncoding(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class TextReading:
    """A text read beside its reference image.

    words [B, L, d] (ŵ), probes [B, L, d] (what each word looks for, b), weights [B, L] (κ), signs [B, L] (negative
    where κ is), claims [B, R] (how much any word claims a region), mask [B, L].
    """

    words: Tensor
    probes: Tensor
    weights: Tensor
    signs: Tensor
    claims: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> "TextReading":
        """Return the queries `rows`."""
        return TextReading(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def summary_vector(self) -> Tensor:
        """Return the weighted sums of the words and of their probes, [B, 2d]."""
        signed = self.weights[:, None]
        return torch.cat([signed @ self.words, signed.abs() @ self.probes], -1).squeeze(1)


@dataclass(frozen=True)
class PairSimilarities:
    """Similarities of B queries with M candidates each.

    cross [B, M] (S_c), visual [B, M] (S_v), x [B, M, L] and y [B, M, R+L] (each word's and probe's best region).
    """

    cross: Tensor
    visual: Tensor
    x: Tensor
    y: Tensor


def masked_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the last axis of `logits` where `keep`; rows that keep nothing become 0."""
    weights = torch.softmax(logits.masked_fill(~keep, NEG_INF), dim=-1)
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
        self.around = nn.Conv1d(dim, dim, 2 * SIGN_CONTEXT + 1, padding=SIGN_CONTEXT)
        self.sign = nn.Linear(dim, 1)
        nn.init.constant_(self.sign.bias, SIGN_START)

    def forward(self, words: Tensor) -> Tensor:
        """Return the signs [B, L] of unit rows `words` [B, L, d], zero where masked."""
        scaled = words.transpose(1, 2) * math.sqrt(words.shape[2])
        signs: Tensor = self.sign(F.relu(self.around(scaled)).transpose(1, 2))
        return signs.squeeze(-1)


class PairHead(nn.Module):
    """Both boundaries and both branches: what a composed query has in common with a candidate. It learns ω alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gamma, self.scale, self.global_tokens = config.gamma, config.attention_scale, config.global_tokens

    def add_boundaries(self, config: ModelConfig) -> None:
        """Add t_c, t_v and ω; they are a head's last parameters."""
        fixed = None if config.boundary == "dynamic" else config.boundary
        self.cross_boundary = AdaptiveBoundary(config.alpha, fixed=fixed)
        self.visual_boundary = AdaptiveBoundary(config.alpha, fixed=fixed)
        self.mix = nn.Parameter(torch.tensor([1.8546, 0.5413, 0.5413]))  # softplus of it is 2, 1, 1: ω_g, ω_c, ω_v

    def _view_branches(self, view: Tensor) -> Tensor:
        """Both branches of global tokens, each compared with the same token alone, `view` of any shape."""
        t = self.visual_boundary.t
        return view + view * (view > t) + self.gamma * (view - t).clamp_max(0)

    def pair_similarities(self, query: QueryEncoding, regions: Tensor, gram: Tensor | None = None) -> PairSimilarities:
        """Score B queries against M candidates each, `regions` [B, M, R, d], their Gram matrices [B, M, R, R]."""
        return self.correspond(query, *self.products(query, regions), grams(regions) if gram is None else gram)

    def products(self, query: QueryEncoding, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `across`, `near` and `view` of `correspond` for B queries and `regions` [B, M, R + V, d]."""
        places = regions.shape[2] - self.global_tokens  # as many as predicted regions
        predicted, tokens = query.probes[:, :places], query.probes[:, places : places + self.global_tokens]
        probes = query.probes[:, places + self.global_tokens :]
        across = torch.einsum("bld,bmrd->bmlr", query.words, regions)
        near = torch.einsum("bld,bmrd->bmlr", torch.cat([predicted, probes], 1), regions)
        view = torch.einsum("bvd,bmvd->bmv", tokens, regions[:, :, places:])
        return across, near, view

    def correspond(
        self, query: QueryEncoding, across: Tensor, near: Tensor, view: Tensor, gram: Tensor
    ) -> PairSimilarities:
        """Turn products and Gram matrices [B, M, R + V, R + V] into similarities.

        `across` [B, M, L, R + V] are those of words, `near` [B, M, R + L, R + V] of predicted regions and the words'
        probes, `view` [B, M, V] of each global token with the same one alone.
        """
        t_c, t_v = self.cross_boundary.t, self.visual_boundary.t
        places = near.shape[2] - across.shape[2]
        guide = torch.cat([near[:, :, :places], 0.5 * (across + near[:, :, places:])], 2)
        x, best = across.amax(-1), near.amax(-1)
        y = torch.cat([best[..., :places], view, best[..., places:]], -1)
        over = x - t_c
        wrong = torch.where(query.word_weights[:, None] < 0, over.clamp_min(0), over.clamp_max(0))
        cross = self._branch(across, across, t_c, x, gram) + self.gamma * wrong
        local = self._branch(near, guide, t_v, best, gram) + self.gamma * (best - t_v).clamp_max(0)
        visual = torch.cat([local[..., :places], self._view_branches(view), local[..., places:]], -1)
        s_c, s_v = (query.word_weights[:, None] * cross).sum(-1), (query.probe_weights[:, None] * visual).sum(-1)
        return PairSimilarities(s_c, s_v, x, y)

    def _branch(self, products: Tensor, guide: Tensor, t: Tensor | float, best: Tensor, gram: Tensor) -> Tensor:
        """Positive branch of one similarity, [B, M, K]: a gathered cosine and a relevance-weighted sum.

        `best` [B, M, K] are the largest of `products` [B, M, K, R]: none is over `t` where it is not.
        """
        attention = torch.softmax((self.scale * guide).masked_fill(products <= t, NEG_INF), -1)
        gathered = gathered_cosine(attention, products, gram).masked_fill(best <= t, 0.0)
        leaning = F.leaky_relu(products, 0.1)
        relevance = leaning * (self.scale / leaning.norm(dim=2, keepdim=True).clamp_min(1e-12))
        return gathered + (torch.softmax(relevance, -1) * products).sum(-1)

    def total(self, stage1: Tensor, pair: PairSimilarities) -> Tensor:
        """Return S = ω_g⟨q, g⟩ + ω_c S_c + ω_v S_v, for the cosines `stage1` [B, M]."""
        weight = F.softplus(self.mix)
        return weight[0] * stage1 + weight[1] * pair.cross + weight[2] * pair.visual

    @torch.no_grad()
    def fusion_weights(self) -> Tensor:
        """Return ω_g, ω_c and ω_v [3], the weights of the three parts of S."""
        return F.softplus(self.mix)


class SimilarityHead(PairHead):
    """Infusion and probes, then both boundaries and both branches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.dim
        self.infusion = config.infusion
        if self.infusion:
            self.infuse_scale = nn.Parameter(torch.tensor(9.0))
            self.infuse_gate = nn.Linear(2 * d, d)
            self.infuse_value = nn.Linear(d, d, bias=False)
            self.infuse_norm = nn.LayerNorm(d)
        self.probe_scale = nn.Parameter(torch.tensor(9.0))
        self.probe_gate = _small_mlp(d, d)
        self.keep = Composer(d, 2 * d)
        self.keep_views = Composer(d, 4 * d)
        self.word_weight = _small_mlp(d, 1)
        self.word_sign = WordSign(d)
        self.probe_weight = _small_mlp(d, 1)
        self.claim_weight = nn.Parameter(torch.tensor(1.0))
        self.add_boundaries(config)

    def read(self, words: Tensor, sentence: Tensor, mask: Tensor, regions: Tensor) -> TextReading:
        """Read a text beside its reference image.

        Args:
            words: Unit words [B, L, d].
            sentence: Unit sentences [B, d]; only an ablation reads them (nsfse.models.ablations).
            mask: True [B, L] where there is a word.
            regions: The reference's unit regions [B, R, d].
        """
        infused = (self._infuse(words, regions) if self.infusion else words) * mask[..., None]
        affinity = infused @ regions.transpose(1, 2)
        attended = torch.softmax(self.probe_scale * affinity, -1) @ regions
        probes = F.normalize(torch.sigmoid(self.probe_gate(infused)) * attended, dim=-1) * mask[..., None]
        claims = affinity.masked_fill(~mask[..., None], NEG_INF).amax(1)
        signs = self.word_sign(words * mask[..., None])
        share = masked_softmax(self.word_weight(infused).squeeze(-1), mask) * torch.tanh(signs)
        weights = share / share.abs().sum(1, keepdim=True).clamp_min(MIN_WEIGHT)
        return TextReading(infused, probes, weights, signs, claims, mask)

    def encode_query(self, reading: TextReading, sentence: Tensor, regions: Tensor) -> QueryEncoding:
        """Add target region predictions: the reference's `regions` [B, R, d] as `sentence` [B, d] changes them."""
        places = regions[:, : -self.global_tokens]
        predicted = self.keep(places, sentence[:, None].expand_as(places))
        probes = torch.cat([predicted, self.view_probes(sentence, regions), reading.probes], 1)
        prior = F.pad(-self.claim_weight * reading.claims, (0, reading.mask.shape[1]))
        every = torch.cat([torch.ones_like(reading.claims, dtype=torch.bool), reading.mask], 1)
        weights = masked_softmax(self.probe_weight(probes).squeeze(-1) + prior, every)
        return QueryEncoding(reading.words, probes, reading.weights, weights, reading.mask)

    def _infuse(self, words: Tensor, regions: Tensor) -> Tensor:
        affinity = F.normalize(F.leaky_relu(words @ regions.transpose(1, 2), 0.1), dim=1)
        context = torch.softmax(self.infuse_scale * affinity, -1) @ regions
        gate = torch.sigmoid(self.infuse_gate(torch.cat([words, context], -1)))
        return F.normalize(self.infuse_norm(words + gate * self.infuse_value(context)), dim=-1)

    def view_probes(self, sentence: Tensor, regions: Tensor) -> Tensor:
        """Predict the target's global tokens [B, V, d] from those of the reference, the last of `regions` [B, R, d]."""
        tokens = regions[:, -self.global_tokens :]
        predicted: Tensor = self.keep_views(tokens, sentence[:, None].expand_as(tokens))
        return predicted

    def view_scores(self, probes: Tensor, regions: Tensor) -> Tensor:
        """Score B queries by their global-token `probes` [B, V, d] against U images' `regions` [U, R, d]: [B, U]."""
        view = torch.einsum("bvd,uvd->buv", probes, regions[:, -self.global_tokens :])
        return self._view_branches(view).mean(-1)
