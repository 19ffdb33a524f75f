"""The queue of queries, and the one thread that answers them, as many at a time as wait.

All bookkeeping is done by the event loop, so nothing is locked. The model never gets a query that has expired, or
whose client has disconnected.
"""

import asyncio
import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.server.errors import ClientDisconnected, HTTPError
from nsfse_runtime.server.galleries import Answer, ServedGallery, VectorOf
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import Metrics

_NICE_STEPS = 10  # of the 20 that a nice value has over its usual one
_FIRST_ESTIMATE_SECONDS = 0.02
_SMOOTHING = 0.1

AnswerBatch = Callable[[ServedGallery, list[Query | VectorOf]], list[Answer]]


@dataclass(eq=False, slots=True)
class Job:
    """A query in the queue. Times are those of the queue's clock, in seconds.

    `future` gets the answer; `started_at` is when the query left the queue, in a batch of `batch_size` queries.
    """

    query: Query | VectorOf
    gallery: ServedGallery
    deadline: float
    enqueued_at: float
    future: asyncio.Future[Answer]
    started_at: float = 0.0
    batch_size: int = 0


class QueryQueue:
    """A bounded queue. A place is reserved before an image is decoded, so that memory is bounded, too."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = perf_counter) -> None:
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._jobs: deque[Job] = deque()
        self._has_jobs = asyncio.Event()
        self.failed = asyncio.Event()  # set when a batch has failed
        self._reserved = 0
        self._clients: Counter[str] = Counter()
        self._seconds_per_query = _FIRST_ESTIMATE_SECONDS
        self.thread = ThreadPoolExecutor(1, "nsfse-model", initializer=lower_thread_priority)

    @property
    def reserved(self) -> int:
        """How many queries are accepted and not yet answered."""
        return self._reserved

    @property
    def waiting(self) -> int:
        """How many queries wait for the model."""
        return len(self._jobs)

    @property
    def clients(self) -> Mapping[str, int]:
        """How many accepted queries each address has."""
        return self._clients

    def check(self, client: str, count: int = 1) -> None:
        """Raise HTTPError where the queue has no place for `count` more queries of the address `client`."""
        per_client = self._settings.per_client
        if per_client and self._clients[client] + count > per_client:
            self._metrics.refused.labels("client").inc()
            message = f"this address has {per_client} queries waiting; wait for their answers"
            raise HTTPError(429, "overloaded", message, self._retry_after())
        if self._reserved + count > self._settings.queue:
            self._metrics.refused.labels("full").inc()
            raise HTTPError(503, "overloaded", "too many queries are waiting; try again", self._retry_after())

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._reserved * self._seconds_per_query))

    @contextmanager
    def reserve(self, client: str, count: int = 1) -> Iterator[None]:
        """Reserve `count` places for as long as the context lasts. Raises HTTPError where there are too few."""
        self.check(client, count)
        self._adjust(client, count)
        try:
            yield
        finally:
            self._adjust(client, -count)

    def _adjust(self, client: str, count: int) -> None:
        self._reserved += count
        self._clients[client] += count
        if not self._clients[client]:
            del self._clients[client]
        self._metrics.queue_length.set(self._reserved)

    def create_job(self, query: Query | VectorOf, gallery: ServedGallery, deadline: float) -> Job:
        """Return the job of a query; `deadline` is a time of the queue's clock."""
        return Job(query, gallery, deadline, self._clock(), asyncio.get_running_loop().create_future())

    async def submit(self, jobs: Sequence[Job], disconnected: asyncio.Task[None]) -> list[Answer]:
        """Answer jobs that share a deadline.

        Args:
            jobs: one or more jobs; those that still wait when this ends are removed.
            disconnected: a task that ends when the client disconnects.

        Returns:
            An answer, or the error of its query, for each job.

        Raises:
            HTTPError: the deadline has passed.
            ClientDisconnected: the client did not wait.
        """
        self._jobs.extend(jobs)
        self._has_jobs.set()
        answers: asyncio.Future[Any] = asyncio.gather(*(job.future for job in jobs))
        try:
            timeout = max(0.0, jobs[0].deadline - self._clock())
            first: set[asyncio.Future[Any]] = {answers, disconnected}
            await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return list(answers.result())
            raise self.expired_or_disconnected(disconnected)
        finally:
            if not answers.done():
                answers.cancel()
                with suppress(asyncio.CancelledError):
                    await answers
            for job in jobs:
                if job in self._jobs:
                    self._jobs.remove(job)

    def expired_or_disconnected(self, disconnected: asyncio.Task[None]) -> HTTPError | ClientDisconnected:
        """Return, and count, why a query gets no answer: its client has disconnected, or else it has expired."""
        if disconnected.done():
            self._metrics.refused.labels("disconnected").inc()
            return ClientDisconnected()
        self._metrics.refused.labels("expired").inc()
        message = f"there was no answer within {self._settings.deadline:g} seconds; try again"
        return HTTPError(503, "expired", message, self._retry_after())

    async def run(self, answer: AnswerBatch) -> None:
        """Answer batches with `answer`, for ever."""
        while True:
            await self._has_jobs.wait()
            if batch := self.next_batch():
                await self._answer_batch(batch, answer)

    async def _answer_batch(self, batch: list[Job], answer: AnswerBatch) -> None:
        self._metrics.batch_size.observe(len(batch))
        started_at = self._clock()
        queries = [job.query for job in batch]
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self.thread, answer, batch[0].gallery, queries)
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} queries")
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a bug, a damaged gallery, or a panic of a library in Rust
            self._fail(batch, error)
            return
        seconds = (self._clock() - started_at) / len(batch)
        self._seconds_per_query += _SMOOTHING * (seconds - self._seconds_per_query)
        for job, result in zip(batch, answers, strict=True):
            if isinstance(result, IntegrityError):
                self.failed.set()
            if not job.future.done():
                job.future.set_result(result)

    def _fail(self, batch: Sequence[Job], error: BaseException) -> None:
        """Fail these queries; the next are answered."""
        self.failed.set()
        reason = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        for job in batch:
            if not job.future.done():
                job.future.set_exception(reason)

    def next_batch(self) -> list[Job]:
        """Remove and return the oldest job and others of its gallery, as many as make a batch."""
        now, batch = self._clock(), list[Job]()
        for job in list(self._jobs):
            if job.future.done() or job.deadline <= now:
                self._jobs.remove(job)  # submit() sees to its reply: its timer is due
            elif len(batch) < self._settings.batch and (not batch or job.gallery is batch[0].gallery):
                self._jobs.remove(job)
                batch.append(job)
        for job in batch:
            job.started_at, job.batch_size = now, len(batch)
        if not self._jobs:
            self._has_jobs.clear()
        return batch


def lower_thread_priority() -> None:
    """Let this thread, and those it starts, yield to the one that reads requests, which can then reject quickly.

    Only Linux has priorities of single threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE_STEPS))
