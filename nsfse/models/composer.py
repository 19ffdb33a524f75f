"""Stage 1: one vector per query (docs/method.md §7)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Composer(nn.Module):
    """q = l2norm(s ⊙ g + (1 − s) ⊙ m + MLP[g; m]), s = σ(W[g; m])."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Compose `image` [B, d] with `sentence` [B, d] into unit rows [B, d]."""
        both = torch.cat([image, sentence], dim=-1)
        gate = torch.sigmoid(self.gate(both))
        return F.normalize(gate * image + (1 - gate) * sentence + self.mlp(both), dim=-1)
