"""The ASGI application. A request passes the middleware from top to bottom, then its route, then its handler."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from nsfse_runtime.server import access, connections, load_shedding, middleware
from nsfse_runtime.server.errors import exception_handlers
from nsfse_runtime.server.openapi import describe
from nsfse_runtime.server.routes import QUERY_PATHS, ROUTES, build_routes
from nsfse_runtime.server.services import Services
from nsfse_runtime.server.settings import MAX_BODY_BYTES, MAX_CONCURRENT_REQUESTS, MIN_BODY_RATE
from nsfse_runtime.server.tracing import TracingMiddleware


def build_app(services: Services) -> Starlette:
    """Return the application that serves `services`."""
    settings, log, metrics = services.settings, services.log, services.metrics
    handlers = exception_handlers(log, services.redact)
    layers = [
        Middleware(connections.HeadTimeoutMiddleware),
        Middleware(middleware.RequestIdMiddleware),
        *([Middleware(TracingMiddleware, services.tracing)] if services.tracing else []),
        Middleware(middleware.AccessLogMiddleware, log, metrics, services.clock),
        Middleware(middleware.SecurityHeadersMiddleware),
        Middleware(middleware.DrainBodyMiddleware),
        *([Middleware(middleware.PrefixMiddleware, settings.root_path)] if settings.root_path else []),
        # Outside of the checks: a browser asks before it sends a token, and reads errors, too.
        *([Middleware(CORSMiddleware, **_cors(settings.allow_origins))] if settings.allow_origins else []),
        # Starlette puts one around the routes alone; this one is for what the middleware below raises, and for bugs.
        Middleware(ExceptionMiddleware, handlers),
        Middleware(access.TrustedHostMiddleware, settings.hosts),
        Middleware(access.TokenMiddleware, settings.write_tokens, settings.read_tokens),
        Middleware(access.SameOriginMiddleware, settings.allow_origins),
        Middleware(middleware.FramingMiddleware),
        Middleware(middleware.BodyLimitMiddleware, MAX_BODY_BYTES),
        Middleware(middleware.BodySpeedMiddleware, MIN_BODY_RATE, settings.body_grace),
        Middleware(middleware.PlainBodyMiddleware),
        *([Middleware(load_shedding.ClientLimitMiddleware, metrics)] if settings.per_client else []),
        Middleware(load_shedding.ConcurrencyLimitMiddleware, MAX_CONCURRENT_REQUESTS, metrics),
        Middleware(load_shedding.LoadSheddingMiddleware, services.queue, QUERY_PATHS),
    ]

    def lifespan(_: Starlette) -> AbstractAsyncContextManager[None]:
        return services.running()

    app = Starlette(routes=build_routes(services), middleware=layers, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.openapi = msgspec.json.encode(describe(ROUTES, services.version, settings.root_path))
    return app


def _cors(origins: Sequence[str]) -> dict[str, Any]:
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "POST", "PATCH", "DELETE"),
        "allow_headers": ("Authorization", "Content-Type", "If-None-Match", "X-Request-Id"),
        "expose_headers": ("ETag", "Retry-After", "Server-Timing", "X-Request-Id"),
    }
