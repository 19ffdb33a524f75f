"""Queries that wait, and the one thread that answers them, as many at a time as wait.

All of the bookkeeping is done by the event loop, so nothing is locked. What has expired or whose client has gone is
never given to the model.
"""

import asyncio
import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.server.errors import Refused
from nsfse_runtime.server.galleries import Answer, Served
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import Metrics

_STEPS_BACK = 10  # of the 20 that a nice value has over its usual one


@dataclass(eq=False, slots=True)
class Job:
    """A query on its way: `future` brings its answer, `taken` is when it left the queue, in `batch` with others."""

    query: Query
    gallery: Served
    deadline: float
    future: asyncio.Future[Answer | NsfseError]
    since: float = field(default_factory=perf_counter)
    taken: float = 0.0
    batch: int = 0


class Waiting:
    """The queue. `places` are taken before an image is decoded, so that what waits is bounded in memory, too."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._jobs: deque[Job] = deque()
        self._some = asyncio.Event()
        self._taken = 0
        self._clients: Counter[str] = Counter()
        self.thread = ThreadPoolExecutor(1, "nsfse-model", initializer=stand_back)
        self._seconds_each = 0.02

    def check(self, client: str, count: int = 1) -> None:
        """Raise Refused where `count` queries more of `client` would be too many."""
        per_client = self._settings.per_client
        if per_client and self._clients[client] + count > per_client:
            self._metrics.refused.labels("client").inc()
            message = f"this address has {per_client} queries waiting; wait for their answers"
            raise Refused(429, "overloaded", message, self._retry_after())
        if self._taken + count > self._settings.queue:
            self._metrics.refused.labels("full").inc()
            raise Refused(503, "overloaded", "too many queries are waiting; try again", self._retry_after())

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._taken * self._seconds_each))

    def places(self, client: str, count: int = 1) -> "_Places":
        """Take `count` places, for as long as the context lasts. Raises Refused."""
        self.check(client, count)
        return _Places(self, client, count)

    def change(self, client: str, count: int) -> None:
        """Take places, or with a negative `count` give them back."""
        self._taken += count
        self._clients[client] += count
        if not self._clients[client]:
            del self._clients[client]
        self._metrics.waiting.set(self._taken)

    async def ask(self, jobs: Sequence[Job], gone: "asyncio.Task[None]") -> list[Answer | NsfseError]:
        """Answer `jobs`, which share a deadline, unless `gone` (the client) comes first.

        Raises Refused when they expire, Gone when the client has gone; those that still wait are then taken out.
        """
        self._jobs.extend(jobs)
        self._some.set()
        answers: asyncio.Future[Any] = asyncio.gather(*(job.future for job in jobs))
        try:
            left = jobs[0].deadline - perf_counter()
            waited: set[asyncio.Future[Any]] = {answers, gone}
            await asyncio.wait(waited, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return list(answers.result())
            raise self.given_up(gone)
        finally:
            if not answers.done():
                answers.cancel()
                with suppress(asyncio.CancelledError):
                    await answers
            for job in jobs:
                if job in self._jobs:
                    self._jobs.remove(job)

    def given_up(self, gone: "asyncio.Task[None]") -> "Refused | Gone":
        """Return why a query is not answered: its client has gone, or else it is too late. It is counted."""
        if gone.done():
            self._metrics.refused.labels("disconnected").inc()
            return Gone()
        self._metrics.refused.labels("expired").inc()
        seconds = f"{self._settings.deadline:g} seconds"
        return Refused(503, "expired", f"there was no answer within {seconds}; try again", self._retry_after())

    async def work(self, answer: Callable[[Served, list[Query]], list[Answer | NsfseError]]) -> None:
        """Answer what comes, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch = self._take()
            if not batch:
                continue
            self._metrics.batches.observe(len(batch))
            started = perf_counter()
            try:
                queries = [job.query for job in batch]
                found = await loop.run_in_executor(self.thread, answer, batch[0].gallery, queries)
            except Exception as error:  # a bug, or a damaged gallery: told to those who asked, and the next are served
                for job in batch:
                    if not job.future.done():
                        job.future.set_exception(error)
                continue
            self._seconds_each += 0.1 * ((perf_counter() - started) / len(batch) - self._seconds_each)
            for job, each in zip(batch, found, strict=True):
                if not job.future.done():
                    job.future.set_result(each)

    def _take(self) -> list[Job]:
        """Return the oldest job and those of the same gallery that wait with it, as many as make a batch."""
        now, batch = perf_counter(), list[Job]()
        for job in list(self._jobs):
            if job.future.done() or job.deadline <= now:
                self._jobs.remove(job)  # who asked sees to the rest: its timer is due
            elif len(batch) < self._settings.batch and (not batch or job.gallery is batch[0].gallery):
                self._jobs.remove(job)
                batch.append(job)
        for job in batch:
            job.taken, job.batch = now, len(batch)
        if not self._jobs:
            self._some.clear()
        return batch


def stand_back() -> None:
    """Let this thread, and those it starts, yield to the one that reads requests: who is refused need not wait for it.

    Only Linux has priorities of single threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _STEPS_BACK))


class Gone(Exception):
    """The client has gone: nobody waits for the answer."""


class _Places:
    def __init__(self, waiting: Waiting, client: str, count: int) -> None:
        self._waiting, self._client, self._count = waiting, client, count

    def __enter__(self) -> None:
        self._waiting.change(self._client, self._count)

    def __exit__(self, *_: object) -> None:
        self._waiting.change(self._client, -self._count)
