"""Bodies and query strings → the types of messages.py, with a word on which field is wrong."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, get_type_hints

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from nsfse_runtime.server.errors import Refused, usage
from nsfse_runtime.server.settings import IMAGE_BYTES, JSON_BYTES

_T = TypeVar("_T", bound=msgspec.Struct)
_FILES = ("image", "reference_images", "negative_images")
_JSON = ("where", "metadata")
_END_BYTES = 1024
_MOST_FILES, _MOST_FIELDS, _PART_BYTES = 16, 48, 64_000


@asynccontextmanager
async def form(request: Request, kind: type[_T], seconds: float) -> AsyncIterator[_T]:
    """Read a multipart form that must arrive within `seconds`; its files last as long as the context.

    Raises Refused: another content type, too large, too slow, or not in its form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refused(
            415, "content_type", "send multipart/form-data, such as: curl -F texts='make it red' -F reference_ids=..."
        )
    end = _End(request)
    try:
        async with asyncio.timeout(seconds):
            read = await Request(request.scope, end.receive).form(
                max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_PART_BYTES
            )
    except TimeoutError:
        raise _slow(seconds) from None
    except (HTTPException, MultiPartException) as error:
        raise usage(
            f"the form cannot be read: {getattr(error, 'detail', None) or getattr(error, 'message', '')}"
        ) from None
    try:
        if not end.closed:
            raise usage("the form ends before its closing boundary; send it whole")
        values = read.multi_items()
        for name, value in values:
            if isinstance(value, UploadFile) != (name in _FILES):
                raise usage(f"{name[:40]}: {'a file' if name in _FILES else 'a text, not a file,'} is expected")
            if isinstance(value, UploadFile) and (value.size or 0) > IMAGE_BYTES:
                raise Refused(413, "too_large", f"an image is over the limit of {IMAGE_BYTES / 1e6:.0f} MB")
        yield converted(values, kind)
    finally:
        await read.close()


async def json_body(request: Request, kind: type[_T], seconds: float) -> _T:
    """Read a body of JSON that must arrive within `seconds`. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "content_type", "send application/json")
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > JSON_BYTES:
                    raise Refused(413, "too_large", f"the body is over the limit of {JSON_BYTES / 1e6:.0f} MB")
    except TimeoutError:
        raise _slow(seconds) from None
    try:
        found = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise usage(_reason(error)) from None
    _refuse_twice("", data.decode())
    return found


def converted(pairs: Iterable[tuple[str, Any]], kind: type[_T]) -> _T:
    """Return the fields of a form or query string as `kind`. Raises Refused."""
    several = {name for name, hint in get_type_hints(kind).items() if getattr(hint, "__origin__", None) is list}
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in several:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise usage(f"{name[:40]}: given twice")
        else:
            values[name] = _json(name, value) if name in _JSON else value
    try:
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise usage(_reason(error)) from None


def checked(value: Any, kind: type[_T], place: str) -> _T:
    """Return a part of a JSON body as `kind`; `place` says where it stands. Raises Refused."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise usage(f"{place}.{_reason(error)}" if "$" in str(error) else f"{place}: {_reason(error)}") from None


class _End:
    """Passes a form's body on and keeps its end, which tells whether it came whole."""

    def __init__(self, request: Request) -> None:
        self._request, self._end = request, b""
        _, options = parse_options_header(request.headers.get("content-type", ""))
        self._closing = b"--" + options.get(b"boundary", b"") + b"--"

    async def receive(self) -> Message:
        message = await self._request.receive()
        self._end = (self._end + message.get("body", b"")[-_END_BYTES:])[-_END_BYTES:]
        return message

    @property
    def closed(self) -> bool:
        """Tell whether the closing boundary has come."""
        return self._closing in self._end


def _json(name: str, value: str) -> Any:
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise usage(f'{name}: a JSON object is expected, such as {{"colour": "red"}}') from None
    _refuse_twice(f"{name}: ", value)
    return found


def _refuse_twice(place: str, text: str) -> None:
    """Raise Refused for JSON, decoded already, in which an object has a key twice: the last would win unseen."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [key for key, _ in pairs]
            raise usage(f"{place}{next(key for key in names if names.count(key) > 1)[:40]} is given twice")
        return found

    with suppress(ValueError, RecursionError):  # numbers that Python finds too long
        json.loads(text, object_pairs_hook=check)


_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _reason(error: Exception) -> str:
    """Return msgspec's reason in plain words, the field in front: "k: Expected a whole number <= 100"."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    reason, _, place = str(error).partition(" - at `")
    field = place.removeprefix("$").removeprefix(".").removesuffix("`")
    plain = _plain_reason(reason)
    return f"{field}: {plain}" if field else plain


def _plain_reason(reason: str) -> str:
    if found := re.fullmatch(r"Expected `([^`]+)`(?: of length)?([^,]*)(?:, got `([^`]+)`)?", reason):
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in found[1].split(" | "))
        length = f" of length{found[2]}" if "of length" in reason else found[2]
        got = f", got {_KINDS.get(found[3], found[3])}" if found[3] else ""
        return f"Expected {wanted}{length}{got}"
    if found := re.fullmatch(r"Object contains unknown field `([^`]*)`", reason):
        return f"there is no field {found[1][:40]}"
    if found := re.fullmatch(r"Object missing required field `([^`]*)`", reason):
        return f"the field {found[1]} is missing"
    return reason


def _slow(seconds: float) -> Refused:
    return Refused(408, "slow", f"the body did not arrive within {seconds:g} seconds")
