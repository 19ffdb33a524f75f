"""Access and limits of bodies: decided before a body is read."""

import base64
import errno
import os
import select
import tempfile
from unittest.mock import AsyncMock

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.server.routes import ROUTES
from nsfse_runtime.server.serve import listen
from nsfse_runtime.server.settings import Settings, load_tokens, named_galleries
from tests.serving import TOKEN, image, open_served, running

TEXT = ("texts", "make it red")
HEAD = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\n"
NAMES = {"images/{id:image}": "images/shelf00/item0001.png", "{path:path}": "page.css"}
ROUTE = [(each.method, each.path) for each in ROUTES]
for name, value in NAMES.items():
    ROUTE = [(method, path.replace(name, value)) for method, path in ROUTE]
FOREIGN = (
    *("evil.com", "127.0.0.1.evil.com", "localhost@evil.com", "localhost:80:80"),
    *("", "localhost/x", "[::2]", "0x7f.1"),
)
WRONG = ("", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", TOKEN, "Basic !!", "Bearer é")
KINDS = ("", "text/plain", "application/json", "application/x-www-form-urlencoded", "multipart/form-data2")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return open_served(tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def server(served):
    with running(served, allow_hosts=("Shop.Example",)) as server:
        yield server


@pytest.fixture(scope="module")
def private(served):
    with running(served, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize("method, path", ROUTE)
@pytest.mark.parametrize("host", FOREIGN)
def test_another_host_name_is_refused_on_every_route(server, method, path, host):
    status, reply = server.json(method, path, headers=[("Host", host)])
    assert (status, reply["error"]["type"]) == (421, "host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]", "[::1]:80", "shop.example"])
def test_its_own_host_names_are_not(server, host):
    assert server.json("GET", "/v1/info", headers=[("Host", host)])[0] == 200


def test_two_names_or_none_are_refused(server):
    two = server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\nConnection: close\r\n\r\n")
    assert two.split()[1] in (b"400", b"421")
    assert server.raw(b"GET /healthz HTTP/1.0\r\n\r\n").split()[1] == b"421"
    absolute = server.raw(b"GET http://evil.com/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert absolute.split()[1] == b"404"


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "http://localhost:3000", "http://localhost.evil.com", ""]
)
def test_another_site_does_not_write(server, origin):
    headers = [("Host", "localhost:8000"), ("Origin", origin)]
    for path in ("/v1/query", "/v1/query:batch", "/v1/images"):
        status, reply = server.json("POST", path, headers=headers)
        assert (status, reply["error"]["type"]) == (403, "origin")
    assert server.json("DELETE", "/v1/images/x.png", headers=headers)[1]["error"]["type"] == "origin"


def test_its_own_page_does(server):
    headers = [("Host", "localhost:8000"), ("Origin", "http://localhost:8000")]
    assert server.query([("reference_ids", "shelf00/item0001.png"), TEXT], headers=headers)[0] == 200


@pytest.mark.parametrize("method, path", [each for each in ROUTE if each[1] not in ("/healthz", "/readyz")])
@pytest.mark.parametrize("given", WRONG)
def test_without_the_token_nothing_is_answered(private, method, path, given):
    headers = [("Authorization", given.encode("latin-1"))] if given else []
    status, got, _ = private(method, path, headers=headers)
    assert status == 401
    assert got["www-authenticate"].startswith("Basic")


def test_the_token_opens_as_bearer_and_as_password(private):
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    for value in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}"):
        assert private.json("GET", "/v1/info", headers=[("Authorization", value)])[0] == 200
    assert private.json("GET", "/readyz")[0] == 200
    assert private.json("GET", f"/v1/info?token={TOKEN}")[0] == 401


def test_a_refusal_does_not_wait_for_the_body(private):
    head = HEAD + b"Content-Length: 20000000\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    with private.connect() as connection:
        connection.sendall(head)
        assert connection.recv(65536).split()[1] == b"401"


