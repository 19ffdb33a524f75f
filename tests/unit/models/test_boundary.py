import math

import pytest

torch = pytest.importorskip("torch")

from nsfse.models.boundary import READY_WEIGHT, AdaptiveBoundary, risk, solve_boundary

# docs/method.md §5: μ₊, σ₊, μ₋, σ₋, α, t, ℛ(t), each checked there on a grid.
TABLE = [
    (0.60, 0.10, 0.30, 0.12, 2, 0.484331, 0.248215),
    (0.60, 0.10, 0.30, 0.10, 1, 0.450000, 0.133614),
    (0.60, 0.10, 0.30, 0.10, 2, 0.473105, 0.185672),
    (0.45, 0.15, 0.25, 0.08, 2, 0.384659, 0.423890),
    (0.50, 0.05, 0.20, 0.20, 2, 0.419517, 0.326122),
    (0.50, 0.20, 0.20, 0.05, 2, 0.312251, 0.198698),
]


@pytest.mark.parametrize(("mu_p", "sd_p", "mu_n", "sd_n", "alpha", "t", "least"), TABLE)
def test_the_boundary_and_its_risk_are_those_of_the_table(mu_p, sd_p, mu_n, sd_n, alpha, t, least):
    assert solve_boundary((mu_p, sd_p), (mu_n, sd_n), alpha) == pytest.approx((t, least), abs=1e-5)


@pytest.mark.parametrize(("mu_p", "sd_p", "mu_n", "sd_n", "alpha", "t", "least"), TABLE)
def test_no_other_boundary_has_less_risk(mu_p, sd_p, mu_n, sd_n, alpha, t, least):
    grid = [i / 1000 for i in range(1001)]
    assert min(risk(at, (mu_p, sd_p), (mu_n, sd_n), alpha) for at in grid) >= least - 1e-5


@pytest.mark.parametrize(
    ("matched", "mismatched"),
    [((0.31, 0.10), (0.30, 0.10)), ((0.30, 0.10), (0.31, 0.10)), ((0.5, 0.0), (0.3, 0.1)), ((0.5, 0.1), (0.3, 0.0))],
)
def test_kinds_that_cannot_be_told_apart_have_no_boundary(matched, mismatched):
    assert solve_boundary(matched, mismatched, 2.0) is None


def test_the_boundary_rises_with_alpha_and_with_the_mean_of_the_mismatched():
    by_alpha = [solve_boundary((0.6, 0.1), (0.3, 0.12), alpha)[0] for alpha in (0.5, 1, 2, 4, 8)]
    by_mean = [solve_boundary((0.6, 0.1), (mean, 0.12), 2.0)[0] for mean in (0.1, 0.2, 0.3, 0.35)]
    assert by_alpha == sorted(set(by_alpha)) and by_mean == sorted(set(by_mean))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_equal_deviations_have_the_closed_form(alpha):
    mu_p, mu_n, sd = 0.62, 0.28, 0.11
    wanted = (mu_p + mu_n) / 2 + sd**2 * math.log(alpha) / (mu_p - mu_n)
    assert solve_boundary((mu_p, sd), (mu_n, sd), alpha)[0] == pytest.approx(wanted, abs=1e-9)


def test_nearly_equal_deviations_are_stable():
    exact = solve_boundary((0.6, 0.1), (0.3, 0.1), 2.0)[0]
    assert solve_boundary((0.6, 0.1), (0.3, 0.1 + 1e-9), 2.0)[0] == pytest.approx(exact, abs=1e-6)
    assert solve_boundary((0.6, 0.1 + 1e-9), (0.3, 0.1), 2.0)[0] == pytest.approx(exact, abs=1e-6)


def _samples(mean, sd, count, seed):
    return mean + sd * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _update(boundary, mu_p, mu_n, count, seed=0):
    matched, mismatched = _samples(mu_p, 0.1, count, seed), _samples(mu_n, 0.1, count, seed + 1)
    boundary.update(matched, torch.ones(count), mismatched, torch.ones(count))


def test_there_is_no_boundary_before_enough_samples():
    boundary = AdaptiveBoundary()
    _update(boundary, 0.6, 0.3, int(READY_WEIGHT) - 50)
    assert not boundary.ready and boundary.t == 0.0
    _update(boundary, 0.6, 0.3, 100, seed=5)
    assert boundary.ready and boundary.t == pytest.approx(0.4731, abs=0.02)


