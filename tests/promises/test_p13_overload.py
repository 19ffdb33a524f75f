"""P13: whatever clients do, others are answered or refused at once, and no work is done for clients that left."""

import json
import socket
import threading
from contextlib import ExitStack

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.images.decode import load_image
from nsfse_runtime.server import connections, load_shedding, settings
from tests.serving import PATIENCE, TEXT, Callers, Gate, image, multipart, open_served, reserved, running, wait_until

HEAD = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return open_served(tmp_path_factory.mktemp("overload"))


def test_a_full_queue_refuses_at_once_and_answers_the_rest(served, monkeypatch):
    """Broken once: `check` without its comparison with `queue`."""
    with running(served, queue=3, per_client=0) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 3)
        calls = [callers.send(seed) for seed in range(3)]
        callers.wait_for_places(3)
        status, reply, headers = server.query([TEXT], [("reference_images", image(9))])  # the gate is closed meanwhile
        assert (status, reply["error"]["type"]) == (503, "overloaded")
        assert int(headers["retry-after"]) >= 1
        body = json.dumps({"queries": [{"reference_ids": ["shelf00/item0001.png"], "texts": ["red"]}]}).encode()
        head = [("Content-Type", "application/json")]
        assert server("POST", "/v1/query:batch", body, head)[0] == 503
        assert server.json("GET", "/healthz") == (200, {"status": "alive"})
        gate.open.set()
        assert [call.result()[0] for call in calls] == [200] * 3
        assert gate.seen == 3
        assert server.query([TEXT], [("reference_images", image(9))])[0] == 200
        assert 'nsfse_refused_total{reason="full"} 2.0' in server("GET", "/metrics")[2].decode()


def test_one_address_does_not_fill_the_queue(served, monkeypatch):
    """Broken once: `check` without its comparison with `per_client`."""
    with running(served, queue=8, per_client=2) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 2)
        calls = [callers.send(seed) for seed in range(2)]
        callers.wait_for_places(2)
        status, reply, headers = server.query([TEXT], [("reference_images", image(9))])
        assert (status, reply["error"]["type"]) == (429, "overloaded")
        assert "retry-after" in headers
        gate.open.set()
        assert [call.result()[0] for call in calls] == [200] * 2
        assert not server.services.queue.clients


def test_what_has_expired_is_never_given_to_the_model(served, monkeypatch):
    """Broken once: `submit` waiting with timeout None."""
    with running(served, deadline=600.0) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 4)
        calls = [callers.send(0)]
        assert gate.held.wait(PATIENCE)
        calls += [callers.send(seed) for seed in range(1, 4)]
        callers.wait_for_places(4)
        server.advance(601)
        replies = [call.result() for call in calls]
        assert [(status, reply["error"]["type"]) for status, reply, _ in replies] == [(503, "expired")] * 4
        assert all("retry-after" in headers for _, _, headers in replies)
        gate.open.set()
        assert server.query([TEXT, ("k", "3")], [("reference_images", image(50))])[0] == 200
        assert gate.seen == 2  # the one that was at work, and the one after
        wait_until(lambda: reserved(server) == 0)
        assert 'nsfse_refused_total{reason="expired"} 4.0' in server("GET", "/metrics")[2].decode()


def test_what_expires_before_it_is_decoded_is_not_decoded(served, monkeypatch):
    """Broken once: `_decode_all` without its look at the deadline."""
    decoded, go_on = [], threading.Event()

    def slowly(stream, size):
        decoded.append(stream)
        assert go_on.wait(PATIENCE)
        return load_image(stream, size)

    monkeypatch.setattr("nsfse_runtime.server.conversion.load_image", slowly)
    monkeypatch.setattr("nsfse_runtime.server.services.default_workers", lambda: 2)
    with running(served, deadline=600.0) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 8)
        gate.open.set()
        calls = [callers.send(seed) for seed in range(8)]
        callers.wait_for_places(8)
        wait_until(lambda: len(decoded) == 2)
        server.advance(601)
        go_on.set()
        replies = [call.result() for call in calls]
        assert {(status, reply["error"]["type"]) for status, reply, _ in replies} == {(503, "expired")}
        assert (len(decoded), gate.seen) == (2, 0)
        wait_until(lambda: reserved(server) == 0)


