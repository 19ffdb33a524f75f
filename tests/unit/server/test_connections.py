"""Connections: bounded in number, in the time of a head, and in what is no HTTP."""

import json
from contextlib import ExitStack
from http.client import HTTPResponse

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.errors import UsageError
from nsfse_runtime.server import connections
from nsfse_runtime.server.serve import listen
from nsfse_runtime.server.settings import Settings
from tests.serving import open_served, running, wait_until


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return open_served(tmp_path_factory.mktemp("connections"))


def test_a_head_that_never_ends_is_closed(served, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600.0)
    received, receive = [], connections.Connection.data_received
    monkeypatch.setattr(connections.Connection, "data_received", lambda *args: (receive(*args), received.append(args)))
    begun = [b"GET /healthz HTTP/1.1\r\nHost: loc", b"", b"GET /hea"]
    with running(served) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in begun]
        clients[2].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reply = b""
        while b"alive" not in reply:
            reply += clients[2].recv(65536)
        for client, head in zip(clients, begun, strict=True):
            client.sendall(head)
        wait_until(lambda: {data for _, data in received} >= {begun[0], begun[2]} and server.open_connections == 3)
        server.advance(599)
        assert server.open_connections == 3
        server.advance(2)
        assert [rest(client) for client in clients] == [b"", b"", b""]


def rest(connection):
    """Return what still comes on a connection until it is closed, or what closes it."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def test_one_connection_too_many_is_closed(served, monkeypatch):
    with running(served) as server:
        monkeypatch.setattr(connections, "max_connections", lambda: 2)
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        open_connections = [server.connect() for _ in range(2)]
        for connection in open_connections:
            connection.sendall(request)
            assert connection.recv(65536).split()[1] == b"200"
        with pytest.raises(OSError), server.connect() as third:
            third.sendall(request)
            if not third.recv(65536):
                raise ConnectionResetError
        for connection in open_connections:
            connection.close()
        wait_until(lambda: server.open_connections == 0)
        assert server.json("GET", "/healthz")[0] == 200


def test_requests_that_come_at_once_are_answered_up_to_a_limit(served):
    """Broken once: `on_response_complete` without its count."""
    with running(served) as server, server.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * (connections.MAX_PIPELINED + 3))
        replies = b""
        while part := rest(client):
            replies += part
    assert replies.count(b"HTTP/1.1 200") == connections.MAX_PIPELINED


def test_too_few_open_files_are_said_before_the_start(monkeypatch):
    monkeypatch.setattr(connections, "max_connections", lambda: 256 - 256)
    with pytest.raises(UsageError, match=r"may open 256 files, and a server needs 320; start it after: ulimit -n 320"):
        listen(Settings(port=0))


def test_what_is_no_http_gets_a_json_error(served):
    with running(served) as server:
        head, _, body = server.raw(b"nonsense\r\n\r\n").partition(b"\r\n\r\n")
    assert head.split()[1] == b"400" and b"content-type: application/json" in head
    assert json.loads(body)["error"]["type"] == "usage"


def test_a_refused_body_that_trickles_in_is_given_up(served, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600.0)
    with running(served) as server, server.connect() as client:
        client.sendall(b"POST /v1/query HTTP/1.1\r\nHost: evil.com\r\nContent-Length: 1000\r\n\r\nx")
        reply = HTTPResponse(client)
        reply.begin()
        assert reply.status == 421 and reply.read()
        received, receive = [], connections.Connection.data_received
        monkeypatch.setattr(connections.Connection, "data_received", lambda *args: (receive(*args), received.append(1)))
        client.sendall(b"x")  # uvicorn's own timer of idle connections ends with it
        wait_until(lambda: received)
        assert server.open_connections == 1
        server.advance(601)
        assert rest(client) == b""
