"""Word embeddings and a GRU: the text encoder of every backbone that brings none of its own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import in_full, widened
from nsfse.models.backbones.base import TextEncoder, scale_gradient

SIGN_START = 0.5  # words start as wanted
SUM_SCALE = 4.0  # a mean of some words is much smaller than their peak


class MaskedGru(nn.GRU):
    """A bidirectional GRU that reads each row to its own length: a padded word changes nothing and its state is 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // 2, batch_first=True, bidirectional=True)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Read `embedded` [B, L, i] where `mask` [B, L]; return states [B, L, o]."""
        lengths = mask.sum(1).cpu()
        with in_full(embedded.device):  # its state would be rounded again at every word
            rows = widened(embedded)  # a map before it may have rounded them
            packed = nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
            states, _ = super().forward(packed)
        return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])[0]


class SignedSum(nn.Module):
    """Embeddings [B, L, d] → their weighted sum [B, d]; what stands around a word weighs it, and may take it away.

    The peak of embeddings alone has "blue" in "red, not blue" as much as in "blue".
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.sign = nn.Linear(dim, 1), nn.Linear(dim, 1)
        nn.init.constant_(self.sign.bias, SIGN_START)

    def forward(self, embedded: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Sum `embedded` [B, L, d] by weights and signs from `states` [B, L, d], where `mask` [B, L]."""
        with in_full(embedded.device):
            weights = torch.softmax(self.weight(states).squeeze(-1).masked_fill(~mask, -1e4), dim=-1)
            signed = weights * torch.tanh(self.sign(states).squeeze(-1)) * mask
        return SUM_SCALE * (signed[..., None] * embedded).sum(1)


def _peak(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest of `values` [B, L, d] where `mask` [B, L], for each channel: [B, d]."""
    return values.masked_fill(~mask[..., None], -1e4).amax(1)


class GruTextEncoder(TextEncoder):
    """Word embeddings and a bidirectional GRU; a padded word changes nothing.

    A word is its embedding, whatever stands around it: "red" is looked for alike in "make it red" and in "not red".
    What stands around it is the sentence's, and its sign's (nsfse.models.similarity_head).

    With `model.text_teacher` embeddings are the teacher's word vectors, which stay as they are: words that training
    hears seldom or never stay beside those of like meaning. A linear map of all of them is learned.
    """

    def __init__(self, vocabulary: int, config: ModelConfig) -> None:
        super().__init__()
        taught = bool(config.text_teacher)
        self.embedding = nn.Embedding(vocabulary, config.word_dim if taught else config.dim, padding_idx=0)
        self.embedding.weight.requires_grad_(not taught)
        self.enter = nn.Linear(config.word_dim, config.dim) if taught else nn.Identity()
        self.head_grad_scale = config.head_grad_scale
        self.gru = MaskedGru(config.dim, config.dim)
        self.word = nn.Linear(config.dim, config.dim)
        self.sentence = nn.Linear(2 * config.dim, config.dim)
        self.signed_sum = SignedSum(config.dim) if config.sentence == "signed" else None

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `ids` [B, L] with `mask` [B, L] into unit words [B, L, d] and unit sentences [B, d]."""
        embedded = self.enter(self.embedding(ids))
        states = self.gru(embedded, mask)
        if self.signed_sum is None:
            pooled = _peak(torch.cat([embedded, states], dim=-1), mask)
        else:
            pooled = torch.cat([self.signed_sum(embedded, states, mask), _peak(states, mask)], dim=-1)
        words = widened(self.word(scale_gradient(embedded, self.head_grad_scale)))
        return F.normalize(words, dim=-1) * mask[..., None], F.normalize(widened(self.sentence(pooled)), dim=-1)
