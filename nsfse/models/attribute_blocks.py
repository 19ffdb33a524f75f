"""Vectors with a block for each attribute: how likely each of its values is (docs/method.md §7)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse_runtime.errors import DataError

SCALE = 16.0  # of unit vectors before a classifier: its weights start small, and decay
LEAST = 1e-3  # share of all values alike, so that no root has an infinite slope; and what is added before a logarithm
REPLACED = -1.0  # texts start by replacing little
NAMING_SCALE = 8.0  # of unit words before their classifier, as SCALE
LEAST_CHANCE, EVEN_CHANCE, NAMING_WEIGHT = 0.02, 0.3, 0.4
"""A word's correspondence gains NAMING_WEIGHT · log((LEAST_CHANCE + chance) / EVEN_CHANCE)."""
UNNAMED = 50.0  # logit of "no attribute" until words are fitted
LEAST_REST = 0.25  # share of d that must be left for what no attribute names


class AttributeBlocks(nn.Module):
    """g = [w_0 rest; w_1 √p_1; ...; w_A √p_A], of unit length: Σ w² = 1, and p_a is the distribution of attribute a.

    The inner product of two such vectors is w_0² ⟨rest, rest′⟩ + Σ w_a² Σ_v √(p_a p′_a), Bhattacharyya's coefficient of
    each attribute.

    Args:
        dim: d of the vectors.
        attributes: How many values each attribute has.

    Fitted after training: `agreement_weights` [A], the ω_a of S (nsfse.training.score_weights), and which words name
    which value (nsfse.training.word_naming). Neither counts before.

    Raises:
        DataError: They leave less than a quarter of d.
    """

    agreement_weights: Tensor
    naming_weight: Tensor
    naming_bias: Tensor

    def __init__(self, dim: int, attributes: Mapping[str, int]) -> None:
        super().__init__()
        self.counts = list(attributes.values())
        total = sum(self.counts)
        self.rest = dim - total
        if self.rest < LEAST_REST * dim:
            raise DataError(
                f"model.attribute_blocks: {total} values of {len(self.counts)} attributes leave {self.rest} of"
                f" model.dim={dim}; give it {-(-total * 4 // 3)} or more, or set model.attribute_blocks=false"
            )
        self.own, self.values = nn.Linear(dim, self.rest), nn.Linear(dim, total)
        self.replaced, self.requested = nn.Linear(dim, len(self.counts)), nn.Linear(dim, total)
        nn.init.constant_(self.replaced.bias, REPLACED)
        self.weights = nn.Parameter(torch.zeros(1 + len(self.counts)))
        self.register_buffer("agreement_weights", torch.zeros(len(self.counts)))
        rows = 1 + len(self.counts) + total
        self.register_buffer("naming_weight", torch.zeros(rows, dim))
        self.register_buffer("naming_bias", torch.tensor([UNNAMED, *[0.0] * (rows - 1)]))

    def describe(self, vectors: Tensor) -> Tensor:
        """Return the vectors g [B, d] of images, from the image encoder's unit `vectors` [B, d]."""
        return self._join(self.own(vectors), self._shares(self.values(SCALE * vectors)))

    def compose(self, references: Tensor, sentence: Tensor, composed: Tensor) -> Tensor:
        """Compose the attributes of references with texts: p_a ← (1 − s_a) p_a + s_a p_a(text).

        Args:
            references: Vectors g of the references [B, d].
            sentence: Unit sentences [B, d].
            composed: What the composer made of both [B, d]; its first channels are the rest.

        Returns:
            The vectors of the queries [B, d].
        """
        texts = SCALE * sentence
        replaced = torch.split(torch.sigmoid(self.replaced(texts)), 1, -1)
        requested, known = self._shares(self.requested(texts)), self.distributions(references)
        shares = [(1 - s) * old + s * new for s, old, new in zip(replaced, known, requested, strict=True)]
        return self._join(composed[:, : self.rest], shares)

    def distributions(self, vectors: Tensor) -> list[Tensor]:
        """Return p_a [..., C_a] of each attribute, from vectors g [..., d] of images or queries."""
        blocks = torch.split(vectors[..., self.rest :], self.counts, -1)
        return [(block / w).square() for block, w in zip(blocks, self._roots()[1:], strict=True)]

    def agreements(self, queries: Tensor, vectors: Tensor) -> Tensor:
        """Return log Σ_v p̃_a p_a of each attribute: how likely an image has the value that the query wants.

        Args:
            queries: Vectors of queries [B, d].
            vectors: Vectors of M candidates of each [B, M, d].

        Returns:
            [B, M, A], at least log(LEAST).
        """
        both = zip(self.distributions(queries[:, None]), self.distributions(vectors), strict=True)
        return torch.log(torch.stack([(wanted * found).sum(-1) for wanted, found in both], -1) + LEAST)

    def word_gains(self, words: Tensor, vectors: Tensor) -> Tensor:
        """Return what the attributes of images add to the correspondences of words that name a value.

        Args:
            words: Infused words [B, L, d].
            vectors: Vectors of M candidates of each query [B, M, d].

        Returns:
            [B, M, L]: by the chance that the image has the value, and by how surely the word names one.
        """
        attributes, values = self.naming_logits(words, self.naming_weight, self.naming_bias)
        both = zip(self.distributions(vectors), values, strict=True)
        chances = torch.stack([found @ torch.softmax(named, -1).transpose(1, 2) for found, named in both], -1)
        gains = torch.log((chances + LEAST_CHANCE) / EVEN_CHANCE)
        return NAMING_WEIGHT * (torch.softmax(attributes, -1)[:, None, :, 1:] * gains).sum(-1)

    def naming_logits(self, words: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits of the attribute that words [..., d] name [..., 1 + A], none first, and of their values."""
        logits = F.linear(NAMING_SCALE * words, weight, bias)
        attributes, *values = torch.split(logits, [1 + len(self.counts), *self.counts], -1)
        return attributes, tuple(values)

    @torch.no_grad()
    def shares(self) -> Tensor:
        """Return w² [A], the part of each attribute in the length of a vector."""
        return self._roots()[1:].square()

    def _roots(self) -> Tensor:
        return torch.softmax(self.weights, 0).sqrt()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Load weights; an older run has none of the buffers, which stay as they are."""
        for name, buffer in self.named_buffers():
            state_dict.setdefault(f"{prefix}{name}", buffer)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _shares(self, logits: Tensor) -> list[Tensor]:
        parts = torch.split(logits, self.counts, -1)
        return [(1 - LEAST) * torch.softmax(part, -1) + LEAST / part.shape[-1] for part in parts]

    def _join(self, rest: Tensor, shares: list[Tensor]) -> Tensor:
        parts = [F.normalize(rest, dim=-1), *(share.sqrt() for share in shares)]
        return torch.cat([w * part for w, part in zip(self._roots(), parts, strict=True)], -1)
