"""The handlers of the routes: functions of the server's Services and a request. routes.py names them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.inference.tokenizer import MAX_CHARACTERS
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.retrieval.results import Result
from nsfse_runtime.server import schemas
from nsfse_runtime.server.access import MAY_WRITE
from nsfse_runtime.server.conversion import as_text, batch_queries, decode_upload, to_query, to_reply, watch_disconnect
from nsfse_runtime.server.errors import ErrorBody, HTTPError, to_http_error
from nsfse_runtime.server.galleries import Answer, ServedFile, ServedGallery
from nsfse_runtime.server.images import RenderedImage, add_image, change_metadata, delete_image
from nsfse_runtime.server.load_shedding import client_address
from nsfse_runtime.server.parsing import convert_fields, read_body, read_json
from nsfse_runtime.server.queue import Job
from nsfse_runtime.server.services import Services
from nsfse_runtime.server.settings import MAX_IMAGE_BYTES, MAX_SIDE, THUMBNAIL_SIDE
from nsfse_runtime.server.telemetry import MEDIA_TYPE, request_log
from nsfse_runtime.types import Upload

# A browser may keep a thumbnail for a while; its ETag says whether it is still right.
_IMAGE_CACHING = "private, max-age=300"
_NOT_READY_RETRY_SECONDS = 1


async def query(services: Services, request: Request) -> Response:
    """Answer one query."""
    client = client_address(request.scope)
    async with read_body(request, schemas.QueryForm, services.settings.body_seconds) as form:
        gallery = services.gallery(form.gallery)
        with services.queue.reserve(client):
            async with watch_disconnect(request) as disconnected:
                started_at = services.clock()
                deadline = started_at + services.settings.deadline
                files = [file.file for file in (*form.reference_images, *form.negative_images)]
                uploads = await decode_all(services, gallery, files, disconnected, deadline)
                decode_seconds = services.clock() - started_at if uploads else 0.0
                references = len(form.reference_images)
                composed = to_query(form, uploads[:references], uploads[references:])
                job = services.queue.create_job(composed, gallery, deadline)
                (answer,) = await services.queue.submit([job], disconnected)
    if isinstance(answer, NsfseError):
        raise answer
    assert isinstance(answer, Result)
    reply = _reply(services, request, job, answer, decode_seconds)
    log_fields = {"gallery": gallery.name, "batch": job.batch_size, "stages_ms": reply.timings_ms}
    request_log(request).fields.update(log_fields)
    timing = ", ".join(f"{stage};dur={value}" for stage, value in reply.timings_ms.items())
    return as_json(reply, headers={"server-timing": timing})


async def query_batch(services: Services, request: Request) -> Response:
    """Answer several queries; one that fails has its error in its place."""
    form = await read_json(request, schemas.BatchForm, services.settings.body_seconds)
    gallery = services.gallery(form.gallery)
    queries = batch_queries(form.queries)
    well_formed = [item for item in queries if isinstance(item, Query)]
    with services.queue.reserve(client_address(request.scope), len(well_formed)):
        deadline = services.clock() + services.settings.deadline
        jobs = [services.queue.create_job(item, gallery, deadline) for item in well_formed]
        async with watch_disconnect(request) as disconnected:
            answers = await services.queue.submit(jobs, disconnected) if jobs else []
    record = request_log(request)
    record.fields |= {"gallery": gallery.name, "queries": len(queries)}
    if jobs:
        record.fields["batch"] = jobs[0].batch_size
    replies = iter([_result(services, request, job, answer) for job, answer in zip(jobs, answers, strict=True)])
    results = [_failed(services, request, item) if isinstance(item, HTTPError) else next(replies) for item in queries]
    return as_json(schemas.BatchReply(results=results))


async def decode_all(
    services: Services,
    gallery: ServedGallery,
    files: Sequence[BinaryIO],
    disconnected: asyncio.Task[None],
    deadline: float,
) -> list[Upload]:
    """Decode the files of a query in the pool, one after the other.

    Raises ImageError; HTTPError or ClientDisconnected where nobody waits for the answer any more.
    """

    def decode(file: BinaryIO) -> Upload | None:
        # Seen by the pool's thread: the query may have waited long for it.
        if disconnected.done() or deadline <= services.clock():
            return None
        return decode_upload(file, gallery.model.image_size)

    uploads = []
    for file in files:
        upload = await services.in_image_pool(decode, file)
        if upload is None:
            raise services.queue.expired_or_disconnected(disconnected)
        uploads.append(upload)
    return uploads


def _result(services: Services, request: Request, job: Job, answer: Answer) -> schemas.QueryReply | schemas.FailedQuery:
    if isinstance(answer, Result):
        return _reply(services, request, job, answer, decode_seconds=0.0)
    assert isinstance(answer, NsfseError)
    error = to_http_error(answer)
    if error is None:
        raise answer
    return _failed(services, request, error)


def _failed(services: Services, request: Request, error: HTTPError) -> schemas.FailedQuery:
    message = services.redact(error.message)
    return schemas.FailedQuery(ErrorBody(error.error_type, message, request_log(request).id))


def _reply(services: Services, request: Request, job: Job, answer: Result, decode_seconds: float) -> schemas.QueryReply:
    reply = to_reply(job, answer, request_log(request).id, decode_seconds, services.clock())
    for stage, milliseconds in reply.timings_ms.items():
        services.metrics.stage_seconds.labels(stage).observe(milliseconds / 1000)
    return reply


async def list_images(services: Services, request: Request) -> Response:
    """List images of a gallery."""
    form = convert_fields(request.query_params.multi_items(), schemas.ListForm)
    gallery = services.gallery(form.gallery)
    return as_json(await services.in_image_pool(gallery.list_images, form.where, form.offset, form.limit))


async def get_image(services: Services, request: Request) -> Response:
    """Send an image."""
    gallery, image_id = _image_of(services, request)
    return await _send_image(services, request, gallery, image_id, MAX_SIDE)


async def get_thumbnail(services: Services, request: Request) -> Response:
    """Send a small image, or the image whose own id ends as this route does."""
    gallery, image_id = _image_of(services, request)
    if await services.in_image_pool(gallery.has, f"{image_id}/thumbnail"):
        return await _send_image(services, request, gallery, f"{image_id}/thumbnail", MAX_SIDE)
    return await _send_image(services, request, gallery, image_id, THUMBNAIL_SIDE)


def _image_of(services: Services, request: Request) -> tuple[ServedGallery, str]:
    form = convert_fields(request.query_params.multi_items(), schemas.GalleryForm)
    return services.gallery(form.gallery), request.path_params["id"]


async def _send_image(
    services: Services, request: Request, gallery: ServedGallery, image_id: str, side: int
) -> Response:
    image = await services.in_image_pool(RenderedImage, gallery, image_id, side)
    headers = {"etag": image.etag, "cache-control": _IMAGE_CACHING}
    if image.etag in [etag.strip() for etag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(await services.in_image_pool(image.jpeg), media_type="image/jpeg", headers=headers)


async def post_image(services: Services, request: Request) -> Response:
    """Add an image to a gallery and to its folder."""
    _require_writer(services, request)
    async with read_body(request, schemas.ImageForm, services.settings.body_seconds) as form:
        gallery, stream = _require_file(services.gallery(form.gallery)), form.image[0].file
        values = {column: as_text(value) for column, value in form.metadata.items()}
        change = await services.in_image_pool(add_image, gallery, form.id, stream, values)
    return as_json(schemas.ChangeReply(id=form.id, change=change), status=201 if change == "added" else 200)


async def patch_image(services: Services, request: Request) -> Response:
    """Change the metadata of an image."""
    _require_writer(services, request)
    gallery, image_id = _image_of(services, request)
    patch = await read_json(request, schemas.ImagePatch, services.settings.body_seconds)
    values = None if patch.metadata is None else {column: as_text(value) for column, value in patch.metadata.items()}
    own_id, is_changed, metadata = await services.in_image_pool(
        change_metadata, _require_file(gallery), image_id, values
    )
    change = "updated" if is_changed else "unchanged"
    return as_json(schemas.PatchReply(id=own_id, change=change, metadata=metadata))


async def remove_image(services: Services, request: Request) -> Response:
    """Delete an image of a gallery, and its file."""
    _require_writer(services, request)
    gallery, image_id = _image_of(services, request)
    await services.in_image_pool(delete_image, _require_file(gallery), image_id)
    return as_json(schemas.ChangeReply(id=image_id, change="removed"))


def _require_writer(services: Services, request: Request) -> None:
    if not services.settings.write_tokens:
        raise HTTPError(403, "token", "images are changed only by a server with a token; start it with one")
    if not request.scope[MAY_WRITE]:
        raise HTTPError(403, "token", "this token only reads; images are changed with the server's other token")


def _require_file(gallery: ServedGallery) -> ServedFile:
    if not isinstance(gallery, ServedFile):
        raise HTTPError(409, "conflict", f"{gallery.name} is in a database; its images are changed by nsfse index")
    return gallery


async def info(services: Services, request: Request) -> Response:
    """Describe what is served."""
    galleries = [await services.in_image_pool(gallery.facts) for gallery in services.galleries.values()]
    first = services.gallery(None)
    limits = schemas.Limits(
        k=schemas.MAX_HITS,
        offset=schemas.MAX_OFFSET,
        image_bytes=MAX_IMAGE_BYTES,
        text_chars=MAX_CHARACTERS,
        text_words=first.model.tokenizer.max_words,
        deadline_seconds=services.settings.deadline,
    )
    reply = schemas.InfoReply(
        version=services.version,
        device=first.model.info.device,
        galleries=galleries,
        limits=limits,
        suggestions=first.edits(),
        writable=bool(services.settings.write_tokens and request.scope[MAY_WRITE] and isinstance(first, ServedFile)),
        note=first.note(),
    )
    return as_json(reply)


async def healthz(_services: Services, _: Request) -> Response:
    """Reply that the process lives."""
    return as_json(schemas.Status("alive"))


async def readyz(services: Services, _: Request) -> Response:
    """Reply whether queries are answered."""
    if services.ready:
        return as_json(schemas.Status("ready"))
    if services.stopping:
        message = "the server is stopping"
    elif services.unusable:
        message = f"a query of the server's own fails in: {', '.join(sorted(services.unusable))}"
    else:
        message = "the galleries are being opened"
    raise HTTPError(503, "not_ready", message, _NOT_READY_RETRY_SECONDS)


async def metrics(services: Services, _: Request) -> Response:
    """Send the metrics."""
    return Response(services.metrics.page(), media_type=MEDIA_TYPE)


async def openapi(_services: Services, request: Request) -> Response:
    """Send the description of the routes."""
    return Response(request.app.state.openapi, media_type="application/json")


async def page(services: Services, request: Request) -> Response:
    """Send the page."""
    return services.page_files.reply("index.html", request.headers)


async def docs(services: Services, request: Request) -> Response:
    """Send the page that shows /openapi.json."""
    return services.page_files.reply("docs.html", request.headers)


async def page_file(services: Services, request: Request) -> Response:
    """Send a file of the page."""
    return services.page_files.reply(request.path_params["path"], request.headers)


def as_json(value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as a reply in JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")
