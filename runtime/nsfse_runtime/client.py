"""A client of `nsfse serve`: queries, vectors and images, from a thread (Client) or an event loop (AsyncClient).

It needs no package beyond the runtime's own. Requests are sent one a connection, so a client may be shared by threads.
"""

import asyncio
import base64
import http.client
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import numpy as np

from nsfse_runtime.errors import NotFoundError, NsfseError, UsageError
from nsfse_runtime.types import Floats

T = TypeVar("T")
ImageData = bytes | os.PathLike[str]
"""An image: the bytes of its file, or the file."""
Embeddable = str | ImageData | tuple[ImageData, str]
"""What has a vector: a text, an image, or an image and a text as one query."""
_MOST_INPUTS = 32


class ServerError(NsfseError):
    """A request that the server did not answer as wished: its `status`, `error_type` and `request_id`."""

    def __init__(
        self,
        message: str,
        status: int = 0,
        error_type: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.error_type, self.request_id, self.retry_after = status, error_type, request_id, retry_after


class RequestError(ServerError):
    """The request cannot be answered as it is: a field, a text or an image of it."""


class AccessError(ServerError):
    """The token is missing, wrong, or only reads."""


class MissingError(ServerError, NotFoundError):
    """There is no such image, gallery or route."""


class BusyError(ServerError):
    """The server is overloaded or not ready; `retry_after` is in seconds."""


class UnreachableError(ServerError):
    """There is no server at the address, or its reply did not come in time."""


class Word(msgspec.Struct):
    """The evidence of a word in a hit; see WordEvidence."""

    word: str
    matched: bool | None = None
    weight: float = 0.0


class Hit(msgspec.Struct):
    """A hit; `is_match` and `confidence` are None where the model or the query has none."""

    id: str
    score: float
    is_match: bool | None
    confidence: float | None
    metadata: dict[str, str]
    evidence: list[Word]
    duplicates: list[str] = []


class Found(msgspec.Struct):
    """The answer to a query: hits, best first, and how many images the filter left."""

    hits: list[Hit]
    total: int
    has_match: bool | None
    notes: list[str]
    timings_ms: dict[str, float]
    gallery: str
    request_id: str


class Image(msgspec.Struct):
    """An image of a gallery."""

    id: str
    metadata: dict[str, str]


class Listed(msgspec.Struct):
    """Some images of a gallery, of `total` that the filter leaves."""

    images: list[Image]
    total: int


class Changed(msgspec.Struct):
    """What was done to an image: `added`, `updated`, `removed` or `unchanged`; a patch gives its metadata."""

    id: str
    change: str
    metadata: dict[str, str] = {}


class _Vector(msgspec.Struct):
    embedding: str


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class QueryFields(TypedDict, total=False):
    """The fields of a query, as in docs/http.md; images are bytes or files."""

    texts: Sequence[str]
    negative_texts: Sequence[str]
    reference_images: Sequence[ImageData]
    reference_ids: Sequence[str]
    negative_images: Sequence[ImageData]
    negative_ids: Sequence[str]
    k: int
    offset: int
    where: Mapping[str, Any]
    rerank: int
    balance: float
    min_confidence: float
    fields: Sequence[str]
    group_by: str
    fold_duplicates: float
    text_weights: Sequence[float]
    negative_text_weights: Sequence[float]
    gallery: str


class Client:
    """A client that waits for each reply.

    Every method may raise a ServerError: RequestError, AccessError, MissingError, BusyError or UnreachableError.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0) -> None:
        """Talk to the server at `url`.

        Args:
            url: Its address, with the prefix of a proxy if there is one: https://shop.example/images.
            token: One of the server's tokens.
            timeout: Seconds to wait for a reply.

        Raises:
            UsageError: `url` is no address.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{url!r} is no address of a server; write it as http://127.0.0.1:8000")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._prefix, self._timeout = parts.netloc, parts.path.rstrip("/"), timeout
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token is not None else {}
        )

    def query(self, **fields: Unpack[QueryFields]) -> Found:
        """Find images."""
        body: dict[str, Any] = dict(fields)
        for name in ("reference_images", "negative_images"):
            if name in body:
                body[name] = [_encoded(image) for image in body[name]]
        return self._call("POST", "/v1/query", Found, body)

    def embed(self, inputs: Sequence[Embeddable], gallery: str | None = None) -> Floats:
        """Return a vector [N, d] of each of N texts, images, and images with texts: those of stage 1."""
        rows = []
        for start in range(0, len(inputs), _MOST_INPUTS):
            part = [_input(each) for each in inputs[start : start + _MOST_INPUTS]]
            body = {"input": part, "model": gallery, "encoding_format": "base64"}
            reply = self._call("POST", "/v1/embeddings", _Vectors, body)
            rows += [np.frombuffer(base64.b64decode(each.embedding), "<f4") for each in reply.data]
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def put_image(
        self, name: str, image: ImageData, metadata: Mapping[str, Any] | None = None, gallery: str | None = None
    ) -> Changed:
        """Add an image under a name, or set metadata of the one that has it."""
        body = {"id": name, "image": _encoded(image), "metadata": metadata or {}, "gallery": gallery}
        return self._call("POST", "/v1/images", Changed, body)

    def patch_image(self, name: str, metadata: Mapping[str, Any] | None, gallery: str | None = None) -> Changed:
        """Set columns of an image's metadata; None as a value removes one, None as a whole all of them."""
        return self._call("PATCH", _path(name, gallery=gallery), Changed, {"metadata": metadata})

    def delete_image(self, name: str, gallery: str | None = None) -> Changed:
        """Delete an image and its file."""
        return self._call("DELETE", _path(name, gallery=gallery), Changed)

    def images(
        self, where: Mapping[str, Any] | None = None, offset: int = 0, limit: int = 50, gallery: str | None = None
    ) -> Listed:
        """List images that fit a filter, by their ids."""
        filtered = msgspec.json.encode(where or {}).decode()
        return self._call("GET", _path(gallery=gallery, where=filtered, offset=offset, limit=limit), Listed)

    def image(self, name: str, thumbnail: bool = False, gallery: str | None = None) -> bytes:
        """Return an image as a JPEG of at most 1024 pixels, or 256."""
        return self._send("GET", _path(name, "/thumbnail" if thumbnail else "", gallery=gallery))

    def info(self) -> dict[str, Any]:
        """Return what the server says of itself (docs/http.md)."""
        return self._call("GET", "/v1/info", dict[str, Any])

    def _call(self, method: str, path: str, kind: type[T], body: Mapping[str, Any] | None = None) -> T:
        data = None if body is None else msgspec.json.encode({k: v for k, v in body.items() if _is_sent(k, v)})
        return msgspec.json.decode(self._send(method, path, data), type=kind)

    def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = self._connection(self._host, timeout=self._timeout)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a body that is refused need not be read whole
                connection.request(method, self._prefix + path, body, self._headers)
            reply = connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise UnreachableError(f"no reply from {self._host}: {reason}; is nsfse serve running there?") from error
        finally:
            connection.close()
        if reply.status >= 400:
            raise _error(reply.status, data, reply.headers.get("Retry-After"))
        return data


