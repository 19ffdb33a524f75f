"""Queries that would find no place, refused from their bytes: what is turned away must cost next to nothing.

A server that is asked ten times what it can answer spends its time on reading requests in order to refuse them. So
while the queue is full, a query that comes in one piece gets the reply that its route would give, but is not parsed.
"""

import re
import secrets
from time import perf_counter

import msgspec

from nsfse_runtime.server.errors import ErrorReply, Failure, Refused
from nsfse_runtime.server.middleware import HEADERS
from nsfse_runtime.server.queue import Waiting
from nsfse_runtime.server.telemetry import Log, Metrics

_QUERY = re.compile(rb"POST (/v1/query(?::batch)?) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,8})(?=\r\n)", re.IGNORECASE)
_OTHERWISE = re.compile(rb"\r\n(transfer-encoding|expect|connection|x-request-id)\s*:", re.IGNORECASE)
_STATUS = {429: b"Too Many Requests", 503: b"Service Unavailable"}
_FIXED = {"content-type": "application/json", **HEADERS}


class Shedding:
    """Refuses whole queries while `waiting` has no place for them."""

    def __init__(self, waiting: Waiting, metrics: Metrics, log: Log) -> None:
        self._waiting, self._metrics, self._log = waiting, metrics, log

    def reply(self, client: str, data: bytes) -> bytes | None:
        """Return the whole reply to `data` of the address `client`; None where its route is to see to it.

        That is all but a query of HTTP/1.1, alone and complete, without a header that asks for more than its answer.
        """
        since = perf_counter()
        if (route := _whole_query(data)) is None:
            return None
        try:
            self._waiting.check(client)
        except Refused as refused:
            return self._told(refused, route, since)
        return None

    def _told(self, refused: Refused, route: str, since: float) -> bytes:
        request_id, status = secrets.token_hex(8), refused.status
        body = msgspec.json.encode(ErrorReply(Failure(refused.kind, refused.message, request_id)))
        own = {"retry-after": refused.retry_after, "x-request-id": request_id, "content-length": len(body)}
        head = "".join(f"{name}: {value}\r\n" for name, value in (_FIXED | own).items())
        milliseconds = self._metrics.count(route, status, since)
        facts = {"method": "POST", "route": route, "status": status, "ms": milliseconds}
        self._log("request", request_id=request_id, **facts, error=refused.kind)
        return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, _STATUS[status], head.encode(), body)


def _whole_query(data: bytes) -> str | None:
    """Return the route of a query that is all of `data`."""
    head, end, body = data.partition(b"\r\n\r\n")
    query, lengths = _QUERY.match(data), _LENGTH.findall(head + b"\r\n")
    if not end or query is None or len(lengths) != 1 or int(lengths[0]) != len(body) or _OTHERWISE.search(head):
        return None
    return query[1].decode()
