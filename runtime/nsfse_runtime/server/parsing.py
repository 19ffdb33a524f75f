"""Bodies and query strings to the types of schemas.py. Errors name the field that is wrong."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from typing import Any, TypeVar, get_type_hints

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from nsfse_runtime.server.errors import HTTPError, storage_error, too_large, usage_error
from nsfse_runtime.server.settings import MAX_BODY_BYTES, MAX_IMAGE_BYTES, MAX_JSON_BYTES

_T = TypeVar("_T", bound=msgspec.Struct)
_FILE_FIELDS = ("image", "reference_images", "negative_images")
_JSON_FIELDS = ("where", "metadata")
_JSON_TYPES = ("application/json", "application/merge-patch+json")
_END_BYTES = 1024
_MAX_FILES, _MAX_FIELDS, _MAX_PART_BYTES = 16, 48, 64_000


@asynccontextmanager
async def read_body(request: Request, kind: type[_T], seconds: float) -> AsyncIterator[_T]:
    """Read a multipart form, or the same fields as JSON with each image in base64 or as a data URI.

    Args and errors are those of read_form.
    """
    if _content_type(request) in _JSON_TYPES:
        yield await read_json(request, kind, seconds, MAX_BODY_BYTES)
    else:
        async with read_form(request, kind, seconds) as form:
            yield form


@asynccontextmanager
async def read_form(request: Request, kind: type[_T], seconds: float) -> AsyncIterator[_T]:
    """Read a multipart form; its files are open for as long as the context lasts.

    Args:
        request: its body must arrive within `seconds`.
        kind: the type of the form.
        seconds: how long to wait for the body.

    Raises:
        HTTPError: another content type, too large, too slow, or malformed.
    """
    if _content_type(request) != "multipart/form-data":
        hint = "such as: curl -F texts='make it red' -F reference_ids=..."
        raise HTTPError(415, "content_type", f"send multipart/form-data or application/json, {hint}")
    end = _BodyEnd(request)
    try:
        async with asyncio.timeout(seconds):
            form = await Request(request.scope, end.receive).form(
                max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_PART_BYTES
            )
    except TimeoutError:
        raise _too_slow(seconds) from None
    except OSError as error:  # where large files of a form are kept meanwhile
        raise storage_error("the server's temporary folder", error, "or set TMPDIR") from error
    except (HTTPException, MultiPartException) as error:
        raise usage_error(
            f"the form cannot be read: {getattr(error, 'detail', None) or getattr(error, 'message', '')}"
        ) from None
    try:
        if not end.closed:
            raise usage_error("the form ends before its closing boundary; send it whole")
        fields = form.multi_items()
        for name, value in fields:
            _check_field(name, value)
        yield convert_fields(fields, kind)
    finally:
        await form.close()


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_field(name: str, value: str | UploadFile) -> None:
    """Raise HTTPError for a file in the place of a text, the reverse, and too large an image."""
    if isinstance(value, UploadFile) != (name in _FILE_FIELDS):
        expected = "a file" if name in _FILE_FIELDS else "a text, not a file,"
        raise usage_error(f"{name[:40]}: {expected} is expected")
    if isinstance(value, UploadFile) and (value.size or 0) > MAX_IMAGE_BYTES:
        raise too_large("an image", MAX_IMAGE_BYTES)


async def read_json(request: Request, kind: type[_T], seconds: float, max_bytes: int = MAX_JSON_BYTES) -> _T:
    """Read a body of JSON, of at most `max_bytes`, that must arrive within `seconds`. Raises HTTPError."""
    if _content_type(request) not in _JSON_TYPES:
        raise HTTPError(415, "content_type", "send application/json")
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    raise too_large("the body", max_bytes)
    except TimeoutError:
        raise _too_slow(seconds) from None
    try:
        fields = msgspec.json.decode(data)
        if isinstance(fields, dict):
            fields = {name: _decoded(name, value) for name, value in fields.items()}
        body = msgspec.convert(fields, kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise usage_error(_reason(error)) from None
    _reject_duplicate_keys("", data.decode())
    return body


def _decoded(name: str, value: Any) -> Any:
    """Return a field of JSON with its images, in base64, as the files of a form."""
    if name not in _FILE_FIELDS:
        return value
    images = value if isinstance(value, list) else [value]
    return [_as_file(f"{name}[{number}]", image) for number, image in enumerate(images)]


def _as_file(name: str, image: Any) -> UploadFile:
    data = decode_base64(name, image)
    return UploadFile(BytesIO(data), size=len(data))


def decode_base64(name: str, text: Any) -> bytes:
    """Return the bytes of an image in base64, or of a data URI in base64. Raises HTTPError, which names the field."""
    if not isinstance(text, str):
        raise usage_error(f"{name}: an image is expected, in base64 or as a data URI")
    if text[:8].lower().startswith(("http://", "https://")):
        raise usage_error(f"{name}: an image is not fetched from a URL; send it in base64 or as a data URI")
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise usage_error(f"{name}: a data URI of an image is data:image/jpeg;base64,... ")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise usage_error(f"{name}: this is not base64") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise too_large("an image", MAX_IMAGE_BYTES)
    return data


def convert_fields(pairs: Iterable[tuple[str, Any]], kind: type[_T]) -> _T:
    """Return the fields of a form or query string as `kind`. Raises HTTPError."""
    repeatable = {name for name, hint in get_type_hints(kind).items() if getattr(hint, "__origin__", None) is list}
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in repeatable:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise usage_error(f"{name[:40]}: given twice")
        else:
            values[name] = _decode_object(name, value) if name in _JSON_FIELDS else value
    try:
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise usage_error(_reason(error)) from None


def convert_json(value: Any, kind: type[_T], path: str) -> _T:
    """Return a part of a JSON body as `kind`; `path` says where it is in the body. Raises HTTPError."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise usage_error(f"{path}.{_reason(error)}" if "$" in str(error) else f"{path}: {_reason(error)}") from None


