"""The paired bootstrap over queries and seeds: against enumeration, Student's t, and data without a difference."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from nsfse.benchmark import significance
from nsfse.benchmark.significance import Bootstrap, Outcomes, outcomes, read_outcomes
from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.results import ProtocolResult, QueryRanking
from nsfse.evaluation.scores import score_rankings


def found(hits, phrasings=1, queries="same"):
    """Make outcomes of hits [S, Q], the same at R@1 and R@10."""
    hits = np.asarray(hits, np.int64)
    return Outcomes(np.stack([hits, hits], 2), np.full(hits.shape[1], phrasings), queries)


def enumerated(values):
    """Return the two-sided p of equally likely `values` of a difference."""
    values = np.round(values, 9)
    return min(1.0, 2 * min((values <= 0).mean(), (values >= 0).mean()))


def test_one_seed_is_the_bootstrap_over_queries():
    a, b = np.array([1, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
    every = [100 * np.mean([a[q] - b[q] for q in drawn]) for drawn in itertools.product(range(5), repeat=5)]
    one = Bootstrap({"a": found([a]), "b": found([b])}).versus("a", "b")
    assert not one.seeds_resampled and one.r1 == one.r10 and one.r1.points == pytest.approx(40.0)
    assert one.r1.p == pytest.approx(enumerated(every), abs=0.02) and 0.1 < one.r1.p < 0.2  # 2 · (3/5)⁵ = 0.156
    assert (one.r1.low, one.r1.high) == tuple(np.quantile(every, [0.025, 0.975]))


def test_queries_and_seeds_are_both_drawn():
    # Both seeds of a find one of two queries, each another: the seeds' means are equal, what they find is not.
    a, b = np.array([[1, 0], [0, 1]]), np.array([[1, 0], [1, 0]])
    pairs = list(itertools.product(range(2), repeat=2))
    every = [
        100 * np.mean([a[s, q] - b[t, q] for q in queries for s, t in zip(mine, theirs, strict=True)])
        for queries, mine, theirs in itertools.product(pairs, pairs, pairs)
    ]
    one = Bootstrap({"a": found(a), "b": found(b)}).versus("a", "b")
    assert one.seeds_resampled and one.r1.points == 0
    assert (one.r1.low, one.r1.high) == tuple(np.quantile(every, [0.025, 0.975])) == (-100, 100)
    above = Bootstrap({"a": found(a), "b": found(b)})._difference("a", "b", 0)
    assert above.p == 1.0 == enumerated(every)


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [
        # TIRG 26.7 ± 0.3 over 25.2 ± 1.1 of three seeds each: Welch's p is 0.13, and no lead.
        ((264, 267, 270), (241, 252, 263), 0.13),
        ((677, 678, 683), (476, 487, 499), 0.001),
    ],
)
def test_where_queries_do_not_differ_p_is_nearly_welchs(a, b, p):
    same = [[[mean] * 20 for mean in of] for of in (a, b)]
    one = Bootstrap({"a": found(same[0], 1000), "b": found(same[1], 1000)}).versus("a", "b").r1
    assert one.p == pytest.approx(p, abs=0.06)
    assert (one.p < 0.05) == (p < 0.05) == (one.low > 0)


def test_welchs_p_by_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = (264, 267, 270, 262), (251, 262, 263, 258)
    same = [[[mean] * 20 for mean in of] for of in (a, b)]
    one = Bootstrap({"a": found(same[0], 1000), "b": found(same[1], 1000)}).versus("a", "b").r1
    assert one.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, abs=0.03)


def null_ps(seed_spread, count=120):
    """Return p of pairs of methods alike: queries of different difficulty, seeds that shift all of them."""
    rng = np.random.default_rng(7)
    ps = []
    for _ in range(count):
        difficulty = rng.beta(0.8, 0.8, 80)
        pair = {}
        for name in ("a", "b"):
            own = np.clip(difficulty + rng.normal(0, 0.2, 80), 0, 1)
            shifted = np.clip(own + rng.normal(0, seed_spread, (3, 1)), 0, 1)
            pair[name] = found(rng.binomial(4, shifted), 4)
        ps.append(Bootstrap(pair, resamples=400).versus("a", "b").r1.p)
    return np.array(ps)


@pytest.mark.parametrize("seed_spread", [0.0, 0.25])
def test_without_a_difference_p_is_rarely_small_and_often_large(seed_spread):
    ps = null_ps(seed_spread)
    # Seeds drawn as they are, without Student's t, give p < 0.05 in a fifth of the pairs whose seeds differ most.
    assert (ps < 0.05).mean() <= 0.09
    assert 0.3 <= np.median(ps) <= 0.75 and (ps < 0.5).mean() > 0.25


def sample(name, rise=0.0, queries=400, seeds=3):
    rng = np.random.default_rng([len(name), *name.encode()])
    chance = np.clip(np.random.default_rng(0).random(queries) + rise, 0, 1)
    return found(rng.binomial(4, chance, (seeds, queries)), 4)


def test_a_clear_lead_is_one_and_is_the_same_from_both_sides():
    boot = Bootstrap({"good": sample("good", 0.1), "bad": sample("bad")})
    ahead, behind = boot.versus("good", "bad").r1, boot.versus("bad", "good").r1
    assert ahead.p < 0.05 and 0 < ahead.low < ahead.points < ahead.high
    assert ahead.p == behind.p and (ahead.low, ahead.high) == pytest.approx((-behind.high, -behind.low))
    assert ahead.points == pytest.approx(-behind.points)
    same = boot.versus("good", "good").r1
    assert (same.points, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_p_depends_on_the_two_methods_alone():
    methods = {name: sample(name) for name in ("a", "b", "c", "d")}
    few = Bootstrap({name: methods[name] for name in ("b", "a")}).versus("a", "b")
    assert few == Bootstrap(methods).versus("a", "b") == Bootstrap(dict(reversed(methods.items()))).versus("a", "b")


def test_sums_are_exact_and_of_rows_drawn_with_replacement(monkeypatch):
    columns = np.arange(30).reshape(10, 3)
    whole = significance._resampled_sums(columns, 50)
    monkeypatch.setattr(significance, "_CHUNK", 70)
    np.testing.assert_array_equal(significance._resampled_sums(columns, 50), whole)
    assert whole.shape == (50, 3) and (whole == whole.round()).all()
    np.testing.assert_array_equal(whole[:, 1] - whole[:, 0], np.full(50, 10))  # ten rows each time
    assert len(np.unique(whole[:, 0])) > 20


def test_methods_of_other_queries_are_not_paired():
    with pytest.raises(ValueError, match="same queries"):
        Bootstrap({"a": sample("a"), "b": Outcomes(**{**vars(sample("b")), "queries": "others"})})
    assert Bootstrap({})._means == {}


@dataclass
class Ranks:
    """A protocol of three queries in one, two and three phrasings, whose targets are found at given ranks."""

    ranks = ((0,), (3, 0), (12, 9, 10))

    def result(self):
        gallery = tuple(f"i{n}" for n in range(14))
        texts = [tuple(f"t{n}" for n in range(len(of))) for of in self.ranks]
        queries = tuple(EvalQuery("r", text, (f"i{n}",)) for n, text in enumerate(texts))
        protocol = EvaluationProtocol("p", "1", gallery, queries)
        rankings = []
        for n, of in enumerate(self.ranks):
            others = [row for row in range(14) if row != n]
            for position, rank in enumerate(of):
                rows = np.array([*others[:rank], n, *others[rank:]], np.int32)
                rankings.append(QueryRanking(queries[n], position, rows))
        scores = score_rankings(protocol, rankings)
        return ProtocolResult(protocol, "composed", 0, scores, 0, 0, tuple(rankings))


def test_outcomes_are_a_word_for_each_query_and_give_the_score():
    result = Ranks().result()
    noted = outcomes(result)
    assert noted["R@1"] == "1 01 000" and noted["R@10"] == "1 11 010"
    assert len(noted["queries"]) == 64 and outcomes(Ranks().result()) == noted
    read = read_outcomes([{"outcomes": noted}, {"outcomes": noted}])
    assert read.hits.shape == (2, 3, 2) and read.phrasings.tolist() == [1, 2, 3]
    shares = read.hits[0] / read.phrasings[:, None]
    assert shares.mean(0) * 100 == pytest.approx([result.scores["R@1"], result.scores["R@10"]], abs=1e-4)
    means = Bootstrap({"a": read})._means["a"]
    assert means[0] == pytest.approx([result.scores["R@1"], result.scores["R@10"]], abs=1e-4)


def test_without_outcomes_or_of_other_queries_nothing_is_read():
    noted = outcomes(Ranks().result())
    assert read_outcomes([]) is None and read_outcomes([{"outcomes": noted}, {"R@1": 3.0}]) is None
    assert read_outcomes([{"outcomes": noted}, {"outcomes": noted | {"queries": "x"}}]) is None


def test_the_scale_of_students_t_has_its_tails():
    boot = Bootstrap({"a": sample("a"), "b": sample("b")})
    scale = boot._student([np.array([1.0, 2.0, 3.0])] * 2, ("a", "b"))
    # ν is 4 for two equal spreads of three: the mean of ν/χ² is ν/(ν − 2) = 2.
    assert np.median(scale**2) == pytest.approx(4 / 3.3567, rel=0.05) and not math.isclose(scale.std(), 0)
