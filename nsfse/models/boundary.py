"""The adaptive boundary between matched and mismatched correspondences (docs/method.md §5)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

EPSILON_RISK = 0.25
"""How much a boundary must beat "call everything one class" by: less, and α = 2 puts t where nothing is matched."""

READY_WEIGHT = 200.0
"""Least Σw of each kind before the first t: each batch adds its effective sample count (Σw)²/Σw².

A batch counts a query's word once for each candidate, as if those were independent; one or two batches are enough.
"""

Refit = Literal["refitted", "too few samples", "rejected", "fixed"]
"""What became of t in `AdaptiveBoundary.refit`; it is new only where this is `refitted`."""


def _tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def risk(t: float, matched: tuple[float, float], mismatched: tuple[float, float], alpha: float) -> float:
    """Return ℛ(t) = α·P₋(x > t) + P₊(x < t) for Gaussians given as (mean, standard deviation)."""
    (mu_p, sd_p), (mu_n, sd_n) = matched, mismatched
    return alpha * _tail((t - mu_n) / sd_n) + 1.0 - _tail((t - mu_p) / sd_p)


def solve_boundary(
    matched: tuple[float, float], mismatched: tuple[float, float], alpha: float
) -> tuple[float, float] | None:
    """Return (t, ℛ(t)) minimising the weighted risk, or None where it cannot part the two kinds.

    `matched` and `mismatched` are (mean, standard deviation). The root is taken in its stable form and clipped to
    [μ₋, μ₊ + σ₊] ∩ [0, 1] and then accepted only if its risk beats the better of the two constant answers.
    """
    (mu_p, sd_p), (mu_n, sd_n) = matched, mismatched
    if min(sd_p, sd_n) <= 0.0 or mu_p <= mu_n:
        return None
    a = sd_p**2 - sd_n**2
    b = 2.0 * (mu_p * sd_n**2 - mu_n * sd_p**2)
    c = (mu_n * sd_p) ** 2 - (mu_p * sd_n) ** 2 + 2.0 * (sd_p * sd_n) ** 2 * math.log(sd_n / (alpha * sd_p))
    discriminant = b * b - 4.0 * a * c
    if discriminant < 0.0:
        return None
    root = math.sqrt(discriminant)
    if b >= 0.0:
        if b + root == 0.0:
            return None
        t = -2.0 * c / (b + root)
    else:
        t = (root - b) / (2.0 * a)
    t = min(max(t, mu_n, 0.0), mu_p + sd_p, 1.0)
    least = risk(t, matched, mismatched, alpha)
    return (t, least) if least < min(1.0, alpha) - EPSILON_RISK else None


class AdaptiveBoundary(nn.Module):
    """Streams weighted statistics of both kinds and keeps t where the risk is least.

    Everything lives in the buffer `state` (float64), so that a checkpoint holds it: for matched, then mismatched,
    Σw, Σwx, Σwx²; then t, ℛ(t) and whether t was ever set. With `fixed` t is that number from the start and stays.
    """

    state: Tensor

    def __init__(
        self, alpha: float = 2.0, decay: float = 0.99, smoothing: float = 0.7, fixed: float | None = None
    ) -> None:
        super().__init__()
        self.alpha, self.decay, self.smoothing, self.fixed = alpha, decay, smoothing, fixed
        start = [0.0, 1.0, 0.0] if fixed is None else [fixed, 1.0, 1.0]
        self.register_buffer("state", torch.tensor([0.0] * 6 + start, dtype=torch.float64))

    @property
    def t(self) -> float:
        """The boundary, 0 until enough was seen."""
        return float(self.state[6])

    @property
    def ready(self) -> bool:
        """Whether a boundary was ever accepted."""
        return bool(self.state[8] > 0)

    @torch.no_grad()
    def update(self, matched: Tensor, matched_w: Tensor, mismatched: Tensor, mismatched_w: Tensor) -> None:
        """Take in correspondences and their weights, any shapes, and move t."""
        for start, x, w in ((0, matched, matched_w), (3, mismatched, mismatched_w)):
            self.state[start : start + 3] = self.decay * self.state[start : start + 3] + _sums(x, w)
        if self.fixed is not None:
            return
        if float(torch.minimum(self.state[0], self.state[3])) < READY_WEIGHT:
            return
        solved = solve_boundary(*self._gaussians(), self.alpha)
        if solved is None:
            return
        t = solved[0] if not self.ready else self.smoothing * solved[0] + (1 - self.smoothing) * self.t
        self.state[6] = t
        self.state[7] = risk(t, *self._gaussians(), self.alpha)
        self.state[8] = 1.0

    @torch.no_grad()
    def refit(self, matched: Tensor, matched_w: Tensor, mismatched: Tensor, mismatched_w: Tensor) -> Refit:
        """Replace the streamed statistics by those of these correspondences, any shapes, and solve for t once.

        Where t cannot be solved for, all stays as it was. A fixed t stays, with the new statistics.
        """
        sums = torch.cat([_sums(matched, matched_w), _sums(mismatched, mismatched_w)]).to(self.state.device)
        if self.fixed is not None:
            self.state[:6] = sums
            return "fixed"
        if float(torch.minimum(sums[0], sums[3])) < READY_WEIGHT:
            return "too few samples"
        solved = solve_boundary(*_gaussians(sums), self.alpha)
        if solved is None:
            return "rejected"
        self.state.copy_(torch.cat([sums, torch.tensor([*solved, 1.0], dtype=sums.dtype, device=sums.device)]))
        return "refitted"

    def _gaussians(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return _gaussians(self.state)

    def summary(self) -> dict[str, float]:
        """Return μ₊, σ₊, μ₋, σ₋, t and ℛ(t), for logs and the manifest."""
        (mu_p, sd_p), (mu_n, sd_n) = self._gaussians()
        return {"mu_p": mu_p, "sd_p": sd_p, "mu_n": mu_n, "sd_n": sd_n, "t": self.t, "risk": float(self.state[7])}


def _sums(x: Tensor, w: Tensor) -> Tensor:
    """Return Σw, Σwx, Σwx² [3] in float64, the weights `w` scaled so that they sum to the effective sample count."""
    x64, w64 = x.double().flatten(), w.double().flatten()
    w64 = w64 * (w64.sum() / w64.square().sum().clamp_min(1e-12))
    return torch.stack([w64.sum(), (w64 * x64).sum(), (w64 * x64 * x64).sum()])


def _gaussians(state: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (mean, standard deviation) of both kinds from their sums, the first six numbers of `state`."""
    moments = []
    for start in (0, 3):
        weight, first, second = (float(v) for v in state[start : start + 3])
        mean = first / max(weight, 1e-12)
        moments.append((mean, math.sqrt(max(second / max(weight, 1e-12) - mean * mean, 1e-12))))
    return moments[0], moments[1]
