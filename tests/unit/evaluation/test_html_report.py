"""The page of an evaluation, of the golden bundle on a few drawn queries: it shows what was ranked."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.evaluation.diagnostics import HITS, _Samples, diagnose
from nsfse.evaluation.evaluate import evaluate, image_ids
from nsfse.evaluation.features import encode_in_batches, source_images
from nsfse.evaluation.html_report import _about, write_report
from nsfse.evaluation.reference_head import correspondences, products
from nsfse.evaluation.results import Evaluation
from nsfse.open import open_scorer
from nsfse_runtime.errors import OutputError

BUNDLE = Path(__file__).parents[2] / "golden" / "bundle"


@pytest.fixture(scope="module")
def source():
    return DrawnSource(DrawnOptions("easy", items=400, gallery=64))


@pytest.fixture(scope="module")
def protocols(source):
    """Queries of one image and one text, and some with something that must not be there."""
    plain = source.protocols("test")[0]
    plain = replace(plain, queries=plain.queries[::3])
    more = [replace(q, negative_texts=("stripes",), negative_images=q.hard_negatives[:1]) for q in plain.queries[:12]]
    return [plain, replace(plain, name="drawn minus", queries=tuple(more))]


@pytest.fixture(scope="module")
def scorer():
    return open_scorer(BUNDLE)


@pytest.fixture(scope="module")
def ranked(source, protocols, scorer):
    """Each protocol's result with what lies behind it."""
    images = source_images(source, scorer.image_size)
    wanted = dict.fromkeys(item for each in protocols for item in image_ids(each, each.queries))
    encoded = encode_in_batches(scorer, list(wanted), images)
    results = [evaluate(scorer, each, images, encoded=encoded) for each in protocols]
    return [(result, diagnose(scorer, result, encoded), encoded) for result in results]


def test_what_is_shown_is_what_was_ranked(ranked):
    for result, diagnosis, _ in ranked:
        gallery = result.protocol.gallery
        order = {(id(r.query), r.position): [gallery[row] for row in r.rows] for r in result.rankings}
        assert diagnosis.worst
        for shown in (*diagnosis.worst, *diagnosis.best):
            ids = order[id(shown.query), shown.position]
            assert [hit.id for hit in shown.hits] == ids[:HITS]
            right = [rank for rank, item in enumerate(ids) if item in shown.query.targets]
            assert shown.rank == (right[0] if right else None)
            assert (shown.missed is None) == bool(right and right[0] < HITS)
            assert shown.missed is None or shown.missed.id in shown.query.targets
            scores = [hit.score for hit in (*shown.hits, *([shown.missed] if shown.missed else []))]
            assert scores == sorted(scores, reverse=True)
            assert all(hit.evidence for hit in shown.hits)


def test_the_worst_are_the_worst_and_each_query_comes_once(ranked):
    result, diagnosis, _ = ranked[0]
    gallery = result.protocol.gallery

    def rank(ranking):
        found = [at for at, row in enumerate(ranking.rows) if gallery[row] in ranking.query.targets]
        return found[0] if found else len(gallery)

    ranks = sorted((rank(each) for each in result.rankings), reverse=True)
    shown = [len(gallery) if each.rank is None else each.rank for each in diagnosis.worst]
    assert shown == sorted(shown, reverse=True) and shown[0] == ranks[0]
    assert diagnosis.best and all(each.rank == 0 for each in diagnosis.best)
    for each in (diagnosis.worst, diagnosis.best):
        assert len({id(one.query) for one in each}) == len(each)


def test_a_missed_answer_is_scored_as_the_search_would(ranked, scorer):
    _, diagnosis, encoded = ranked[0]
    shown = next(each for each in diagnosis.worst if each.missed and each.rank is not None)
    [composed] = scorer.compose(
        encoded.targets(encoded.rows_of([shown.query.reference])), [shown.query.texts[shown.position]]
    )
    pair = scorer.score_pairs(composed, encoded.targets(encoded.rows_of([shown.missed.id])))
    assert shown.missed.score == pytest.approx(float(pair.score[0]), abs=1e-5)


