"""One evaluation for torch and the runtime alike: any scorer, any protocol, the ranking that serving uses.

The gallery is encoded once, in batches; each query is composed, ranked by `nsfse_runtime.search` and scored by
`nsfse.evaluation.metrics`. Nothing here needs torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nsfse import data
from nsfse.data.datasets.fashioniq import CATEGORIES
from nsfse.data.datasets.file_index import counted
from nsfse.evaluation.abstention import score_abstention
from nsfse.evaluation.diagnostics import diagnose
from nsfse.evaluation.features import EncodedImages, Images, Progress, encode_in_batches, source_images
from nsfse.evaluation.notices import left_out_line
from nsfse.evaluation.query_counts import left_out, odd_queries, scorable_queries, text_counts, unlisted
from nsfse.evaluation.ranker import MODES, Mode, ProtocolRanker
from nsfse.evaluation.results import Diagnosis, Evaluation, ProtocolResult, QueryRanking
from nsfse.evaluation.scores import category_means, score_rankings, split_category
from nsfse_runtime.errors import DataError, UsageError
from nsfse_runtime.search.two_stage import pairs_scored
from nsfse_runtime.types import Scorer

__all__ = [
    "MODES",
    "Mode",
    "evaluate",
    "evaluate_source",
    "image_ids",
    "scorable_queries",
    "unlisted",
]

BATCH = 64


def evaluate(
    scorer: Scorer,
    protocol: data.EvaluationProtocol,
    images: Images,
    *,
    rerank: int = 100,
    mode: Mode = "composed",
    missing: Collection[str] = (),
    unlisted: Collection[str] = (),
    encoded: EncodedImages | None = None,
    progress: Progress | None = None,
    abstention: bool = False,
) -> ProtocolResult:
    """Score one protocol: encode its images, rank every phrasing of every query, compute the metrics.

    Args:
        scorer: The model, a run's or a bundle's.
        protocol: Gallery and queries. Queries that cannot be answered are left out and counted with their reason.
        images: Reads images for the scorer, [B, H, W, 3] uint8.
        rerank: How many candidates stage 2 scores.
        mode: `composed` is what is served: both stages. `image-only` and `text-only` are stage 1 with the
            reference's or the sentence's vector.
        missing: Ids outside the gallery whose images are missing.
        unlisted: Ids that no list of the data set has.
        encoded: Features of the images, by the same model; by default they are encoded here.
        progress: Called with stage, done and total.
        abstention: Whether the confidence, where there is one, is scored on galleries emptied of right answers.

    Returns:
        The scores with all that they depend on.

    Raises:
        UsageError: The mode is unknown, or `encoded` is of another model.
        DataError: The gallery is empty, or no query can be scored.
        ImageError: An image cannot be read.
    """
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; it is one of {', '.join(MODES)}")
    protocol = replace(protocol, gallery=tuple(dict.fromkeys(protocol.gallery)))  # an image listed twice is one image
    queries = scorable_queries(protocol, missing, unlisted)
    if protocol.gallery and not queries:
        reason = _why_not_scored(protocol, missing, unlisted)
        raise DataError(f"{protocol.name}: no query can be answered: {reason}; check the data set")
    if encoded is None:
        encoded = encode_in_batches(scorer, image_ids(protocol, queries), images, batch=BATCH, progress=progress)
    elif encoded.fingerprint != scorer.fingerprint:
        raise UsageError("the images were encoded by another model; encode them again")
    ranker = ProtocolRanker(scorer, protocol, encoded, rerank)
    rankings, unreadable = _rank(ranker, queries, mode, progress)
    return ProtocolResult(
        protocol,
        mode,
        pairs_scored(scorer.info.mode, rerank, len(protocol.gallery)),
        score_rankings(protocol, rankings),
        dropped=len(protocol.queries) - len(queries),
        unreadable=unreadable,
        rankings=tuple(rankings),
        left_out=left_out(protocol, missing, unlisted),
        odd=odd_queries(protocol, queries),
        abstention=score_abstention(scorer, protocol, queries, encoded, rerank)
        if abstention and mode == "composed" and protocol.ks  # a gallery of each query's own is not searched
        else None,
        texts=None if mode == "image-only" else text_counts(scorer, [text for q in queries for text in _texts(q)]),
    )


def _rank(
    ranker: ProtocolRanker, queries: Sequence[data.EvalQuery], mode: Mode, progress: Progress | None
) -> tuple[list[QueryRanking], int]:
    """Rank every phrasing of `queries`; return the rankings and how many texts could not be read."""
    phrasings = [(query, position) for query in queries for position in range(len(query.texts))]
    rankings: list[QueryRanking] = []
    unreadable = 0
    for start in range(0, len(phrasings), BATCH):
        chunk = phrasings[start : start + BATCH]
        for (query, position), ranked in zip(chunk, ranker.ranked(chunk, mode), strict=True):
            rankings.append(QueryRanking(query, position, ranked.rows.astype(np.int32), ranked.subset.astype(np.int32)))
            unreadable += not ranked.readable
        if progress:
            progress("rank", start + len(chunk), len(phrasings))
    return rankings, unreadable


def evaluate_source(
    scorer: Scorer,
    source: data.Source,
    protocols: Sequence[data.EvaluationProtocol],
    *,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    progress: Progress | None = None,
    images: Images | None = None,
    diagnostics: bool = False,
    abstention: bool = False,
) -> Evaluation:
    """Score several protocols of one source in several modes; images that protocols share are encoded once.

    Args:
        scorer: The model, a run's or a bundle's.
        source: Where the images of the protocols come from.
        protocols: What to score. One of which no query can be answered is named in `skipped`, with its reason.
        modes: What queries are made of.
        rerank: How many candidates stage 2 scores.
        progress: Called with stage, done and total.
        images: Reads images for the scorer where they are already in memory; by default from `source`.
        diagnostics: Whether to also find the worst and best queries of the first mode (`Evaluation.diagnoses`).
        abstention: As of `evaluate`.

    Returns:
        One result for each protocol and mode.

    Raises:
        DataError: No protocol has a query that can be answered.
    """
    unlisted_ids = unlisted(source, protocols)
    reasons = {p.name: _why_not_scored(p, source.missing, unlisted_ids) for p in protocols}
    reasons = {name: reason for name, reason in reasons.items() if reason}
    scorable = [protocol for protocol in protocols if protocol.name not in reasons]
    if not scorable:
        first, *_ = reasons.items()
        raise DataError(f"{': '.join(first)}; run `nsfse data check {source.name}`")
    images = images or source_images(source, scorer.image_size)
    encoded: EncodedImages | None = None
    results: list[ProtocolResult] = []
    diagnoses: list[Diagnosis] = []
    for protocol in scorable:
        ids = image_ids(protocol, scorable_queries(protocol, source.missing, unlisted_ids))
        if encoded is None or not encoded.covers(ids):
            encoded = encode_in_batches(scorer, ids, images, batch=BATCH, progress=progress)
        for mode in modes:
            result = evaluate(
                scorer,
                protocol,
                images,
                rerank=rerank,
                mode=mode,
                missing=source.missing,
                unlisted=unlisted_ids,
                encoded=encoded,
                progress=progress,
                abstention=abstention,
            )
            results.append(result)
            if diagnostics and mode == modes[0]:
                diagnoses.append(diagnose(scorer, result, encoded))
    summary: dict[str, dict[str, Any]] = {}
    if source.name == "fashioniq":
        summary = category_means([result for result in results if result.mode == modes[0]], CATEGORIES)
        reasons |= _absent_categories(protocols)
    return Evaluation(
        scorer.fingerprint,
        tuple(results),
        summary,
        skipped=tuple(reasons),
        reasons=reasons,
        diagnoses=tuple(diagnoses),
        source=source,
    )


def _why_not_scored(protocol: data.EvaluationProtocol, missing: Collection[str], unlisted: Collection[str]) -> str:
    """Return why no query of a protocol can be scored; nothing where one can."""
    if not protocol.queries:
        return "the annotations have no query whose images are of this split"
    if not protocol.gallery:
        listed = max(len(protocol.missing_ids), protocol.missing)
        return f"none of its {counted(listed, 'image')} is there" if listed else "no list names an image of its gallery"
    if scorable_queries(protocol, missing, unlisted):
        return ""
    return left_out_line([note.to_json() for note in left_out(protocol, missing, unlisted)])


def _absent_categories(protocols: Sequence[data.EvaluationProtocol]) -> Mapping[str, str]:
    """Return the protocols that FashionIQ has for some of its categories and not for others → why."""
    present: dict[str, set[str]] = {}
    patterns: dict[str, str] = {}
    for protocol in protocols:
        group, category = split_category(protocol.name, CATEGORIES)
        if category:
            present.setdefault(group, set()).add(category)
            patterns[group] = protocol.name.replace(category, "{}")
    return {
        patterns[group].format(category): f"the annotations of {category} are absent or hold no query"
        for group, categories in present.items()
        for category in CATEGORIES
        if category not in categories
    }


def _texts(query: data.EvalQuery) -> list[str]:
    """Return every text of a query: its edits in all phrasings, and its negative texts."""
    edits = (text for position in range(len(query.texts)) for text in query.texts_at(position))
    return [*edits, *query.negative_texts]


def image_ids(protocol: data.EvaluationProtocol, queries: Sequence[data.EvalQuery]) -> list[str]:
    """Return the gallery's ids, then those of query images outside it."""
    return list(dict.fromkeys([*protocol.gallery, *(item for query in queries for item in query.reference_ids)]))
