"""A request for images → a query, and its answer → a reply."""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any, BinaryIO

from starlette.requests import Request

from nsfse_runtime.images.decode import load_image, sha256_of
from nsfse_runtime.retrieval.query import GalleryId, Query, Reference, Upload
from nsfse_runtime.server import schemas as m
from nsfse_runtime.server.errors import Refused
from nsfse_runtime.server.galleries import Answer
from nsfse_runtime.server.parsing import checked
from nsfse_runtime.server.queue import Job


def query_of(
    asked: m.Choices,
    wanted: tuple[Sequence[str], Sequence[str]],
    unwanted: tuple[Sequence[str], Sequence[str]],
    references: Sequence[Upload] = (),
    negative_images: Sequence[Upload] = (),
) -> Query:
    """Return a query of (ids, texts) that are `wanted` and `unwanted`, and of images that were sent."""
    images: tuple[Reference, ...] = (*references, *map(GalleryId, wanted[0]))
    avoided: tuple[Reference, ...] = (*negative_images, *map(GalleryId, unwanted[0]))
    return Query(
        references=images,
        texts=tuple(wanted[1]),
        negative_texts=tuple(unwanted[1]),
        negative_images=avoided,
        balance=asked.balance,
        k=asked.k,
        where=asked.where,
        rerank=asked.rerank,
        min_confidence=asked.min_confidence,
        heatmaps=asked.heatmaps,
    )


def batch_queries(values: Sequence[Any]) -> list[Query | Refused]:
    """Return the queries of a batch, in the place of one that is not in its form why it is refused."""
    found: list[Query | Refused] = []
    for number, value in enumerate(values):
        try:
            each = checked(value, m.BatchQuery, f"queries[{number}]")
        except Refused as refused:
            found.append(refused)
        else:
            found.append(query_of(each, (each.reference_ids, each.texts), (each.negative_ids, each.negative_texts)))
    return found


def decode(stream: BinaryIO, size: tuple[int, int], gone: "asyncio.Task[None]", deadline: float) -> Upload:
    """Decode an image and fit it to `size` (height, width), unless nobody waits for it.

    Raises ImageError, or TimeoutError: the client has gone, or it is too late.
    """
    if gone.done() or deadline <= perf_counter():
        raise TimeoutError
    pixels = load_image(stream, size)
    stream.seek(0)
    return Upload(pixels, sha256_of(stream))


def watch(request: Request) -> "asyncio.Task[None]":
    """Return a task that ends when the client goes. The body must have been read."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return asyncio.create_task(wait())


def reply_of(job: Job, found: Answer, request_id: str, decoded: float) -> m.QueryReply:
    """Return the reply to a query whose images took `decoded` seconds to decode."""
    result = found.result
    milliseconds = {"decode": decoded, "queue": job.taken - job.since, "total": perf_counter() - job.since + decoded}
    own = {stage: round(1000 * seconds, 3) for stage, seconds in milliseconds.items()}
    hits = [
        m.ServedHit(
            id=hit.id,
            score=hit.score,
            is_match=hit.is_match,
            evidence=hit.evidence,
            confidence=hit.confidence,
            metadata=metadata,
        )
        for hit, metadata in zip(result.hits, found.metadata, strict=True)
    ]
    return m.QueryReply(
        hits=hits,
        has_match=result.has_match,
        threshold=result.threshold,
        grid=result.grid,
        texts=result.texts,
        notes=result.notes,
        timings_ms={**result.timings_ms, **own},
        gallery=job.gallery.name,
        request_id=request_id,
    )
