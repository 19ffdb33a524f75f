"""The queue: batches of what waits, refusals at once, and no work for those who have gone or waited too long."""

import asyncio
import http.client
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.server import handlers
from nsfse_runtime.server.queue import QueryQueue
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import Metrics
from tests.serving import TEXT, TOKEN, Callers, Gate, image, multipart, open_served, reserved, running, wait_until


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return open_served(tmp_path_factory.mktemp("queue"))


def test_all_rejections_are_alike_and_no_body_is_parsed(served, monkeypatch):
    with running(served, queue=1, per_client=0) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 1)
        call = callers.send(0)
        callers.wait_for_places(1)
        kind, body = multipart([TEXT], [("reference_images", image(9))])
        head = f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        whole = head.encode() + b"\r\n" + body
        with monkeypatch.context() as patch, server.connect() as one:
            patch.setattr(handlers, "read_body", None)
            replies = [exchange(one, whole) for _ in range(3)]  # the connection stays
            for cut in (40, len(head) + 9):
                one.sendall(whole[:cut])
                replies.append(exchange(one, whole[cut:]))
            other = exchange(one, head.encode() + b"X-Request-Id: mine\r\n\r\n" + body)
            assert other[1]["x-request-id"] == "mine"
        gate.open.set()
        assert call.result()[0] == 200
        wait_until(lambda: not reserved(server))
        with server.connect() as one:
            assert exchange(one, whole)[0] == 200
        for status, headers, reply in replies:
            assert (status, reply["error"]["type"], headers["retry-after"]) == (503, "overloaded", "1")
            assert headers.pop("x-request-id") == reply["error"].pop("request_id")
            headers.pop("date", None)
        assert all(headers == replies[0][1] and reply == replies[0][2] for _, headers, reply in replies)
        assert 'nsfse_refused_total{reason="full"} 6.0' in server("GET", "/metrics")[2].decode()
        refused = [line for line in server.lines if line.get("error") == "overloaded"]
        assert [(line["route"], line["status"]) for line in refused] == [("/v1/query", 503)] * 6


@pytest.mark.parametrize("path", ["/v1/query", "/v1/query:batch"])
def test_host_and_token_are_checked_before_the_load(served, monkeypatch, path):
    with running(served, queue=1, per_client=0, token=TOKEN) as server:
        gate = Gate(served.model, monkeypatch)
        kind, body = multipart([TEXT], [("reference_images", image(9))])
        bearer = ("Authorization", f"Bearer {TOKEN}")
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(server, "POST", "/v1/query", body, [("Content-Type", kind), bearer])
            wait_until(lambda: reserved(server) == 1)
            cases = {
                (421, "host"): [("Host", "evil.com"), bearer],
                (401, "token"): [("Authorization", f"Bearer {TOKEN}x")],
                (403, "origin"): [("Origin", "http://evil.com"), bearer],
                (503, "overloaded"): [bearer],
            }
            for expected, headers in cases.items():
                status, reply = server.json("POST", path, body, [("Content-Type", kind), *headers])
                assert (status, reply["error"]["type"]) == expected
            gate.open.set()
            assert call.result()[0] == 200
        metrics = server("GET", "/metrics", headers=[bearer])[2].decode()
        assert 'nsfse_refused_total{reason="full"} 1.0' in metrics


def test_a_rejected_query_with_a_large_body_gets_its_reply(served, monkeypatch):
    with running(served, queue=1, per_client=0) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 1)
        call = callers.send(0)
        callers.wait_for_places(1)
        status, headers, _ = server("POST", "/v1/query", b"x" * 5_000_000, [("Content-Type", "multipart/form-data")])
        assert (status, headers["connection"]) == (503, "close")
        gate.open.set()
        assert call.result()[0] == 200


def exchange(connection, request):
    """Send a request, or the rest of one; return (status, headers, JSON) of its reply."""
    connection.sendall(request)
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, {k.lower(): v for k, v in reply.getheaders()}, json.loads(reply.read())


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of single threads are Linux's")
def test_the_model_yields_to_the_thread_that_reads_requests(served):
    with running(served) as server:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        assert server.query([TEXT], [("reference_images", image(9))])[0] == 200
        threads = {thread.name: thread.native_id for thread in threading.enumerate()}
        for name in ("nsfse-model_0", "nsfse-images_0"):
            assert os.getpriority(os.PRIO_PROCESS, threads[name]) == min(19, usual + 10)
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == usual


def test_what_is_late_is_left_out_though_its_timer_has_not_fired(served):
    async def outcomes():
        now = [0.0]
        queue = QueryQueue(Settings(), Metrics(), lambda: now[0])
        late, given_up, good = (
            queue.create_job(Query(references=(name,)), served, deadline)
            for name, deadline in (("a", 1.0), ("b", 9.0), ("c", 9.0))
        )
        never = asyncio.create_task(asyncio.Event().wait())
        calls = [asyncio.create_task(queue.submit([job], never)) for job in (late, given_up, good)]
        await asyncio.sleep(0)
        given_up.future.cancel()
        now[0] = 1.0
        batch = queue.next_batch()
        for task in (*calls, never):
            task.cancel()
        await asyncio.gather(*calls, never, return_exceptions=True)
        return batch == [good], good.started_at, good.batch_size

    assert asyncio.run(outcomes()) == (True, 1.0, 1)


def test_a_bug_in_the_model_is_a_500_and_the_next_is_answered(served, monkeypatch):
    with running(served) as server:
        with monkeypatch.context() as patch:
            patch.setattr(served.model, "encode_images", lambda pixels: 1 / 0)
            status, reply, _ = server.query([TEXT], [("reference_images", image())])
        assert (status, reply["error"]["type"]) == (500, "internal")
        assert "division" not in reply["error"]["message"]
        (line,) = [line for line in server.lines if line["event"] == "bug"]
        assert "ZeroDivisionError" in line["traceback"] and line["request_id"] == reply["error"]["request_id"]
        assert server.query([TEXT], [("reference_images", image())])[0] == 200


def test_queries_go_on_while_the_gallery_is_synced(served, tmp_path):
    from nsfse_runtime import Gallery
    from tests.galleries import save_images

    folder = tmp_path / "own"
    own = open_served(folder := tmp_path, "own", 8)
    stop, failed, answered = threading.Event(), [], []

    def send():
        while not stop.is_set():
            status, reply, _ = server.query([("reference_ids", "shelf00/item0001.png"), TEXT, ("k", "50")])
            answered.append(len(reply["hits"])) if status == 200 else failed.append(reply)

    with running(own) as server:
        client = threading.Thread(target=send)
        client.start()
        wait_until(lambda: answered)
        with Gallery.open(folder / "own.gallery", own.model) as writer:
            for number in range(4):
                save_images(folder / "own", 2, first=20 + 2 * number)
                writer.sync(folder / "own")
        wait_until(lambda: answered[-1] == 15)
        stop.set()
        client.join()
        assert not failed
        assert {*answered} <= {7, 9, 11, 13, 15}
        assert server.json("GET", "/v1/info")[1]["galleries"][0]["images"] == 16
