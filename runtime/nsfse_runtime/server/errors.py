"""Why a request gets no answer: a status, a type for programs, one line for people."""

import msgspec

from nsfse_runtime.errors import (
    ImageError,
    InputError,
    NotFoundError,
    NsfseError,
    OutputError,
    TextError,
    UsageError,
)
from nsfse_runtime.escaping import printable


class Refused(Exception):
    """A request that is not answered; `retry_after` in seconds where it may be tried again."""

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after


class Failure(msgspec.Struct):
    """What went wrong: `type` for programs, `message` for people, and `request_id`, by which the log knows it."""

    type: str
    message: str
    request_id: str


class ErrorReply(msgspec.Struct):
    """A request that was not answered."""

    error: Failure


_OF_ERRORS: tuple[tuple[type[NsfseError], int, str], ...] = (
    (TextError, 422, "text"),
    (ImageError, 422, "image"),
    (NotFoundError, 404, "not_found"),
    (UsageError, 400, "usage"),
    (OutputError, 503, "busy"),
    (InputError, 422, "input"),
)
_RETRY_AFTER = 1


def refusal_of(error: Exception) -> Refused | None:
    """Return how an error that the request itself caused is told; None for any other."""
    if isinstance(error, Refused):
        return error
    for family, status, kind in _OF_ERRORS:
        if isinstance(error, family):
            return Refused(status, kind, printable(str(error)), _RETRY_AFTER if status == 503 else None)
    return None


def usage(message: str) -> Refused:
    """Return the refusal of a request that is not in its form."""
    return Refused(400, "usage", printable(message[:500]))
