"""Errors of the HTTP API: a status, a type for programs, and one line for people."""

import errno
import secrets
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nsfse_runtime.errors import (
    ImageError,
    InputError,
    IntegrityError,
    NotFoundError,
    NsfseError,
    OutputError,
    TextError,
    UsageError,
)
from nsfse_runtime.escaping import printable
from nsfse_runtime.server.telemetry import Log, request_log


class HTTPError(Exception):
    """A request that fails with a status.

    Args:
        status: the HTTP status of the reply.
        error_type: what went wrong, for programs.
        message: what went wrong and what to do, for people.
        retry_after: seconds after which the client may try again.
        headers: further headers of the reply.
    """

    def __init__(
        self,
        status: int,
        error_type: str,
        message: str,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.error_type, self.message = status, error_type, message
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)


class ClientDisconnected(Exception):
    """The client closed the connection: nobody waits for the answer."""


class ErrorBody(msgspec.Struct):
    """What went wrong: `type` for programs, `message` for people, and `request_id` as in the server's log."""

    type: str
    message: str
    request_id: str


class ErrorReply(msgspec.Struct):
    """The reply to a request that failed."""

    error: ErrorBody


_STATUSES: tuple[tuple[type[NsfseError], int, str], ...] = (
    (TextError, 422, "text"),
    (ImageError, 422, "image"),
    (NotFoundError, 404, "not_found"),
    (UsageError, 400, "usage"),
    (OutputError, 503, "busy"),
    (InputError, 422, "input"),
    (IntegrityError, 503, "damaged"),
)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_ROUTING = {
    404: ("not_found", "no such route; GET /openapi.json lists the routes"),
    405: ("method", "method not allowed; the Allow header lists the methods of this route"),
}
_RETRY_AFTER = 1
_CLIENT_CLOSED_REQUEST = 499


def to_http_error(error: Exception) -> HTTPError | None:
    """Return `error` as the HTTPError it stands for; None for a bug of the server."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, HTTPException):
        error_type, message = _ROUTING.get(error.status_code, ("usage", str(error.detail)))
        return HTTPError(error.status_code, error_type, message, headers=error.headers)
    if isinstance(error, OutputError) and getattr(error.__cause__, "errno", None) in _NO_SPACE:
        return HTTPError(507, "storage", printable(str(error)))
    for family, status, error_type in _STATUSES:
        if isinstance(error, family):
            return HTTPError(status, error_type, printable(str(error)), _RETRY_AFTER if status == 503 else None)
    return None


def usage_error(message: str) -> HTTPError:
    """Return the error of a malformed request."""
    return HTTPError(400, "usage", printable(message[:500]))


def too_large(what: str, limit: int) -> HTTPError:
    """Return the error of a body or an image of more than `limit` bytes."""
    return HTTPError(413, "too_large", f"{what} is over the limit of {limit / 1e6:.0f} MB")


def storage_error(place: str, error: OSError, advice: str = "") -> HTTPError:
    """Return the error of a place of the server that is full or cannot be written."""
    what = f"{place} cannot be written ({error.strerror or type(error).__name__}); free space there"
    return HTTPError(507, "storage", f"{what} {advice}".strip())


def new_request_id() -> str:
    """Return an id by which a request is found in the log."""
    return secrets.token_hex(8)


def exception_handlers(log: Log, redact: Callable[[str], str]) -> dict[Any, Any]:
    """Return Starlette's table of exception handlers.

    Args:
        log: gets the traceback of a bug.
        redact: takes what is private out of a message.
    """

    async def reply(request: Request, error: Exception) -> Response:
        record, http_error = request_log(request), to_http_error(error)
        if http_error is None:
            trace = "".join(traceback.format_exception(error))
            log("bug", "error", request_id=record.id, route=record.route, traceback=trace)
            message = "internal error; the server's log has the cause under this request_id"
            http_error = HTTPError(500, "internal", message)
        record.error = http_error.error_type
        body = ErrorReply(ErrorBody(http_error.error_type, redact(http_error.message), record.id))
        return Response(msgspec.json.encode(body), http_error.status, http_error.headers, "application/json")

    async def note_disconnect(request: Request, _: Exception) -> None:
        record = request_log(request)
        record.status = record.status or _CLIENT_CLOSED_REQUEST

    replies = dict.fromkeys((HTTPError, NsfseError, HTTPException, Exception), reply)
    return replies | dict.fromkeys((ClientDisconnect, ClientDisconnected), note_disconnect)
