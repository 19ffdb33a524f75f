"""Who may send a request: by the server's own host names, its tokens, and its own pages or those of a list."""

import base64
import binascii
import hmac
import re
from collections.abc import Collection, Sequence, Set

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Scope

from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.middleware import READ_METHODS, CheckMiddleware

MAY_WRITE = "nsfse.may_write"
# Probes of a balancer, which has no token.
HEALTH_PATHS = ("/healthz", "/readyz")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE | re.ASCII)
# A browser then prompts for the token, and sends it with the page's images as well.
_CHALLENGE = {"www-authenticate": 'Basic realm="nsfse: any name, the token as password", charset="UTF-8"'}


class TrustedHostMiddleware(CheckMiddleware):
    """Requires a Host that is one of `hosts` (in lower case), against DNS rebinding."""

    def __init__(self, app: ASGIApp, hosts: Set[str]) -> None:
        super().__init__(app)
        self._hosts = hosts

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for another host name, for several and for none."""
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or match[1].removesuffix(".").strip("[]").lower() not in self._hosts:
            raise HTTPError(421, "host", "unknown host name; start the server with --allow-host NAME")


class TokenMiddleware(CheckMiddleware):
    """Requires one of the server's tokens on every route but the health checks; without any it serves everybody.

    Whether the request may change images is noted in the scope.
    """

    def __init__(self, app: ASGIApp, write_tokens: Sequence[str], read_tokens: Sequence[str]) -> None:
        super().__init__(app)
        self._write, self._read = ([token.encode() for token in tokens] for tokens in (write_tokens, read_tokens))

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for a missing or a wrong token."""
        if not (self._write or self._read) or scope["path"] in HEALTH_PATHS:
            return
        token = _token_of(headers) or b""
        # All are compared, so that the time does not tell which one fits.
        may_write, may_read = (
            any([hmac.compare_digest(token, own) for own in tokens]) for tokens in (self._write, self._read)
        )
        scope[MAY_WRITE] = may_write
        if not (may_write or may_read):
            message = "missing or wrong token; send it as a bearer token, or as a password"
            raise HTTPError(401, "token", message, headers=_CHALLENGE)


def _token_of(headers: Headers) -> bytes | None:
    """Return the token of an Authorization header, Bearer or Basic."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            credentials = base64.b64decode(credentials, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    elif scheme.lower() != "bearer":
        return None
    return credentials.strip().encode("utf-8", "replace")


class SameOriginMiddleware(CheckMiddleware):
    """Rejects requests that pages of other sites send, but for plain reads and the sites of `allowed` (origins)."""

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()) -> None:
        super().__init__(app)
        self._allowed = allowed

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError where Origin and Host differ."""
        origin = headers.get("origin") if scope["method"] not in READ_METHODS else None
        if origin is None or origin in self._allowed:
            return
        if origin.lower().partition("://")[2] != headers["host"].lower():
            raise HTTPError(403, "origin", "cross-origin request; a proxy must pass on the Host header")
