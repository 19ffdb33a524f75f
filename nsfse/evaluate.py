"""One evaluation for torch and the runtime alike: any scorer, any protocol, the ranking that serving uses.

The gallery is encoded once, in batches; each query is composed, ranked by `nsfse_runtime.search` and scored by
`nsfse_runtime.metrics`. Nothing here needs torch.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nsfse import data
from nsfse.encoded import EncodedPictures, Images, Progress, encode_pictures, source_images
from nsfse.examining import Examined, examine
from nsfse.ranking import MODES, Mode, Search, TextScorer
from nsfse.scoring import ProtocolResult, Ranked, category_means, score_rankings
from nsfse.submission import write_submission
from nsfse_runtime.errors import DataError, UsageError
from nsfse_runtime.search import pairs_scored

__all__ = [
    "MODES",
    "Evaluation",
    "Mode",
    "TextScorer",
    "answerable",
    "evaluate",
    "evaluate_dataset",
    "evaluate_query_set",
    "evaluate_source",
    "pictures_of",
]

BATCH = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of one or several protocols and modes with one model."""

    fingerprint: str
    results: tuple[ProtocolResult, ...]
    summary: dict[str, dict[str, float]]
    skipped: tuple[str, ...] = ()
    """Protocols of which no query can be answered with the pictures that are there."""
    files: tuple[Path, ...] = ()
    """What was written: test-server files, a page."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented form: scores by protocol, the first mode under `protocols`, others under `modes`."""
        modes: dict[str, dict[str, Any]] = {}
        for result in self.results:
            modes.setdefault(result.mode, {})[result.protocol.name] = result.to_json()
        first, *others = modes
        return {
            "schema_version": 1,
            "protocols": modes[first],
            "modes": {mode: modes[mode] for mode in others},
            "summary": self.summary,
            "skipped": list(self.skipped),
            "model": {"fingerprint": self.fingerprint},
            "files": [str(path) for path in self.files],
        }


