"""What the handlers of one server share: galleries, the queue, threads, log and metrics."""

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Thread
from time import perf_counter
from typing import ParamSpec, TypeVar

from nsfse_runtime.errors import NotFoundError
from nsfse_runtime.gallery.reader import default_workers
from nsfse_runtime.server.galleries import ServedGallery
from nsfse_runtime.server.queue import QueryQueue, lower_thread_priority
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.static_files import PageFiles
from nsfse_runtime.server.telemetry import Log, Metrics
from nsfse_runtime.server.tracing import Tracing

# What still runs when all requests are answered is given up after so long.
_THREAD_SECONDS = 1.0
_CANARY_PAUSE_SECONDS = 1.0
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Services:
    """The parts of one server that its handlers use.

    Args:
        galleries: in this order; the first answers requests that name none.
        settings: the server's settings.
        version: is shown by /v1/info.
        log: writes to stderr by default.
        clock: seconds, for all deadlines.
    """

    def __init__(
        self,
        galleries: Sequence[ServedGallery],
        settings: Settings,
        version: str,
        log: Log | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.galleries = {gallery.name: gallery for gallery in galleries}
        self.settings, self.version, self.clock = settings, version, clock
        self.log, self.metrics, self.page_files = log or Log(), Metrics(), PageFiles()
        self.metrics.log_lines_lost.set_function(lambda: float(self.log.lost))
        self.tracing = Tracing(version, self.log) if settings.traces else None
        self.queue = QueryQueue(settings, self.metrics, clock)
        self.image_pool = ThreadPoolExecutor(default_workers(), "nsfse-images", initializer=lower_thread_priority)
        self.warm = self.stopping = False
        self.unusable: set[str] = set()
        self.hung = False
        self.failure: Exception | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        """Whether queries are answered: all galleries are open and usable, and no signal has come."""
        return self.warm and not self.stopping and not self.unusable

    def gallery(self, name: str | None) -> ServedGallery:
        """Return a gallery by its name, the first for None. Raises NotFoundError."""
        if name is None:
            return next(iter(self.galleries.values()))
        if name not in self.galleries:
            raise NotFoundError(f"no gallery is called {name}; there are: {', '.join(self.galleries)}")
        return self.galleries[name]

    def redact(self, message: str) -> str:
        """Return `message` with names of galleries in the place of their paths, which are private."""
        for name, gallery in self.galleries.items():
            message = message.replace(gallery.where, name)
            if folder := gallery.folder:
                message = message.replace(f"{folder}{os.sep}", "")
        return message

    async def in_image_pool(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function that reads or writes files in a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self.image_pool, partial(function, *args, **kwargs))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the galleries and answer queries for as long as the context lasts."""
        tasks = [asyncio.create_task(work()) for work in (self._answer_queries, self._warm_up)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end_threads()

    def _end_threads(self) -> None:
        """End the threads; `hung` tells whether one did not end in time, as in a graph that runs for ever."""
        ending = [
            Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
            for pool in (self.image_pool, self.queue.thread)
        ]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(_THREAD_SECONDS)
        self.hung = any(thread.is_alive() for thread in ending)

    async def _answer_queries(self) -> None:
        """Run the queue; it starts again after a bug."""
        while True:
            try:
                await self.queue.run(ServedGallery.answer)
            except Exception as error:
                self.queue.failed.set()
                self.log("bug", "error", traceback="".join(traceback.format_exception(error)))

    async def _watch(self) -> None:
        """Run a query in each gallery from time to time, and soon after one has failed: readiness follows it."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.canary_seconds):
                    await self.queue.failed.wait()
            self.queue.failed.clear()
            for gallery in self.galleries.values():
                await self._check(gallery)
            await asyncio.sleep(_CANARY_PAUSE_SECONDS)

    async def _check(self, gallery: ServedGallery) -> None:
        canary = asyncio.get_running_loop().run_in_executor(self.queue.thread, gallery.canary)
        await asyncio.wait([canary], timeout=self.settings.deadline)
        if not canary.done():
            self._note(gallery, f"a query has taken more than {self.settings.deadline:g} seconds")
            await asyncio.wait([canary])
        error = canary.exception()
        self._note(gallery, None if error is None else self.redact(f"{type(error).__name__}: {error}"))

    def _note(self, gallery: ServedGallery, reason: str | None) -> None:
        """Note, and log where it changes, whether a gallery is usable: why not, or None."""
        if (reason is None) == (gallery.name not in self.unusable):
            return
        if reason is None:
            self.unusable.remove(gallery.name)
            self.log("usable", gallery=gallery.name)
        else:
            self.unusable.add(gallery.name)
            self.log("unusable", "error", gallery=gallery.name, reason=reason)

    async def _warm_up(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            for gallery in self.galleries.values():
                await loop.run_in_executor(self.queue.thread, gallery.warm_up)
                await self.in_image_pool(gallery.facts)
                self.metrics.images.labels(gallery.name).set_function(gallery.count)
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        self.warm = True
        self.on_ready()
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.log("ready", galleries=len(self.galleries))
        await self._watch()
