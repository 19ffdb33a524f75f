"""The routes as a table, from which both the router and /openapi.json are made: what is told is what is done."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nsfse_runtime.server import schemas as m
from nsfse_runtime.server.errors import ErrorReply
from nsfse_runtime.server.settings import BODY_BYTES

Handler = Callable[[Request], Awaitable[Response]]
_ANY = {400: "not in its form", 401: "the token is missing or wrong", 421: "not a name of this server"}
_BODY = {403: "another site asks", 408: "the body was too slow", 413: "too large", 415: "another content type"}
_QUEUED = {**_BODY, 429: "too many queries of one address", 503: "too many queries, or no answer in time"}
_NO_FILE = {404: "no such file"}
_NO_GALLERY = {404: "no such gallery"}
_UNREADABLE = {404: "no such gallery or image", 422: "an image or a text that cannot be read"}


class _ImageConvertor(Convertor[str]):
    """An id in a path, whatever it is made of: a file's name may hold a line end."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("image", _ImageConvertor())


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route: the method of Service that `does` it, what it takes and gives; `fails` says when, by status."""

    method: str
    path: str
    does: str
    summary: str
    body: type[msgspec.Struct] | None = None
    media: str = "multipart/form-data"
    params: type[msgspec.Struct] | None = None
    gives: type[msgspec.Struct] | str = "application/json"
    statuses: tuple[int, ...] = (200,)
    fails: dict[int, str] = {}

    @property
    def told(self) -> str:
        """Return the path as OpenAPI and the log have it."""
        return self.path.replace(":path}", "}").replace(":image}", "}")


def _get(path: str, does: str, summary: str, **rest: Any) -> Operation:
    return Operation(method="GET", path=path, does=does, summary=summary, **rest)


_NAMED: dict[str, Any] = {"params": m.GalleryForm, "fails": _UNREADABLE}
_JPEG: dict[str, Any] = {**_NAMED, "gives": "image/jpeg", "statuses": (200, 304)}
ROUTES = (
    Operation(
        method="POST",
        path="/v1/query",
        does="query",
        summary="Find images: like these, but as the texts say",
        body=m.QueryForm,
        gives=m.QueryReply,
        fails={**_QUEUED, **_UNREADABLE},
    ),
    Operation(
        method="POST",
        path="/v1/query:batch",
        does="query_batch",
        summary="Answer several queries by ids of a gallery",
        body=m.BatchForm,
        media="application/json",
        gives=m.BatchReply,
        fails={**_QUEUED, **_NO_GALLERY},
    ),
    _get(
        "/v1/images",
        "list_images",
        "List images",
        params=m.ListForm,
        gives=m.ListReply,
        fails=_NO_GALLERY,
    ),
    Operation(
        method="POST",
        path="/v1/images",
        does="add_image",
        summary="Take an image into a gallery and its folder",
        body=m.ImageForm,
        gives=m.ChangeReply,
        statuses=(201, 200),
        fails={**_BODY, **_UNREADABLE, 503: "another writer", 409: "the name is taken by another image"},
    ),
    _get("/v1/images/{id:image}/thumbnail", "thumbnail", "Show an image, small", **_JPEG),
    _get("/v1/images/{id:image}", "image", "Show an image", **_JPEG),
    Operation(
        method="DELETE",
        path="/v1/images/{id:image}",
        does="remove_image",
        summary="Delete an image and its file",
        params=m.GalleryForm,
        gives=m.ChangeReply,
        fails={**_UNREADABLE, 403: "this server has no token, or another site asks", 503: "another writer"},
    ),
    _get("/v1/info", "info", "Tell what is served", gives=m.InfoReply),
    _get("/healthz", "healthz", "Tell that the process lives", gives=m.State),
    _get(
        "/readyz", "readyz", "Tell whether queries are answered", gives=m.State, fails={503: "not yet, or not any more"}
    ),
    _get("/metrics", "metrics_page", "Metrics in Prometheus's text form", gives="text/plain"),
    _get("/openapi.json", "openapi_page", "This description"),
    _get("/", "page", "The page", gives="text/html", fails={404: "this installation has no page"}),
    _get(
        "/assets/{path:path}",
        "page",
        "A file of the page",
        gives="*/*",
        statuses=(200, 304),
        fails=_NO_FILE,
    ),
)


def routes(handler_of: Callable[[Operation], Handler]) -> list[Route]:
    """Return one route a path, for all of its methods: a method that is none of them is then told all that are."""
    paths = list(dict.fromkeys(each.path for each in ROUTES))
    return [_route([each for each in ROUTES if each.path == path], handler_of) for path in paths]


def _route(operations: Sequence[Operation], handler_of: Callable[[Operation], Handler]) -> Route:
    handlers = {each.method: handler_of(each) for each in operations}

    async def endpoint(request: Request) -> Response:
        request.scope["nsfse"].route = operations[0].told
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(operations[0].path, endpoint, methods=[*handlers])


def openapi(version: str) -> dict[str, Any]:
    """Return the description of ROUTES in OpenAPI 3.1, its schemas made from the types that requests are checked by."""
    kinds = [kind for each in ROUTES for kind in (each.body, each.gives) if isinstance(kind, type)]
    _, schemas = msgspec.json.schema_components(
        [*kinds, m.BatchQuery, m.FailedQuery, ErrorReply], ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for each in ROUTES:
        paths.setdefault(each.told, {})[each.method.lower()] = _described(each)
    security = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    about = (
        f"A body has at most {BODY_BYTES} bytes. A server with a token asks for it everywhere but /healthz, /readyz."
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "nsfse", "version": version, "description": about},
        "security": [{}, {"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": security},
    }


def _described(each: Operation) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref(each.gives)}} if isinstance(each.gives, type) else {each.gives: {}}
    good = {str(status): {"description": _GOOD[status], "content": content} for status in each.statuses}
    if 304 in each.statuses:
        good["304"].pop("content")
    failed = {"application/json": {"schema": _ref(ErrorReply)}}
    bad = {
        str(status): {"description": why, "content": failed} for status, why in sorted({**_ANY, **each.fails}.items())
    }
    found: dict[str, Any] = {"operationId": each.does, "summary": each.summary, "responses": {**good, **bad}}
    if each.body is not None:
        found["requestBody"] = {"required": True, "content": {each.media: {"schema": _ref(each.body)}}}
    if parameters := _parameters(each):
        found["parameters"] = parameters
    return found


_GOOD = {200: "done", 201: "added", 304: "what the client has is still right"}


def _parameters(each: Operation) -> list[dict[str, Any]]:
    names = [part.partition(":")[0].strip("{}") for part in each.path.split("/") if part.startswith("{")]
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if each.params is not None:
        (_,), schemas = msgspec.json.schema_components([each.params])
        for name, schema in schemas[each.params.__name__]["properties"].items():
            # An object in a query string travels as JSON.
            form = (
                {"content": {"application/json": {"schema": schema}}}
                if schema.get("type") == "object"
                else {"schema": schema}
            )
            found.append({"name": name, "in": "query", "required": False, **form})
    return found


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
