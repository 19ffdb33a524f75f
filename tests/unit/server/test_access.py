"""Properties of the access checks: any header at all is accepted or refused, and accepted only for a reason."""

import base64

import pytest

pytest.importorskip("starlette")
pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from nsfse_runtime.server.access import SameOriginMiddleware, TokenMiddleware, TrustedHostMiddleware
from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.settings import Settings
from tests.serving import TOKEN

HEADER = st.text(st.characters(max_codepoint=255))
HOSTS = Settings(allow_hosts=("shop.example",)).hosts
SPELLINGS = ("localhost", "[::1]", "::1", "shop.example", "Shop.Example", "127.0.0.1", "evil.com", "")
ENDINGS = ("", ".", ":80", ".:80", ":", ":x", "@", ".evil.com")
repeatable = settings(derandomize=True, deadline=None)


def accepts(check, scope=(), **headers):
    """Return whether `check` accepts a request; any error but HTTPError is a bug."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    try:
        check.check({"method": "POST", "path": "/v1/query", **dict(scope)}, Headers(raw=raw))
    except HTTPError as error:
        assert error.status in (401, 403, 421)
        return False
    return True


@repeatable
@given(HEADER | st.sampled_from(SPELLINGS), HEADER | st.sampled_from(ENDINGS))
def test_a_host_is_accepted_by_its_name_alone(name, ending):
    host = (name + ending).lower()
    if accepts(TrustedHostMiddleware(None, HOSTS), host=host):
        has_port = ":" in host.rpartition("]")[2]
        name, _, port = host.rpartition(":") if has_port else (host, "", "0")
        assert name.removesuffix(".").strip("[]") in HOSTS and port.isdigit()


@repeatable
@given(HEADER | st.sampled_from(("Bearer ", "Basic ", "bearer", f"Bearer {TOKEN}", TOKEN)), HEADER)
def test_only_the_token_is_accepted(scheme, rest):
    value = scheme + rest
    if accepts(TokenMiddleware(None, (TOKEN,), ()), authorization=value):
        assert value.partition(" ")[2].strip() == TOKEN


@repeatable
@given(HEADER)
def test_a_password_is_compared_whole(password):
    basic = base64.b64encode(f"anyone:{password}".encode("latin-1")).decode()
    assert not accepts(TokenMiddleware(None, (TOKEN,), ()), authorization=f"Basic {basic}")
    assert accepts(TokenMiddleware(None, (TOKEN,), ()), {"path": "/healthz"})
    assert accepts(TokenMiddleware(None, (), ()), authorization=password)


@repeatable
@given(HEADER, st.sampled_from(("GET", "HEAD", "POST", "DELETE")))
def test_an_origin_is_the_host_itself(origin, method):
    accepted = accepts(SameOriginMiddleware(None), {"method": method}, host="localhost:8000", origin=origin)
    assert accepted == (method in ("GET", "HEAD") or origin.lower().partition("://")[2] == "localhost:8000")