def test_a_body_that_is_declared_too_large_is_not_read(server):
    for length, status in ((b"21000001", b"413"), (b"99999999999999999999999", b"400")):
        with server.connect() as connection:  # the body is never sent
            connection.sendall(HEAD + b"Content-Length: %s\r\nExpect: 100-continue\r\n\r\n" % length)
            assert connection.recv(65536).split()[1] == status


def test_a_body_that_grows_too_large_is_not_read_to_its_end(server):
    head = HEAD + b"Transfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(head + b"%x\r\n" % len(part) + part + b"\r\n")
        for _ in range(26):  # the reply is to reach a client that does not look before it has sent all
            connection.sendall(chunk)
        assert connection.recv(65536).split()[1] == b"413"


def test_an_image_over_the_limit_is_refused(server, monkeypatch):
    monkeypatch.setattr("nsfse_runtime.server.parsing.MAX_IMAGE_BYTES", 1000)
    status, reply, _ = server.query([TEXT], [("reference_images", image(1, (200, 200)))])
    assert (status, reply["error"]["type"]) == (413, "too_large")


def test_a_slow_body_is_given_up(server):
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nContent-Type: %s\r\n\r\n"
    for path, kind in ((b"/v1/query", b"multipart/form-data; boundary=x"), (b"/v1/query:batch", b"application/json")):
        with server.connect() as connection:
            connection.sendall(head % (path, kind) + b"--x")
            while not select.select([connection], [], [], 0.05)[0]:
                server.advance(601)
            assert connection.recv(65536).split()[1] == b"408"


def test_a_body_with_two_lengths_is_refused(server):
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    reply = server.raw(HEAD + b"Content-Type: application/json\r\n" + both)  # it ends: the connection is closed
    assert reply.split()[1] == b"400" and b"not both" in reply


@pytest.mark.parametrize("place", ["nowhere", "full"])
def test_a_temporary_folder_that_cannot_be_written_is_507(server, tmp_path, monkeypatch, place):
    if place == "nowhere":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    else:
        error = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr("starlette.datastructures.UploadFile.write", AsyncMock(side_effect=error))
    status, reply, _ = server.query([TEXT], [("reference_images", bytes(3_000_000))])
    assert (status, reply["error"]["type"]) == (507, "storage")
    assert "temporary folder" in reply["error"]["message"] and str(tmp_path) not in reply["error"]["message"]
    assert not [line for line in server.lines if line["event"] == "bug"]


@pytest.mark.parametrize("kind", KINDS)
def test_another_content_type_is_refused(server, kind):
    expected = 400 if kind == "application/json" else 415
    assert server.json("POST", "/v1/query", b"text=red", [("Content-Type", kind)])[0] == expected
    if kind != "application/json":
        assert server.json("POST", "/v1/query:batch", b"{}", [("Content-Type", kind)])[0] == 415


def _form(body, boundary="x"):
    return body, [("Content-Type", f"multipart/form-data; boundary={boundary}")]


PART = b'--x\r\nContent-Disposition: form-data; name="texts"%s\r\n\r\nred\r\n'


@pytest.mark.parametrize(
    "body, headers",
    [
        _form(b""),
        _form(b"--x--\r\n"),
        _form(b"nonsense"),
        _form(b"--x\r\n\r\n"),
        _form(b"--x\r\nContent-Disposition: form-data\r\n\r\nred\r\n--x--\r\n"),
        _form(PART % b"" * 10_000 + b"--x--\r\n"),
        _form(PART % b'; filename="a"' * 10_000 + b"--x--\r\n"),
        _form(b'--x\r\nContent-Disposition: form-data; name="texts"\r\n\r\n' + b"r" * 2_000_000 + b"\r\n--x--\r\n"),
        _form(b"--x\r\nX-Long: " + b"y" * 2_000_000 + b"\r\n\r\nred\r\n--x--\r\n"),
        _form(b"--x\r\n" + b"A: b\r\n" * 100_000 + b"\r\nred\r\n--x--\r\n"),
        _form(b'--x\r\nContent-Disposition: form-data; name="' + b"n" * 100_000 + b'"\r\n\r\nred\r\n--x--\r\n'),
        _form(PART % b"" + b"--x--\r\n", ""),
        _form(PART % b"" + b"--x--\r\n", "y"),
        _form(b'--x\r\nContent-Disposition: form-data; name="texts"\r\n\r\n\xff\xfe\x00\r\n--x--\r\n'),
    ],
)
def test_a_malformed_form_is_refused_at_once(server, body, headers):
    status, reply = server.json("POST", "/v1/query", body, headers)
    assert 400 <= status < 500 and status != 408
    assert reply["error"]["type"] in ("usage", "text")


