"""The application: what is served, and what each route does. A request goes guard → route → queue → reply."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router

from nsfse_runtime.errors import NotFoundError, NsfseError
from nsfse_runtime.gallery.reader import default_workers
from nsfse_runtime.inference.tokenizer import MAX_CHARACTERS
from nsfse_runtime.retrieval.query import Query, Upload
from nsfse_runtime.server import schemas as m
from nsfse_runtime.server.conversion import batch_queries, decode, query_of, reply_of, watch
from nsfse_runtime.server.errors import Failure, Refused, refusal_of
from nsfse_runtime.server.galleries import Answer, Served
from nsfse_runtime.server.images import Shown, take_in, take_out
from nsfse_runtime.server.middleware import Guard, Notes
from nsfse_runtime.server.parsing import converted, form, json_body
from nsfse_runtime.server.queue import Job, Waiting, stand_back
from nsfse_runtime.server.routes import openapi, routes
from nsfse_runtime.server.settings import IMAGE_BYTES, LONGEST_SIDE, THUMBNAIL_SIDE, Settings
from nsfse_runtime.server.static_files import Assets
from nsfse_runtime.server.telemetry import MEDIA_TYPE, Log, Metrics

_T = TypeVar("_T")
# Thumbnails may fill the browser's cache for a while; their ETag tells whether they are still right.
_CACHED = "private, max-age=300"


class Service:
    """Galleries by name and what answers for them; `app` is its ASGI application."""

    def __init__(self, galleries: Sequence[Served], settings: Settings, version: str, log: Log | None = None) -> None:
        """`galleries` are served in this order, the first where a request names none; `version` is told by /v1/info."""
        self.galleries = {served.name: served for served in galleries}
        self.settings, self.version, self.log, self.metrics = settings, version, log or Log(), Metrics()
        self.metrics.lost.set_function(lambda: float(self.log.lost))
        self.waiting = Waiting(settings, self.metrics)
        self.pool = ThreadPoolExecutor(default_workers(), "nsfse-images", initializer=stand_back)
        self.warm = self.stopping = False
        self.failure: Exception | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None
        self._assets = Assets()
        self._openapi = msgspec.json.encode(openapi(version))
        handlers = routes(lambda operation: getattr(self, operation.does))
        router = Router(handlers, redirect_slashes=False, lifespan=self._lifespan)
        self.app = Guard(router, settings, self.metrics, self.log, self._without_paths)

    def _without_paths(self, message: str) -> str:
        """Return `message` with galleries by their names: where they lie is nobody's business."""
        for name, served in self.galleries.items():
            message = message.replace(str(served.gallery.path), name)
            if folder := served.folder:
                message = message.replace(f"{folder}{os.sep}", "")
        return message

    @property
    def ready(self) -> bool:
        """Tell whether queries are answered: one has been, and nobody has asked to stop."""
        return self.warm and not self.stopping

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.waiting.work(Served.answer)), asyncio.create_task(self._warm_up())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.pool.shutdown(cancel_futures=True)
            self.waiting.thread.shutdown(cancel_futures=True)

    async def _warm_up(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            for served in self.galleries.values():
                await loop.run_in_executor(self.waiting.thread, served.warm_up)
                await self._in_pool(served.facts)
                self.metrics.images.labels(served.name).set_function(partial(len, served.gallery))
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        self.warm = True
        self.on_ready()
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.log("ready", galleries=len(self.galleries))

    async def _in_pool(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    def _gallery(self, name: str | None) -> Served:
        if name is None:
            return next(iter(self.galleries.values()))
        if name not in self.galleries:
            raise NotFoundError(f"no gallery is called {name}; there are: {', '.join(self.galleries)}")
        return self.galleries[name]

    async def query(self, request: Request) -> Response:
        """Answer one query."""
        self.waiting.check(_client(request))
        async with form(request, m.QueryForm, self.settings.body_seconds) as asked:
            served = self._gallery(asked.gallery)
            with self.waiting.places(_client(request)):
                gone, deadline = watch(request), perf_counter() + self.settings.deadline
                try:
                    started = perf_counter()
                    pixels = await self._decoded(
                        served, [*asked.reference_images, *asked.negative_images], gone, deadline
                    )
                    decoded = perf_counter() - started if pixels else 0.0
                    references, minus = pixels[: len(asked.reference_images)], pixels[len(asked.reference_images) :]
                    parts = (asked.reference_ids, asked.texts), (asked.negative_ids, asked.negative_texts)
                    query = query_of(asked, *parts, references, minus)
                    job = self._job(query, served, deadline)
                    (found,) = await self.waiting.ask([job], gone)
                finally:
                    gone.cancel()
        if isinstance(found, NsfseError):
            raise found
        reply = self._reply(job, found, request, decoded)
        _notes(request).facts |= {"gallery": served.name, "batch": job.batch, "stages_ms": reply.timings_ms}
        timing = ", ".join(f"{stage};dur={value}" for stage, value in reply.timings_ms.items())
        return _json(reply, headers={"server-timing": timing})

    async def query_batch(self, request: Request) -> Response:
        """Answer several queries."""
        self.waiting.check(_client(request))
        asked = await json_body(request, m.BatchForm, self.settings.body_seconds)
        served = self._gallery(asked.gallery)
        queries = batch_queries(asked.queries)
        good = [query for query in queries if isinstance(query, Query)]
        with self.waiting.places(_client(request), len(good)):
            gone, deadline = watch(request), perf_counter() + self.settings.deadline
            jobs = [self._job(query, served, deadline) for query in good]
            try:
                found = await self.waiting.ask(jobs, gone) if jobs else []
            finally:
                gone.cancel()
        _notes(request).facts |= {"gallery": served.name, "queries": len(queries)}
        _notes(request).facts |= {"batch": jobs[0].batch} if jobs else {}
        answered = iter([self._result(job, each, request) for job, each in zip(jobs, found, strict=True)])
        results = [self._failed(each, request) if isinstance(each, Refused) else next(answered) for each in queries]
        return _json(m.BatchReply(results=results))

    def _job(self, query: Query, served: Served, deadline: float) -> Job:
        return Job(query, served, deadline, asyncio.get_running_loop().create_future())

    async def _decoded(
        self, served: Served, files: Sequence[Any], gone: "asyncio.Task[None]", deadline: float
    ) -> list[Upload]:
        """Decode a query's files in the pool, one after the other. Raises ImageError, or Refused or Gone when late."""
        pixels = []
        for file in files:
            try:
                pixels.append(await self._in_pool(decode, file.file, served.model.image_size, gone, deadline))
            except TimeoutError:
                raise self.waiting.given_up(gone) from None
        return pixels

    def _result(self, job: Job, found: Answer | NsfseError, request: Request) -> "m.QueryReply | m.FailedQuery":
        if not isinstance(found, NsfseError):
            return self._reply(job, found, request, 0.0)
        refused = refusal_of(found)
        if refused is None:
            raise found
        return self._failed(refused, request)

    def _failed(self, refused: Refused, request: Request) -> m.FailedQuery:
        return m.FailedQuery(Failure(refused.kind, self._without_paths(refused.message), _notes(request).id))

    def _reply(self, job: Job, found: Answer, request: Request, decoded: float) -> m.QueryReply:
        reply = reply_of(job, found, _notes(request).id, decoded)
        for stage, milliseconds in reply.timings_ms.items():
            self.metrics.stages.labels(stage).observe(milliseconds / 1000)
        return reply

    async def list_images(self, request: Request) -> Response:
        """List images of a gallery."""
        asked = converted(request.query_params.multi_items(), m.ListForm)
        served = self._gallery(asked.gallery)
        return _json(await self._in_pool(served.listed, asked.where, asked.offset, asked.limit))

    async def image(self, request: Request) -> Response:
        """Show an image."""
        return await self._shown(request, LONGEST_SIDE)

    async def thumbnail(self, request: Request) -> Response:
        """Show a small image."""
        return await self._shown(request, THUMBNAIL_SIDE)

    async def _shown(self, request: Request, side: int) -> Response:
        asked = converted(request.query_params.multi_items(), m.GalleryForm)
        served, name = self._gallery(asked.gallery), request.path_params["id"]
        if side == THUMBNAIL_SIDE and await self._in_pool(served.has, f"{name}/thumbnail"):
            name, side = f"{name}/thumbnail", LONGEST_SIDE  # the image's own name ends as the route does
        shown = await self._in_pool(Shown, served, name, side)
        headers = {"etag": shown.etag, "cache-control": _CACHED}
        if shown.etag in [each.strip() for each in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(await self._in_pool(shown.jpeg), media_type="image/jpeg", headers=headers)

    async def add_image(self, request: Request) -> Response:
        """Take an image into a gallery."""
        self._check_writable()
        async with form(request, m.ImageForm, self.settings.body_seconds) as given:
            served, stream = self._gallery(given.gallery), given.image[0].file
            metadata = given.metadata or None
            new = await self._in_pool(take_in, served, given.id, stream, metadata)
        reply = m.ChangeReply(id=given.id, change="added" if new else "unchanged")
        return _json(reply, status=201 if new else 200)

    async def remove_image(self, request: Request) -> Response:
        """Remove an image from a gallery, and its file."""
        self._check_writable()
        asked = converted(request.query_params.multi_items(), m.GalleryForm)
        name = request.path_params["id"]
        await self._in_pool(take_out, self._gallery(asked.gallery), name)
        return _json(m.ChangeReply(id=name, change="removed"))

    def _check_writable(self) -> None:
        if self.settings.token is None:
            raise Refused(403, "token", "images are taken in only by a server with a token; start it with one")

    async def info(self, _: Request) -> Response:
        """Tell what is served."""
        facts = [await self._in_pool(served.facts) for served in self.galleries.values()]
        first = self._gallery(None)
        limits = m.Limits(
            k=m.MOST_HITS,
            image_bytes=IMAGE_BYTES,
            text_chars=MAX_CHARACTERS,
            text_words=first.model.tokenizer.max_words,
            deadline_seconds=self.settings.deadline,
        )
        return _json(
            m.InfoReply(
                version=self.version,
                device=first.model.info.device,
                galleries=facts,
                limits=limits,
                suggestions=first.suggestions(),
                writable=self.settings.token is not None,
                note=first.note(),
            )
        )

    async def healthz(self, _: Request) -> Response:
        """Tell that the process lives."""
        return _json(m.State("alive"))

    async def readyz(self, _: Request) -> Response:
        """Tell whether queries are answered."""
        if self.ready:
            return _json(m.State("ready"))
        raise Refused(
            503, "not_ready", "the server is stopping" if self.stopping else "the galleries are being opened", 1
        )

    async def metrics_page(self, _: Request) -> Response:
        """Show the metrics."""
        return Response(self.metrics.page(), media_type=MEDIA_TYPE)

    async def openapi_page(self, _: Request) -> Response:
        """Show what the routes take and give."""
        return Response(self._openapi, media_type="application/json")

    async def page(self, request: Request) -> Response:
        """Show the page."""
        return self._assets.reply(request.path_params.get("path", "index.html"), request.headers)


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _notes(request: Request) -> Notes:
    notes: Notes = request.scope["nsfse"]
    return notes


def _json(value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")
