"""One evaluation for torch and the runtime alike: any scorer, any protocol, the ranking that serving uses.

The gallery is encoded once, in batches; each query is composed, ranked by `nsfse_runtime.search` and scored by
`nsfse.evaluation.metrics`. Nothing here needs torch.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nsfse import data
from nsfse.data.datasets.fashioniq import CATEGORIES
from nsfse.data.datasets.file_index import counted
from nsfse.evaluation.cirr_submission import check_split, write_submission
from nsfse.evaluation.diagnostics import Diagnosis, diagnose
from nsfse.evaluation.features import EncodedImages, Images, Progress, encode_in_batches, source_images
from nsfse.evaluation.notices import left_out_line
from nsfse.evaluation.query_counts import left_out, odd_queries, scorable_queries, text_counts, unlisted
from nsfse.evaluation.ranker import MODES, Mode, ProtocolRanker
from nsfse.evaluation.scores import ProtocolResult, QueryRanking, category_means, score_rankings, split_category
from nsfse_runtime import SCHEMA_VERSION
from nsfse_runtime.errors import DataError, UsageError
from nsfse_runtime.search.two_stage import pairs_scored
from nsfse_runtime.types import Scorer

__all__ = [
    "MODES",
    "Evaluation",
    "Mode",
    "evaluate",
    "evaluate_dataset",
    "evaluate_query_set",
    "evaluate_source",
    "image_ids",
    "scorable_queries",
    "unlisted",
]

BATCH = 64
SPLITS = ("test1", "test", "val", "train")
"""Names of splits that a data set may have; where two of them are the same one, the first is its own."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of one or several protocols and modes with one model."""

    fingerprint: str
    results: tuple[ProtocolResult, ...]
    summary: dict[str, dict[str, Any]]
    skipped: tuple[str, ...] = ()
    """Protocols without a query that can be scored."""
    files: tuple[Path, ...] = ()
    """What was written: test-server files, a page."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why each of `skipped` is not scored."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented form: scores by protocol, the first mode under `protocols`, others under `modes`."""
        modes: dict[str, dict[str, Any]] = {}
        for result in self.results:
            modes.setdefault(result.mode, {})[result.protocol.name] = result.to_json()
        first, *others = modes
        return {
            "schema_version": SCHEMA_VERSION,
            "protocols": modes[first],
            "modes": {mode: modes[mode] for mode in others},
            "summary": self.summary,
            "skipped": list(self.skipped),
            "not_scored": {name: {"queries": 0, "reason": reason} for name, reason in self.reasons.items()},
            "model": {"fingerprint": self.fingerprint},
            "files": [str(path) for path in self.files],
        }


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
) -> ProtocolResult:
    """Score one protocol: encode its images (or take those of `encoded`), rank every phrasing of every query.

    `mode` composed is what is served: stage 1, then stage 2 over the best `rerank`; image-only and text-only are
    stage 1 with the reference's or the sentence's vector. Queries that cannot be answered are left out and counted with
    their reason: `missing` are ids outside the gallery whose images are missing (the protocol knows its own),
    `unlisted` ids that no list of the data set has. Raises UsageError for an unknown mode, DataError for an empty
    gallery and where no query is left, ImageError for an image that cannot be read.
    """
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; it is one of {', '.join(MODES)}")
    protocol = replace(protocol, gallery=tuple(dict.fromkeys(protocol.gallery)))  # an image listed twice is one image
    queries = scorable_queries(protocol, missing, unlisted)
    if protocol.gallery and not queries:
        reason = _why_none(protocol, missing, unlisted)
        raise DataError(f"{protocol.name}: no query can be answered: {reason}; check the data set")
    if encoded is None:
        encoded = encode_in_batches(scorer, image_ids(protocol, queries), images, batch=BATCH, progress=progress)
    elif encoded.fingerprint != scorer.fingerprint:
        raise UsageError("the images were encoded by another model; encode them again")
    told = [(query, position) for query in queries for position in range(len(query.texts))]
    search = ProtocolRanker(scorer, protocol, encoded, rerank)
    rerank = pairs_scored(scorer.info.mode, rerank, len(protocol.gallery))
    rankings: list[QueryRanking] = []
    unreadable = 0
    for at in range(0, len(told), BATCH):
        chunk = told[at : at + BATCH]
        for (query, position), found in zip(chunk, search.ranked(chunk, mode), strict=True):
            rankings.append(QueryRanking(query, position, found.rows.astype(np.int32), found.subset.astype(np.int32)))
            unreadable += not found.readable
        if progress:
            progress("rank", at + len(chunk), len(told))
    return ProtocolResult(
        protocol,
        mode,
        rerank,
        score_rankings(protocol, rankings),
        len(protocol.queries) - len(queries),
        unreadable,
        tuple(rankings),
        left_out(protocol, missing, unlisted),
        odd_queries(protocol, queries),
        None if mode == "image-only" else text_counts(scorer, [text for query in queries for text in _texts(query)]),
    )


