"""Who may come in, and by which path: tokens to read and to write, CORS, a proxy's prefix, options by environment."""

import json

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.errors import UsageError
from nsfse_runtime.server.settings import Settings
from tests.serving import TOKEN, image, multipart, open_served, running

READER, SITE = "a-token-that-only-reads", "https://shop.example"
NAME = "shelf00/item0001.png"


def bearer(token):
    return [("Authorization", f"Bearer {token}")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    doors = {"write_tokens": (TOKEN, "a-second-one-to-write"), "read_tokens": (READER,), "root_path": "/find/images"}
    with running(open_served(tmp_path_factory.mktemp("doors")), allow_origins=(SITE,), **doors) as server:
        yield server


def test_a_token_that_reads_changes_nothing(server):
    path = f"/v1/images/{NAME}"
    fields = [("reference_ids", NAME), ("texts", "make it red")]
    assert server.query(fields, headers=bearer(READER))[0] == 200
    patch = [("Content-Type", "application/json"), *bearer(READER)]
    kind, form = multipart([("id", "new.png")], [("image", image(3))])
    for method, where, body, headers in (
        ("PATCH", path, b'{"metadata": {}}', patch),
        ("DELETE", path, b"", bearer(READER)),
        ("POST", "/v1/images", form, [("Content-Type", kind), *bearer(READER)]),
    ):
        status, reply = server.json(method, where, body, headers)
        assert (status, reply["error"]["type"]) == (403, "token") and "only reads" in reply["error"]["message"]
    for token, writable in ((READER, False), (TOKEN, True), ("a-second-one-to-write", True)):
        assert server.json("GET", "/v1/info", headers=bearer(token))[1]["writable"] is writable
    assert server("GET", "/v1/info", headers=bearer("another-of-20-letters"))[0] == 401
    patch[1] = bearer("a-second-one-to-write")[0]
    assert server("PATCH", path, b'{"metadata": {"colour": "green"}}', patch)[0] == 200


def test_pages_of_the_list_may_send_requests_and_read_replies(server):
    asks = [("Origin", SITE), ("Access-Control-Request-Method", "POST")]
    asks.append(("Access-Control-Request-Headers", "authorization,content-type"))
    status, headers, _ = server("OPTIONS", "/v1/query", headers=asks)
    assert (status, headers["access-control-allow-origin"]) == (200, SITE)
    assert {"PATCH", "DELETE"} <= set(headers["access-control-allow-methods"].split(", "))
    fields = [("reference_ids", NAME), ("texts", "make it red")]
    status, _, headers = server.query(fields, headers=[("Origin", SITE), *bearer(READER)])
    assert (status, headers["access-control-allow-origin"]) == (200, SITE)
    status, _, headers = server.query(fields, headers=[("Origin", SITE)])  # errors can be read, too
    assert (status, headers["access-control-allow-origin"]) == (401, SITE)
    for other in ("https://evil.example", f"{SITE}.evil.example", "null"):
        assert server("OPTIONS", "/v1/query", headers=[("Origin", other), *asks[1:]])[0] == 400
        status, reply, headers = server.query(fields, headers=[("Origin", other), *bearer(READER)])
        assert (status, reply["error"]["type"]) == (403, "origin")
        assert "access-control-allow-origin" not in headers


def test_a_prefix_is_taken_off_by_the_proxy_or_the_server(server):
    for prefix in ("", "/find/images"):
        assert server("GET", f"{prefix}/readyz")[0] == 200
        assert b"<html" in server("GET", f"{prefix}/", headers=bearer(READER))[2]
        for page in ("docs", "assets/docs.js", f"v1/images/{NAME}"):
            assert server("GET", f"{prefix}/{page}", headers=bearer(READER))[0] == 200
    status, headers, _ = server("GET", "/find/images", headers=bearer(READER))
    assert (status, headers["location"]) == (307, "/find/images/")
    assert server("GET", "/find/imagesx/readyz", headers=bearer(READER))[0] == 404
    described = server.json("GET", "/openapi.json", headers=bearer(READER))[1]
    assert described["servers"] == [{"url": "/find/images"}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"write_tokens": (TOKEN,), "read_tokens": (TOKEN,)}, "the same token"),
        ({"allow_origins": ("https://shop.example/",)}, "is no origin"),
        ({"allow_origins": ("*",)}, "is no origin"),
        ({"root_path": "images"}, "is no prefix"),
        ({"root_path": "/a//b"}, "is no prefix"),
    ],
)
def test_settings_out_of_form(settings, words):
    with pytest.raises(UsageError, match=words):
        Settings(**settings).check()


def test_every_option_comes_from_the_environment(monkeypatch, tmp_path, capsys):
    import nsfse.open
    from nsfse.cli import app

    seen = []

    def stop(galleries, bundle, device, settings):
        seen.append((galleries, bundle, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(nsfse.open, "open_services", stop)
    (tmp_path / "token").write_text(READER)
    (tmp_path / "token").chmod(0o600)
    values = {"GALLERY": "a.gallery b=c.gallery", "PORT": "0", "READ_TOKEN_FILE": str(tmp_path / "token"), "QUEUE": "7"}
    values |= {"ALLOW_ORIGIN": f"{SITE} http://localhost:3000", "ROOT_PATH": "/images/", "BUNDLE": "b"}
    for name, value in values.items():
        monkeypatch.setenv(f"NSFSE_SERVE_{name}", value)
    with pytest.raises(SystemExit) as stopped:
        app.main(["serve", "--queue", "9"])  # an option is stronger
    assert stopped.value.code == 130 and capsys.readouterr().out == ""
    [(galleries, bundle, settings)] = seen
    assert (galleries, str(bundle), settings.queue, settings.root_path) == (
        ["a.gallery", "b=c.gallery"],
        "b",
        9,
        "/images",
    )
    assert settings.read_tokens == (READER,) and settings.allow_origins == (SITE, "http://localhost:3000")


def test_the_description_is_a_page_of_this_server_alone(server):
    status, headers, body = server("GET", "/docs", headers=bearer(READER))
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert b"http" not in body.replace(b"HTTP API", b"")
    operations = server.json("GET", "/openapi.json", headers=bearer(READER))[1]
    assert json.dumps(operations).count('"operationId"') > 14
