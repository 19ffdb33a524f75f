"""The table of routes, from which the router and /openapi.json are made."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nsfse_runtime.server import handlers, schemas
from nsfse_runtime.server.embeddings import embeddings
from nsfse_runtime.server.services import Services
from nsfse_runtime.server.telemetry import request_log

Handler = Callable[[Services, Request], Awaitable[Response]]
_BODY = {
    403: "cross-origin request",
    408: "the body was too slow",
    413: "too large",
    415: "unsupported content type or encoding",
    507: "the server has no space for the body",
}
_QUEUED = {**_BODY, 429: "too many queries of one address", 503: "overloaded, no answer in time, or damaged"}
_NO_FILE = {404: "no such file"}
_NO_GALLERY = {404: "no such gallery"}
_UNREADABLE = {404: "no such gallery or image", 422: "an image or a text that cannot be read"}
QUERY_PATHS = ("/v1/query", "/v1/query:batch", "/v1/embeddings")


class _ImageConvertor(Convertor[str]):
    """An id in a path, of any characters: a file's name may hold a line end."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("image", _ImageConvertor())


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    `body`, `params` and `response` are the types of what comes and goes, `response` a media type where it is not
    JSON; a body may be of any of its `media_types`. `errors` has the reason for each status that is not everywhere.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[msgspec.Struct] | None = None
    media_types: tuple[str, ...] = ("multipart/form-data", "application/json")
    params: type[msgspec.Struct] | None = None
    response: type[msgspec.Struct] | str = "application/json"
    statuses: tuple[int, ...] = (200,)
    errors: dict[int, str] = {}

    @property
    def public_path(self) -> str:
        """The path as in OpenAPI and in the log."""
        return self.path.replace(":path}", "}").replace(":image}", "}")


def _get(path: str, handler: Handler, summary: str, **rest: Any) -> Operation:
    return Operation(method="GET", path=path, handler=handler, summary=summary, **rest)


_IMAGE: dict[str, Any] = {
    "params": schemas.GalleryForm,
    "response": "image/jpeg",
    "statuses": (200, 304),
    "errors": _UNREADABLE,
}
ROUTES = (
    Operation(
        method="POST",
        path="/v1/query",
        handler=handlers.query,
        summary="Find images like these, changed as the texts say",
        body=schemas.QueryForm,
        response=schemas.QueryReply,
        errors={**_QUEUED, **_UNREADABLE},
    ),
    Operation(
        method="POST",
        path="/v1/query:batch",
        handler=handlers.query_batch,
        summary="Answer several queries by ids of a gallery",
        body=schemas.BatchForm,
        media_types=("application/json",),
        response=schemas.BatchReply,
        errors={**_QUEUED, **_NO_GALLERY},
    ),
    Operation(
        method="POST",
        path="/v1/embeddings",
        handler=embeddings,
        summary="Get the vectors of images, texts and queries",
        body=schemas.EmbeddingForm,
        media_types=("application/json",),
        response=schemas.EmbeddingReply,
        errors={**_QUEUED, **_UNREADABLE},
    ),
    _get(
        "/v1/images",
        handlers.list_images,
        "List images",
        params=schemas.ListForm,
        response=schemas.ListReply,
        errors=_NO_GALLERY,
    ),
    Operation(
        method="POST",
        path="/v1/images",
        handler=handlers.post_image,
        summary="Add an image to a gallery and its folder",
        body=schemas.ImageForm,
        response=schemas.ChangeReply,
        statuses=(201, 200),
        errors={**_BODY, **_UNREADABLE, 503: "another writer", 409: "another image has the name"},
    ),
    _get("/v1/images/{id:image}/thumbnail", handlers.get_thumbnail, "Get a small image", **_IMAGE),
    _get("/v1/images/{id:image}", handlers.get_image, "Get an image", **_IMAGE),
    Operation(
        method="PATCH",
        path="/v1/images/{id:image}",
        handler=handlers.patch_image,
        summary="Change the metadata of an image",
        body=schemas.ImagePatch,
        media_types=("application/merge-patch+json", "application/json"),
        params=schemas.GalleryForm,
        response=schemas.PatchReply,
        errors={**_BODY, **_UNREADABLE, 403: "no right to write, or cross-origin request", 503: "another writer"},
    ),
    Operation(
        method="DELETE",
        path="/v1/images/{id:image}",
        handler=handlers.remove_image,
        summary="Delete an image and its file",
        params=schemas.GalleryForm,
        response=schemas.ChangeReply,
        errors={**_UNREADABLE, 403: "this server has no token, or cross-origin request", 503: "another writer"},
    ),
    _get("/v1/info", handlers.info, "Describe what is served", response=schemas.InfoReply),
    _get("/healthz", handlers.healthz, "Whether the process lives", response=schemas.Status),
    _get(
        "/readyz",
        handlers.readyz,
        "Whether queries are answered",
        response=schemas.Status,
        errors={503: "starting or stopping, or a query of the server's own fails"},
    ),
    _get("/metrics", handlers.metrics, "Metrics in Prometheus's text format", response="text/plain"),
    _get("/openapi.json", handlers.openapi, "This description"),
    _get("/docs", handlers.docs, "This description as a page", response="text/html", errors=_NO_FILE),
    _get("/", handlers.page, "The page", response="text/html", errors={404: "this installation has no page"}),
    _get(
        "/assets/{path:path}",
        handlers.page_file,
        "A file of the page",
        response="*/*",
        statuses=(200, 304),
        errors=_NO_FILE,
    ),
)


def build_routes(services: Services) -> list[Route]:
    """Return one route a path, for all of its methods: the reply to another method then lists them all."""
    paths = dict.fromkeys(operation.path for operation in ROUTES)
    return [_route([operation for operation in ROUTES if operation.path == path], services) for path in paths]


def _route(operations: Sequence[Operation], services: Services) -> Route:
    by_method = {operation.method: operation.handler for operation in operations}

    async def endpoint(request: Request) -> Response:
        request_log(request).route = operations[0].public_path
        return await by_method["GET" if request.method == "HEAD" else request.method](services, request)

    return Route(operations[0].path, endpoint, methods=[*by_method])