class AsyncClient:
    """The methods of Client for an event loop; each request has a thread of its own meanwhile."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0) -> None:
        """As Client."""
        self._client = Client(url, token, timeout)

    async def query(self, **fields: Unpack[QueryFields]) -> Found:
        """See Client.query."""
        return await asyncio.to_thread(lambda: self._client.query(**fields))

    async def embed(self, inputs: Sequence[Embeddable], gallery: str | None = None) -> Floats:
        """See Client.embed."""
        return await asyncio.to_thread(self._client.embed, inputs, gallery)

    async def put_image(
        self, name: str, image: ImageData, metadata: Mapping[str, Any] | None = None, gallery: str | None = None
    ) -> Changed:
        """See Client.put_image."""
        return await asyncio.to_thread(self._client.put_image, name, image, metadata, gallery)

    async def patch_image(self, name: str, metadata: Mapping[str, Any] | None, gallery: str | None = None) -> Changed:
        """See Client.patch_image."""
        return await asyncio.to_thread(self._client.patch_image, name, metadata, gallery)

    async def delete_image(self, name: str, gallery: str | None = None) -> Changed:
        """See Client.delete_image."""
        return await asyncio.to_thread(self._client.delete_image, name, gallery)

    async def images(
        self, where: Mapping[str, Any] | None = None, offset: int = 0, limit: int = 50, gallery: str | None = None
    ) -> Listed:
        """See Client.images."""
        return await asyncio.to_thread(self._client.images, where, offset, limit, gallery)

    async def image(self, name: str, thumbnail: bool = False, gallery: str | None = None) -> bytes:
        """See Client.image."""
        return await asyncio.to_thread(self._client.image, name, thumbnail, gallery)

    async def info(self) -> dict[str, Any]:
        """See Client.info."""
        return await asyncio.to_thread(self._client.info)


def _is_sent(name: str, value: object) -> bool:
    """Return whether a field is sent: null means something in a patch alone."""
    return value is not None or name == "metadata"


def _path(name: str | None = None, suffix: str = "", **fields: object) -> str:
    given = {key: value for key, value in fields.items() if value is not None}
    path = "/v1/images" if name is None else f"/v1/images/{quote(name, safe='/')}{suffix}"
    return f"{path}?{urlencode(given)}" if given else path


def _encoded(image: ImageData) -> str:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode()


def _input(each: Embeddable) -> dict[str, str]:
    if isinstance(each, str):
        return {"text": each}
    image, text = each if isinstance(each, tuple) else (each, None)
    return {"image": _encoded(image)} | ({} if text is None else {"text": text})


def _error(status: int, data: bytes, retry_after: str | None) -> ServerError:
    """Return the error of a reply, also of one that a proxy made."""
    try:
        about = msgspec.json.decode(data, type=dict[str, dict[str, str]])["error"]
    except (msgspec.DecodeError, KeyError, UnicodeError):
        about = {}
    kind = {401: AccessError, 403: AccessError, 404: MissingError, 429: BusyError, 503: BusyError}.get(status)
    if kind is None:
        kind = RequestError if status < 500 else ServerError
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    message = about.get("message", f"the server, or a proxy before it, replied {status}")
    return kind(message, status, about.get("type", ""), about.get("request_id", ""), seconds)