def test_whose_client_has_gone_is_never_given_to_the_model(served, monkeypatch):
    """Broken once: `submit` not waiting for `disconnected`."""
    with running(served) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 1)
        call = callers.send(0)
        assert gate.held.wait(PATIENCE)
        kind, body = multipart([TEXT], [("reference_images", image(1))])
        head = (
            f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        gone = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        for connection in gone:
            connection.sendall(head.encode() + body)
        callers.wait_for_places(4)
        for connection in gone:
            connection.close()
        callers.wait_for_places(1)
        gate.open.set()
        assert call.result()[0] == 200
        assert gate.seen == 1
        assert [line["status"] for line in server.lines if line.get("route") == "/v1/query"].count(499) == 3


def ending(connection):
    """Return the end of what still comes until the connection is closed."""
    rest = b""
    try:
        while part := connection.recv(65536):
            rest = (rest + part)[-65536:]
    except ConnectionResetError:
        pass
    return rest


def test_a_client_that_reads_no_reply_is_disconnected(served, monkeypatch):
    """Broken once: `pause_writing` without its timer."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1e6)
    monkeypatch.setattr(connections, "MAX_PIPELINED", 1e6)
    paused = threading.Event()
    pause = connections.Connection.pause_writing
    monkeypatch.setattr(connections.Connection, "pause_writing", lambda self: (pause(self), paused.set()))
    with running(served) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", server.port))
        client.settimeout(PATIENCE)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 600
        threading.Thread(target=lambda: client.sendall(request), daemon=True).start()
        assert paused.wait(PATIENCE)
        assert server.open_connections == 1
        server.advance(connections.WRITE_SECONDS + 1)
        wait_until(lambda: server.open_connections == 0)


def test_a_body_that_trickles_is_given_up_after_its_grace(served):
    """Broken once: `due` of BodySpeedMiddleware never passed on to `timeout_at`."""
    with running(served, body_grace=500.0, body_seconds=1e6) as server, server.connect() as client:
        client.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n--x\r\n")
        wait_until(lambda: "nsfse_ready" in server("GET", "/metrics")[2].decode())
        server.advance(501)
        reply = ending(client)
        assert reply.split()[1] == b"408" and b"slower than 10 kB/s" in reply


def test_one_address_has_few_requests_and_bytes_on_their_way(served, monkeypatch):
    """Broken once: `_requests` not counted up; `_bytes` not counted up; the refusal sent without its delay."""
    for name, value in (("MAX_CLIENT_REQUESTS", 3), ("MAX_CLIENT_BYTES", 50_000_000)):
        with monkeypatch.context() as patch, running(served) as server:
            delays = []
            patch.setattr(load_shedding, name, value)
            patch.setattr(load_shedding, "refusal_delay", lambda delays=delays: delays.append(600.0) or delays[-1])
            started = [server.connect() for _ in range(3)]
            try:
                for client in started[: 3 if value == 3 else 2]:
                    client.sendall(HEAD + b"Content-Length: 20000000\r\nExpect: 100-continue\r\n\r\n")
                    assert client.recv(99).startswith(b"HTTP/1.1 100")  # its body is being read
                kind, body = multipart([TEXT], [("reference_images", image(9))])
                head = HEAD.replace(b"multipart/form-data; boundary=x", kind.encode())
                with server.connect() as refused:
                    refused.sendall(
                        head + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (12_000_000 + len(body))
                    )
                    wait_until(lambda delays=delays: delays)
                    assert not [line for line in server.lines if line.get("status") == 429]
                    server.advance(601)
                    reply, _, rest = ending(refused).partition(b"\r\n\r\n")
                assert reply.split()[1] == b"429" and json.loads(rest)["error"]["type"] == "overloaded"
                assert server.json("GET", "/healthz") == (200, {"status": "alive"})
            finally:
                for client in started:
                    client.close()
            wait_until(lambda server=server: server.query([TEXT], [("reference_images", image(9))])[0] == 200)


def test_one_address_has_few_connections(served, monkeypatch):
    """Broken once: `clients` not counted up; `_refuse_later` without its delay; no end to those that wait."""
    monkeypatch.setattr(connections, "MAX_CLIENT_CONNECTIONS", 2)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1e6)
    monkeypatch.setattr(settings, "REFUSAL_SECONDS", 600.0)
    with running(served) as server, ExitStack() as stack:
        for count in range(1, 5):
            client = stack.enter_context(server.connect())
            wait_until(lambda count=count: server.open_connections == count)
        with server.connect() as fifth:
            assert ending(fifth) == b""  # at once: two are open, and two wait for their refusal
        server.advance(299)
        assert server.open_connections == 4
        server.advance(602)
        head, _, body = ending(client).partition(b"\r\n\r\n")
        assert head.split()[1] == b"429" and json.loads(body)["error"]["type"] == "overloaded"
        stack.close()
        wait_until(lambda: server.open_connections == 0)
        assert server.json("GET", "/healthz")[0] == 200
    with running(served, per_client=0) as server:
        kept = [server.connect() for _ in range(4)]
        wait_until(lambda: server.open_connections == 4)
        for client in kept:
            client.close()