def test_a_form_is_given_up_where_it_has_too_much(server):
    for count, more, words in ((49, b"", "Too many fields"), (17, b'; filename="a"', "Too many files")):
        reply = server.json("POST", "/v1/query", *_form(PART % more * count + b"--x--\r\n"))[1]
        assert words in reply["error"]["message"]
    assert "maximum size" in server.query([("texts", "r" * 70_000)])[1]["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"{",
            b"null",
            b"[]",
            b'{"queries": []}',
            b"[" * 100_000,
            b'"\\ud800"',
            b"\xff",
        ),
        *(
            b'{"queries": [{"reference_ids": ["\\ud800"], "texts": ["red"]}]}',
            b'{"queries": [{"k": 1e400}]}',
            b'{"queries": NaN}',
        ),
        b'{"queries": [' + b",".join([b"{}"] * 17) + b"]}",
    ],
)
def test_malformed_json_is_refused(server, body):
    status, reply = server.json("POST", "/v1/query:batch", body, [("Content-Type", "application/json")])
    assert (status, reply["error"]["type"]) == (400, "usage")


def test_a_server_that_others_reach_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.2", "shop.example", ""):
        with pytest.raises(UsageError, match="no token"):
            listen(Settings(host=host, port=0))
    listen(Settings(host="0.0.0.0", port=0, write_tokens=(TOKEN,))).close()
    with pytest.raises(UsageError, match="15 characters"):
        listen(Settings(port=0, read_tokens=("x" * 15,)))
    with listen(Settings(port=0)) as one, pytest.raises(UsageError, match="cannot listen"):
        one.listen()
        listen(Settings(port=one.getsockname()[1]))


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NSFSE_TOKEN", "from-the-environment")
    assert load_tokens(None, "NSFSE_TOKEN") == ("from-the-environment",)
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    (tmp_path / "token").chmod(0o440)
    assert load_tokens(tmp_path / "token", "NSFSE_TOKEN") == (TOKEN,)
    for mode in (0o444, 0o666, 0o620) if os.name == "posix" else ():
        (tmp_path / "token").chmod(mode)
        with pytest.raises(UsageError, match=r"others may read or write the token in .*chmod 600"):
            load_tokens(tmp_path / "token", "NSFSE_TOKEN")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "token").write_text(f"{TOKEN}\r\n another-of-20-letters \n")
    assert load_tokens(tmp_path / "token", "NSFSE_TOKEN") == (TOKEN, "another-of-20-letters")
    (tmp_path / "token").write_text("two words")
    with pytest.raises(UsageError, match="holds no token"):
        load_tokens(tmp_path / "token", "NSFSE_TOKEN")
    with pytest.raises(NotFoundError):
        load_tokens(tmp_path / "nowhere", "NSFSE_TOKEN")
    monkeypatch.delenv("NSFSE_TOKEN")
    assert load_tokens(None, "NSFSE_TOKEN") == ()


def test_galleries_have_names(tmp_path):
    assert named_galleries(["a/shop.gallery", "old=b.gallery"]) == {"shop": "a/shop.gallery", "old": "b.gallery"}
    (tmp_path / "x=y.gallery").touch()
    with pytest.raises(UsageError, match="cannot name"):
        named_galleries([str(tmp_path / "x=y.gallery")])
    with pytest.raises(UsageError, match="two galleries are called a"):
        named_galleries(["a.gallery", "a=b.gallery"])