def evaluate(
    scorer: TextScorer,
    protocol: data.Protocol,
    images: Images,
    *,
    rerank: int = 100,
    mode: Mode = "composed",
    missing: Collection[str] = (),
    encoded: EncodedPictures | None = None,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Score one protocol: encode its pictures (or take those of `encoded`), rank every phrasing of every query.

    `mode` composed is what is served: stage 1, then stage 2 over the best `rerank`; image-only and text-only are
    stage 1 with the reference's or the sentence's vector. Queries that missing pictures make unanswerable (`missing`:
    ids outside the gallery, the protocol knows its own) are left out and counted. Raises UsageError for an unknown
    mode, DataError for an empty gallery, ImageError for a picture that cannot be read.
    """
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; it is one of {', '.join(MODES)}")
    queries = answerable(protocol, missing)
    if protocol.gallery and not queries:
        raise DataError(
            f"{protocol.name}: no query can be answered with the pictures that are there; check the data set"
        )
    if encoded is None:
        encoded = encode_pictures(scorer, pictures_of(protocol, queries), images, batch=BATCH, progress=progress)
    elif encoded.fingerprint != scorer.fingerprint:
        raise UsageError("the pictures were encoded by another model; encode them again")
    told = [(query, position) for query in queries for position in range(len(query.texts))]
    search = Search(scorer, protocol, encoded, rerank)
    rerank = pairs_scored(scorer, rerank, len(protocol.gallery))
    rankings: list[Ranked] = []
    unreadable = 0
    for at in range(0, len(told), BATCH):
        chunk = told[at : at + BATCH]
        for (query, position), (rows, readable) in zip(chunk, search.ranked(chunk, mode), strict=True):
            rankings.append(Ranked(query, position, rows.astype(np.int32)))
            unreadable += not readable
        if progress:
            progress("rank", at + len(chunk), len(told))
    dropped = len(protocol.queries) - len(queries)
    return ProtocolResult(
        protocol, mode, rerank, score_rankings(protocol, rankings), dropped, unreadable, tuple(rankings)
    )


def evaluate_source(
    scorer: TextScorer,
    source: data.Source,
    protocols: Sequence[data.Protocol],
    *,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    progress: Progress | None = None,
    images: Images | None = None,
    html: Path | None = None,
) -> Evaluation:
    """Score several protocols of one source in several modes; pictures that the protocols share are encoded once.

    `images` reads pictures for the scorer where they are already at hand. `html` is where to write what lies behind the
    scores of the first mode as a page (see nsfse.evaluation_page).
    A protocol of which no query can be answered is named in `skipped`; DataError where that is true of all.
    """
    scored = [protocol for protocol in protocols if protocol.gallery and answerable(protocol, source.missing)]
    if not scored:
        raise DataError(f"{source.name}: too few pictures for any query; run `nsfse data check {source.name}`")
    images = images or source_images(source, scorer.image_size)
    encoded: EncodedPictures | None = None
    results: list[ProtocolResult] = []
    examined: list[Examined] = []
    for protocol in scored:
        wanted = pictures_of(protocol, answerable(protocol, source.missing))
        if encoded is None or not encoded.covers(wanted):
            encoded = encode_pictures(scorer, wanted, images, batch=BATCH, progress=progress)
        for mode in modes:
            result = evaluate(
                scorer,
                protocol,
                images,
                rerank=rerank,
                mode=mode,
                missing=source.missing,
                encoded=encoded,
                progress=progress,
            )
            results.append(result)
            if html and mode == modes[0]:
                examined.append(examine(scorer, result, encoded))
    composed = [result for result in results if result.mode == modes[0]]
    summary = category_means(composed) if source.name == "fashioniq" else {}
    skipped = tuple(protocol.name for protocol in protocols if protocol not in scored)
    found = Evaluation(scorer.fingerprint, tuple(results), summary, skipped)
    if html:
        from nsfse.evaluation_page import evaluation_page

        evaluation_page(found, examined, source.load, html)
    return replace(found, files=(html,)) if html else found


def evaluate_dataset(
    scorer: TextScorer,
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
    the two files of its test server. Raises DataError where the split has no protocol or no pictures.
    """
    from nsfse.data.sources import known_name, open_source
    from nsfse.progress import say

    name = known_name(name)
    source = open_source(name, folder, **options)
    for note in data.notes_of(source):
        say(note)
    protocols = source.protocols(split)
    if not protocols:
        raise DataError(f"{name} has nothing to score on split {split!r} in {folder}; see `nsfse data check {name}`")
    hidden = not any(query.targets for protocol in protocols for query in protocol.queries)
    if hidden and submission is None:
        raise UsageError(
            f"{name} {split} keeps its answers on a server; name a folder for the files to send (submission)"
        )
    if submission is not None and (not hidden or name != "cirr"):
        raise UsageError(f"{name} {split} is scored here; only cirr test1 writes files for a test server")
    if submission is not None and protocols[0].missing:
        raise DataError(f"{name} {split} lacks {protocols[0].missing} pictures; the server takes whole rankings alone")
    if hidden and html:
        raise UsageError(
            f"{name} {split} keeps its answers on a server, so that there is nothing to show; leave out html"
        )
    found = evaluate_source(scorer, source, protocols, modes=modes, rerank=rerank, progress=progress, html=html)
    return found if submission is None else replace(found, files=write_submission(found.results[0], Path(submission)))


def evaluate_query_set(
    scorer: TextScorer,
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
    from nsfse.data.queryset import QuerySetSource

    source = QuerySetSource(Path(folder))
    found = [(name, p) for name in ([split] if split else source.splits) for p in source.protocols(name)]
    times = Counter(protocol.name for _, protocol in found)
    protocols = [replace(p, name=f"{p.name}-{of}") if times[p.name] > 1 else p for of, p in found]
    if not protocols:
        raise DataError(f"{folder} has no queries{f' on split {split!r}' if split else ''}; look at its queries.jsonl")
    return evaluate_source(scorer, source, protocols, modes=modes, rerank=rerank, progress=progress, html=html)


def answerable(protocol: data.Protocol, missing: Collection[str]) -> list[data.Triplet]:
    """Return the queries whose pictures are there and of whose right answers, where they are known, one is."""
    gallery, gone = frozenset(protocol.gallery), frozenset(protocol.missing_ids).union(missing)
    there = [query for query in protocol.queries if gone.isdisjoint(query.pictures)]
    return [query for query in there if not query.targets or not gallery.isdisjoint(query.targets)]


def pictures_of(protocol: data.Protocol, queries: Sequence[data.Triplet]) -> list[str]:
    """Return the gallery, then the pictures of queries that lie outside it."""
    return list(dict.fromkeys([*protocol.gallery, *(item for query in queries for item in query.pictures)]))