def evaluate_source(
    scorer: Scorer,
    source: data.Source,
    protocols: Sequence[data.EvaluationProtocol],
    *,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    progress: Progress | None = None,
    images: Images | None = None,
    html: Path | None = None,
) -> Evaluation:
    """Score several protocols of one source in several modes; images that the protocols share are encoded once.

    `images` reads images for the scorer where they are already at hand. `html` is where to write what lies behind the
    scores of the first mode as a page (see nsfse.evaluation.html_report).
    A protocol of which no query can be answered is named in `skipped`, and `reasons` says why; DataError where that is
    true of all.
    """
    strange = unlisted(source, protocols)
    reasons = {p.name: _why_none(p, source.missing, strange) for p in protocols}
    reasons = {name: reason for name, reason in reasons.items() if reason}
    scored = [protocol for protocol in protocols if protocol.name not in reasons]
    if not scored:
        first, *_ = reasons.items()
        raise DataError(f"{': '.join(first)}; run `nsfse data check {source.name}`")
    images = images or source_images(source, scorer.image_size)
    encoded: EncodedImages | None = None
    results: list[ProtocolResult] = []
    examined: list[Diagnosis] = []
    for protocol in scored:
        wanted = image_ids(protocol, scorable_queries(protocol, source.missing, strange))
        if encoded is None or not encoded.covers(wanted):
            encoded = encode_in_batches(scorer, wanted, images, batch=BATCH, progress=progress)
        for mode in modes:
            result = evaluate(
                scorer,
                protocol,
                images,
                rerank=rerank,
                mode=mode,
                missing=source.missing,
                unlisted=strange,
                encoded=encoded,
                progress=progress,
            )
            results.append(result)
            if html and mode == modes[0]:
                examined.append(diagnose(scorer, result, encoded))
    composed = [result for result in results if result.mode == modes[0]]
    summary = category_means(composed, CATEGORIES) if source.name == "fashioniq" else {}
    if source.name == "fashioniq":
        reasons |= _absent_categories(protocols)
    found = Evaluation(scorer.fingerprint, tuple(results), summary, tuple(reasons), reasons=reasons)
    if html:
        from nsfse.evaluation.html_report import evaluation_page

        evaluation_page(found, examined, source.load, html)
    return replace(found, files=(html,)) if html else found


def evaluate_dataset(
    scorer: Scorer,
    name: str,
    split: str,
    folder: str | os.PathLike[str],
    *,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    submission: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    html: Path | None = None,
    **options: Any,
) -> Evaluation:
    """Score a public data set by name: fashioniq, cirr, fashion200k, shoes, or a table.

    `options` are the reader's, such as `images`. CIRR's test split has no answers here: name a folder `submission` for
    the two files of its test server. Raises DataError where the split has no protocol or no images.
    """
    from nsfse.data.registry import known_name, open_source
    from nsfse.progress import print_status

    name = known_name(name)
    source = open_source(name, folder, **options)
    for note in data.notes_of(source):
        print_status(note)
    protocols = source.protocols(split)
    if not protocols:
        raise DataError(_nothing_to_score(source, split, folder))
    server = source.name == "cirr" and not any(query.targets for protocol in protocols for query in protocol.queries)
    _refuse_submission(source, split, protocols, server, submission, html)
    found = evaluate_source(scorer, source, protocols, modes=modes, rerank=rerank, progress=progress, html=html)
    return found if submission is None else replace(found, files=write_submission(found.results[0], Path(submission)))


