"""Requests to queries, and answers to replies."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

import msgspec
from starlette.requests import Request

from nsfse_runtime.images.decode import load_image, sha256_of
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.retrieval.results import Result
from nsfse_runtime.server import schemas
from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.parsing import convert_json
from nsfse_runtime.server.queue import Job
from nsfse_runtime.types import GalleryId, Upload


def to_query(
    request: schemas.QueryForm | schemas.BatchQuery,
    reference_images: Sequence[Upload] = (),
    negative_images: Sequence[Upload] = (),
) -> Query:
    """Return the query of a checked request and of the images that were uploaded with it."""
    return Query(
        references=(*reference_images, *map(GalleryId, request.reference_ids)),
        texts=tuple(request.texts),
        negative_texts=tuple(request.negative_texts),
        negative_images=(*negative_images, *map(GalleryId, request.negative_ids)),
        balance=request.balance,
        k=request.k,
        where=request.where,
        rerank=request.rerank,
        min_confidence=request.min_confidence,
        heatmaps=request.heatmaps,
        offset=request.offset,
        fields=tuple(request.fields),
        group_by=request.group_by,
        fold_duplicates=request.fold_duplicates,
        text_weights=tuple(request.text_weights),
        negative_text_weights=tuple(request.negative_text_weights),
    )


def batch_queries(values: Sequence[Any]) -> list[Query | HTTPError]:
    """Return the queries of a batch, with an error in the place of each malformed one."""
    queries: list[Query | HTTPError] = []
    for number, value in enumerate(values):
        try:
            queries.append(to_query(convert_json(value, schemas.BatchQuery, f"queries[{number}]")))
        except HTTPError as error:
            queries.append(error)
    return queries


def as_text(value: schemas.Value | None) -> str:
    """Return a value of metadata as it is stored: a text, "" for None, and numbers and booleans as in JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()


def decode_upload(stream: BinaryIO, size: tuple[int, int]) -> Upload:
    """Decode an image and fit it to `size` (height, width) in pixels. Raises ImageError."""
    pixels = load_image(stream, size)
    stream.seek(0)
    return Upload(pixels, sha256_of(stream))


@asynccontextmanager
async def watch_disconnect(request: Request) -> AsyncIterator[asyncio.Task[None]]:
    """Yield a task that ends when the client disconnects. The body must have been read."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(wait_for_disconnect())
    try:
        yield task
    finally:
        task.cancel()


def to_reply(job: Job, result: Result, request_id: str, decode_seconds: float, now: float) -> schemas.QueryReply:
    """Return the reply to a query; `now` is a time of the queue's clock."""
    seconds = {
        "decode": decode_seconds,
        "queue": job.started_at - job.enqueued_at,
        "total": now - job.enqueued_at + decode_seconds,
    }
    hits = [
        schemas.ServedHit(
            id=hit.id,
            score=hit.score,
            is_match=hit.is_match,
            evidence=hit.evidence,
            confidence=hit.confidence,
            metadata=hit.metadata,
            duplicates=hit.duplicates,
        )
        for hit in result.hits
    ]
    return schemas.QueryReply(
        hits=hits,
        total=result.total,
        has_match=result.has_match,
        threshold=result.threshold,
        grid=result.grid,
        references=result.references,
        texts=result.texts,
        notes=result.notes,
        timings_ms={**result.timings_ms, **{stage: round(1000 * value, 3) for stage, value in seconds.items()}},
        gallery=job.gallery.name,
        request_id=request_id,
    )