def test_the_boundary_moves_by_its_smoothing_and_follows_a_drift():
    boundary = AdaptiveBoundary()
    _update(boundary, 0.6, 0.3, 4000)
    before = boundary.t
    _update(boundary, 0.8, 0.5, 4000, seed=3)
    solved = solve_boundary(*boundary._gaussians(), 2.0)[0]
    assert boundary.t == pytest.approx(0.7 * solved + 0.3 * before, abs=1e-9)
    for seed in range(10, 500, 2):
        _update(boundary, 0.8, 0.5, 500, seed)
    assert boundary.t == pytest.approx(0.6731, abs=0.02)


def test_a_rejected_boundary_leaves_the_old_one():
    boundary = AdaptiveBoundary()
    _update(boundary, 0.6, 0.3, 1000)
    before = boundary.t
    _update(boundary, 0.30, 0.31, 200_000, seed=3)
    assert solve_boundary(*boundary._gaussians(), 2.0) is None
    assert boundary.t == before and boundary.ready


def test_samples_without_weight_change_nothing():
    boundary, other = AdaptiveBoundary(), AdaptiveBoundary()
    _update(boundary, 0.6, 0.3, 400)
    matched, mismatched = _samples(0.6, 0.1, 400, 0), _samples(0.3, 0.1, 400, 1)
    noise, none = torch.full((400,), 9.0), torch.zeros(400)
    weights = torch.cat([torch.ones(400), none])
    other.update(torch.cat([matched, noise]), weights, torch.cat([mismatched, noise]), weights)
    assert other.t == pytest.approx(boundary.t, abs=1e-9)


def test_the_state_is_in_the_checkpoint():
    boundary, other = AdaptiveBoundary(), AdaptiveBoundary()
    _update(boundary, 0.6, 0.3, 400)
    other.load_state_dict(boundary.state_dict())
    assert other.summary() == boundary.summary() and other.t > 0


def _refit(boundary, mu_p, mu_n, count, sd=0.1):
    samples = _samples(mu_p, sd, count, 7), torch.rand(count), _samples(mu_n, sd, count, 8), torch.rand(count)
    return boundary.refit(*samples), [part.double().numpy() for part in samples]


def test_a_refit_replaces_the_streamed_statistics_and_solves_once():
    torch.manual_seed(0)
    boundary = AdaptiveBoundary()
    _update(boundary, 0.8, 0.5, 4000)
    said, (matched, w, mismatched, v) = _refit(boundary, 0.6, 0.3, 2000)
    moments = []
    for x, weight in ((matched, w), (mismatched, v)):
        mean = (weight * x).sum() / weight.sum()
        moments.append((mean, math.sqrt((weight * (x - mean) ** 2).sum() / weight.sum())))
    t, least = solve_boundary(*moments, 2.0)
    found = boundary.summary()
    assert said == "refitted" and found["t"] == pytest.approx(t, abs=1e-9)
    assert [found[name] for name in ("mu_p", "sd_p", "mu_n", "sd_n")] == pytest.approx([*moments[0], *moments[1]])
    assert found["risk"] == pytest.approx(least, abs=1e-9)
    assert float(boundary.state[0]) == pytest.approx(w.sum() ** 2 / (w**2).sum())  # the effective sample count


@pytest.mark.parametrize(("mu_p", "count", "said"), [(0.31, 2000, "rejected"), (0.6, 150, "too few samples")])
def test_a_refit_that_is_refused_leaves_all_as_it_was(mu_p, count, said):
    boundary = AdaptiveBoundary()
    _update(boundary, 0.8, 0.5, 4000)
    before = boundary.state.clone()
    assert _refit(boundary, mu_p, 0.3, count)[0] == said
    assert torch.equal(boundary.state, before)


def test_a_refit_leaves_a_fixed_boundary_where_it_is():
    boundary = AdaptiveBoundary(fixed=0.2)
    assert _refit(boundary, 0.6, 0.3, 2000)[0] == "fixed"
    assert boundary.t == 0.2 and boundary.summary()["mu_p"] == pytest.approx(0.6, abs=0.02)