def _nothing_to_score(source: data.Source, split: str, folder: str | os.PathLike[str]) -> str:
    """Say what a data set can be scored on instead of `split`."""
    there: dict[tuple[str, ...], str] = {}
    for other in dict.fromkeys((*getattr(source, "splits", ()), *SPLITS)):
        if found := source.protocols(other):
            there.setdefault(tuple(protocol.name for protocol in found), other)
    why = "it has images and no queries with known targets" if source.items(split) else "there is no such split"
    others = f"can be scored: {', '.join(sorted(there.values()))}" if there else "nor has it another split to score"
    return f"{source.name} has nothing to score on split {split!r} in {folder}: {why}; {others}"


def _refuse_submission(
    source: data.Source,
    split: str,
    protocols: Sequence[data.EvaluationProtocol],
    server: bool,
    submission: str | os.PathLike[str] | None,
    html: Path | None,
) -> None:
    """Raise for what goes with a test server and what does not, before anything is ranked."""
    name = f"{source.name} {split}"
    if server and submission is None:
        raise UsageError(f"{name} keeps its answers on a server; name a folder for the files to send (submission)")
    if submission is not None and not server:
        raise UsageError(f"{name} is scored here; only cirr test1 writes files for a test server")
    if server and html:
        raise UsageError(f"{name} keeps its answers on a server, so that there is nothing to show; leave out html")
    if server:
        check_split(protocols[0], unlisted(source, protocols))
        return
    for protocol in protocols:
        if protocol.queries and not any(query.targets for query in protocol.queries):
            raise DataError(f"{protocol.name}: no query names a target; check its annotations, or name another split")


def evaluate_query_set(
    scorer: Scorer,
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    progress: Progress | None = None,
    html: Path | None = None,
) -> Evaluation:
    """Score every protocol of a query set, or those of one split; DataError where there is none.

    A protocol that has queries on several splits is scored on each, as PROTOCOL-SPLIT.
    """
    from nsfse.data.datasets.query_set import QuerySetSource

    source = QuerySetSource(Path(folder))
    found = [(name, p) for name in ([split] if split else source.splits) for p in source.protocols(name)]
    times = Counter(protocol.name for _, protocol in found)
    protocols = [replace(p, name=f"{p.name}-{of}") if times[p.name] > 1 else p for of, p in found]
    if not protocols:
        there = f"; can be scored: {', '.join(source.splits)}" if source.splits else "; look at its queries.jsonl"
        raise DataError(f"{folder} has no queries{f' on split {split!r}' if split else ''}{there}")
    return evaluate_source(scorer, source, protocols, modes=modes, rerank=rerank, progress=progress, html=html)


def _why_none(protocol: data.EvaluationProtocol, missing: Collection[str], unlisted: Collection[str]) -> str:
    """Return why no query of a protocol can be scored; nothing where one can."""
    if not protocol.queries:
        return "the annotations have no query whose images are of this split"
    if not protocol.gallery:
        listed = max(len(protocol.missing_ids), protocol.missing)
        return f"none of its {counted(listed, 'image')} is there" if listed else "no list names an image of its gallery"
    if scorable_queries(protocol, missing, unlisted):
        return ""
    return left_out_line([noted.to_json() for noted in left_out(protocol, missing, unlisted)])


def _absent_categories(protocols: Sequence[data.EvaluationProtocol]) -> dict[str, str]:
    """Return the protocols that FashionIQ has for some of its categories and not for others → why."""
    found: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    for protocol in protocols:
        group, category = split_category(protocol.name, CATEGORIES)
        if category:
            found.setdefault(group, set()).add(category)
            names[group] = protocol.name.replace(category, "{}")
    return {
        names[group].format(category): f"the annotations of {category} are absent or hold no query"
        for group, there in found.items()
        for category in CATEGORIES
        if category not in there
    }


def _texts(query: data.EvalQuery) -> list[str]:
    """Return every text of a query: its edits in all phrasings, and what must not be there."""
    return [*(text for at in range(len(query.texts)) for text in query.texts_at(at)), *query.negative_texts]


def image_ids(protocol: data.EvaluationProtocol, queries: Sequence[data.EvalQuery]) -> list[str]:
    """Return the gallery, then the images of queries that lie outside it."""
    return list(dict.fromkeys([*protocol.gallery, *(item for query in queries for item in query.reference_ids)]))
