"""The description of the routes in OpenAPI 3.1, made from the types that requests are checked by.

msgspec makes the schemas; what is left is too little to be worth a framework.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from nsfse_runtime.server import schemas
from nsfse_runtime.server.errors import ErrorReply
from nsfse_runtime.server.routes import Operation
from nsfse_runtime.server.settings import MAX_BODY_BYTES

_SUCCESS = {200: "done", 201: "added", 304: "what the client has is still right"}
_ANY_ROUTE = {400: "malformed request", 401: "missing or wrong token", 421: "unknown host name"}


def describe(operations: Sequence[Operation], version: str, root_path: str = "") -> dict[str, Any]:
    """Return the OpenAPI document of `operations`, which a proxy serves under `root_path`."""
    types = [
        kind for operation in operations for kind in (operation.body, operation.response) if isinstance(kind, type)
    ]
    _, components = msgspec.json.schema_components(
        [*types, schemas.BatchQuery, schemas.EmbeddingInput, schemas.FailedQuery, ErrorReply],
        ref_template=f"{schemas.COMPONENTS}{{name}}",
    )
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.public_path, {})[operation.method.lower()] = _describe_operation(operation)
    security = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    about = f"A body has at most {MAX_BODY_BYTES} bytes. A token is required everywhere but for /healthz and /readyz."
    return {
        "openapi": "3.1.0",
        "info": {"title": "nsfse", "version": version, "description": about},
        "servers": [{"url": root_path or "/"}],
        "security": [{"bearer": []}, {"basic": []}, {}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
    }


def _describe_operation(operation: Operation) -> dict[str, Any]:
    description: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "responses": {**_successes(operation), **_errors(operation)},
    }
    if operation.body is not None:
        content = {kind: {"schema": _reference(operation.body)} for kind in operation.media_types}
        description["requestBody"] = {"required": True, "content": content}
    if parameters := [*_path_parameters(operation), *_query_parameters(operation)]:
        description["parameters"] = parameters
    return description


def _successes(operation: Operation) -> dict[str, Any]:
    response = operation.response
    content = {response: {}} if isinstance(response, str) else {"application/json": {"schema": _reference(response)}}
    return {
        str(status): {"description": _SUCCESS[status], **({} if status == 304 else {"content": content})}
        for status in operation.statuses
    }


def _errors(operation: Operation) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(ErrorReply)}}
    reasons = sorted({**_ANY_ROUTE, **operation.errors}.items())
    return {str(status): {"description": reason, "content": content} for status, reason in reasons}


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part.strip("{}") for part in operation.public_path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    if operation.params is None:
        return []
    _, components = msgspec.json.schema_components([operation.params])
    parameters = []
    for name, schema in components[operation.params.__name__]["properties"].items():
        # An object in a query string travels as JSON.
        is_object = schema.get("type") == "object"
        form = {"content": {"application/json": {"schema": schema}}} if is_object else {"schema": schema}
        parameters.append({"name": name, "in": "query", "required": False, **form})
    return parameters


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": f"{schemas.COMPONENTS}{kind.__name__}"}