def test_correspondences_are_the_best_of_each_and_a_view_has_its_own(ranked, scorer):
    result, _, encoded = ranked[0]
    query = result.protocol.queries[0]
    [composed] = scorer.compose(encoded.targets(encoded.rows_of([query.reference])), [query.texts[0]])
    targets = encoded.targets(encoded.rows_of(result.protocol.gallery[:5]))
    words, probes, _ = products(composed, targets)
    x, y = correspondences(composed, targets, 1)
    view = len(composed.probes) - len(composed.words) - 1
    assert np.array_equal(x, words.max(-1))
    assert np.array_equal(np.delete(y, view, 1), np.delete(probes.max(-1), view, 1))
    assert np.array_equal(y[:, view], probes[:, view, -1])


def test_histograms_are_weighted_and_split_by_the_boundary():
    samples = _Samples()
    samples.add(0, np.array([[0.2, 0.9], [0.8, 0.9], [0.7, 0.9], [0.6, 0.1]]), np.array([1.0, 0.0]))
    samples.add(1, np.array([[0.1], [0.2], [0.3], [0.7]]), np.array([0.5]))
    found = samples.histogram(0.5)
    assert (found.missed, found.alarms, found.near) == (25.0, 25.0, None)
    assert found.matched.sum() == pytest.approx(100) and found.mismatched.sum() == pytest.approx(100)
    assert found.matched[found.edges[:-1] >= 0.85].sum() == 0  # what weighs nothing is not there
    samples = _Samples()
    samples.add(0, np.array([[0.5]]), np.array([1.0]))
    assert samples.histogram(0.5) is None  # nothing to tell it from


class White:
    """A source whose images are white."""

    def load(self, item, size):
        return np.full((*size, 3), 255, np.uint8)


def write(ranked, path):
    """Write the page of what was ranked; its images are white."""
    results = [result for result, _, _ in ranked]
    image_only = replace(results[0], mode="image-only")
    summary = {"fashioniq-VAL": {"R@10": None, "R@50": None, "categories": 2, "expected": 3, "missing": ["dress"]}}
    reasons, diagnoses = {"bare": "no list names it"}, tuple(diagnosis for _, diagnosis, _ in ranked)
    write_report(
        Evaluation(
            "f" * 64,
            (*results, image_only),
            summary,
            ("bare",),
            reasons=reasons,
            diagnoses=diagnoses,
            source=White(),
        ),
        path,
    )
    return results


def test_the_page_holds_all_and_loads_nothing(ranked, scorer, tmp_path):
    first, minus = write(ranked, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    bare = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    assert "default-src 'none'" in bare and "<script" not in bare and "style=" not in bare.split("</style>")[1]
    assert not re.search(r"https?://|//[a-z]", bare)
    for result in (first, minus):
        assert f'<h2 id="p-{result.protocol.name.replace(" ", "-")}">' in bare
        assert f"<dt>R@1</dt><dd>{result.scores['R@1']:.1f}<small>" in bare
        for kind, scores in result.scores["kinds"].items():
            row = re.search(f'<th scope="row">{kind}</th><td>{scores["queries"]}</td><td>([\\d.]+)<', bare)
            assert row and row[1] == f"{scores['R@1']:.1f}"
    assert bare.count('role="img"') == 2 and f"t = {scorer.info.boundaries.cross:.2f}" in bare
    assert "no mean: 2 of 3 categories (no dress)" in bare and "bare is not scored: no list names it" in bare
    assert f"<dt>phrasing sensitivity, P@10</dt><dd>{first.scores['phrasing_sensitivity_P@10']:.1f}" in bare
    texts = {"count": 4, "with_unknown_word": 1, "longer_than_read": 2, "words_read": 24}
    about = _about(replace(first, texts=texts))
    assert "1 of 4 texts (25.0 %) has a word that the model does not know" in about
    assert "2 of 4 texts (50.0 %) are longer than the 24 words that the model reads" in about
    assert "image-only" in bare and "a hard negative" in bare and "without " in bare and "not like" in bare
    assert 'class="mismatched"' in bare and 'class="right' in bare


def test_a_page_that_cannot_be_written_is_an_error(ranked, tmp_path):
    with pytest.raises(OutputError, match="choose another place"):
        write(ranked, tmp_path / "nowhere" / "page.html")
