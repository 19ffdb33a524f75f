"""Rejects requests from their head alone while the server is overloaded.

This comes after the checks of host and token: a client without access learns nothing of the load.
"""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nsfse_runtime.server.access import HEALTH_PATHS
from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.middleware import CheckMiddleware, HTTPMiddleware
from nsfse_runtime.server.queue import QueryQueue
from nsfse_runtime.server.telemetry import SCOPE_KEY, Metrics


class ConcurrencyLimitMiddleware(HTTPMiddleware):
    """Lets `limit` requests in at once, those that still send their body among them; health checks always."""

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        super().__init__(app)
        self._limit, self._metrics = limit, metrics
        self._active = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise HTTPError where there are too many."""
        if self._active >= self._limit and scope["path"] not in HEALTH_PATHS:
            self._metrics.refused.labels("full").inc()
            raise HTTPError(503, "overloaded", "too many requests at once; try again", 1)
        self._active += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._active -= 1


class LoadSheddingMiddleware(CheckMiddleware):
    """Rejects queries while the queue has no place for them, before their body is read."""

    def __init__(self, app: ASGIApp, queue: QueryQueue, paths: Collection[str]) -> None:
        super().__init__(app)
        self._queue, self._paths = queue, paths

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for a query that finds the queue full."""
        if scope["method"] == "POST" and scope["path"] in self._paths:
            scope[SCOPE_KEY].route = scope["path"]
            self._queue.check(client_address(scope))


def client_address(scope: Scope) -> str:
    """Return the address a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""