class _BodyEnd:
    """Passes the body of a form on and keeps its end, by which a form that was cut off is seen."""

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
        """Whether the closing boundary has come."""
        return self._closing in self._end


def _decode_object(name: str, value: str) -> Any:
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise usage_error(f'{name}: a JSON object is expected, such as {{"colour": "red"}}') from None
    _reject_duplicate_keys(f"{name}: ", value)
    return decoded


def _reject_duplicate_keys(prefix: str, text: str) -> None:
    """Raise HTTPError for JSON, decoded already, in which an object has a key twice: the last would win unseen."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        decoded = dict(pairs)
        if len(decoded) < len(pairs):
            names = [key for key, _ in pairs]
            raise usage_error(f"{prefix}{next(key for key in names if names.count(key) > 1)[:40]} is given twice")
        return decoded

    with suppress(ValueError, RecursionError):  # numbers that Python finds too long
        json.loads(text, object_pairs_hook=check)


_PLAIN_TYPES = {
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
    reason, _, path = str(error).partition(" - at `")
    field = path.removeprefix("$").removeprefix(".").removesuffix("`")
    plain = _plain_reason(reason)
    return f"{field}: {plain}" if field else plain


def _plain_reason(reason: str) -> str:
    if match := re.fullmatch(r"Expected `([^`]+)`(?: of length)?([^,]*)(?:, got `([^`]+)`)?", reason):
        expected = " or ".join(_PLAIN_TYPES.get(kind, kind) for kind in match[1].split(" | "))
        length = f" of length{match[2]}" if "of length" in reason else match[2]
        actual = f", got {_PLAIN_TYPES.get(match[3], match[3])}" if match[3] else ""
        return f"Expected {expected}{length}{actual}"
    if match := re.fullmatch(r"Object contains unknown field `([^`]*)`", reason):
        return f"there is no field {match[1][:40]}"
    if match := re.fullmatch(r"Object missing required field `([^`]*)`", reason):
        return f"the field {match[1]} is missing"
    return reason


def _too_slow(seconds: float) -> HTTPError:
    return HTTPError(408, "slow", f"the body did not arrive within {seconds:g} seconds")
