"""P14: ready means ready: a query that is sent then is answered, and a server that cannot answer is not ready."""

import signal
import sqlite3
import threading
from contextlib import closing

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.gallery.store import GalleryTables
from tests.promises.counts import count
from tests.serving import PATIENCE, TEXT, image, open_served, running, wait_until
from tests.serving_process import Process

SOON = {"canary_seconds": 0.05, "deadline": 600.0}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ready")
    open_served(folder)
    return folder / "shop.gallery"


@pytest.fixture
def served(tmp_path):
    return open_served(tmp_path)


def test_ready_follows_a_real_query_and_health_does_not(gallery):
    """Broken once: `warm` true from the start."""
    with Process(gallery, gate="closed") as process:
        assert process.get("/healthz") == 200
        assert process.get("/readyz") == 503
        process.gate("open")
        process.wait_until_ready()
        assert process.query(1) == 200
        process.child.send_signal(signal.SIGINT)
        assert process.end() == 0
    events = [event for event in process.events if event not in ("request", "gate")]
    assert events == ["listening", "ready", "stopping", "stopped"]


def test_no_query_fails_after_ready_over_restarts(gallery):
    """The same line as above, over restarts."""
    for _ in range(count(1, 30)):
        with Process(gallery, gate="open") as process:
            process.wait_until_ready()
            assert [process.query(seed) for seed in range(3)] == [200] * 3
            process.child.send_signal(signal.SIGTERM)
            assert process.end() == 0


def readiness(server):
    return server.json("GET", "/readyz")[0]


def test_a_gallery_damaged_while_served_is_no_longer_ready(served):
    """Broken once: `ready` without `unusable`."""
    with running(served, **SOON) as server:
        assert readiness(server) == 200
        change(served.gallery.path, "UPDATE contents SET crc = crc + 1")
        wait_until(lambda: readiness(server) == 503)
        status, reply, _ = server.query([TEXT, ("k", "3")], [("reference_images", image())])
        assert (status, reply["error"]["type"]) == (503, "damaged")
        change(served.gallery.path, "UPDATE contents SET crc = crc - 1")
        wait_until(lambda: readiness(server) == 200)
        events = [line["event"] for line in server.lines]
        assert events.count("unusable") == events.count("usable") == 1
        assert server.json("GET", "/healthz")[0] == 200


def change(path, statement):
    """Change a gallery behind its back, then its generation, so that readers look again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    with GalleryTables.open_writer(path) as store, store.writing():
        store.advance()


class Panic(BaseException):
    """As a library in Rust raises it."""


def test_a_panic_fails_its_query_and_the_next_is_answered(served, monkeypatch):
    """Broken once: `_answer_batch` catching Exception alone."""
    with running(served) as server:
        with monkeypatch.context() as patch:
            patch.setattr(served.retriever, "answer", lambda queries: (_ for _ in ()).throw(Panic("gave up")))
            status, reply, _ = server.query([TEXT], [("reference_images", image())])
            assert (status, reply["error"]["type"]) == (500, "internal")
        assert server.query([TEXT], [("reference_images", image())])[0] == 200


def test_a_worker_that_ends_is_started_again(served, monkeypatch):
    """Broken once: `_answer_queries` without its loop."""
    with running(served) as server:
        next_batch, failed = server.services.queue.next_batch, []

        def fail_once():
            if not failed:
                failed.append(True)
                raise ZeroDivisionError("a bug")
            return next_batch()

        monkeypatch.setattr(server.services.queue, "next_batch", fail_once)
        assert server.query([TEXT], [("reference_images", image())])[0] == 200
        (line,) = [line for line in server.lines if line["event"] == "bug"]
        assert "ZeroDivisionError" in line["traceback"]


def test_a_model_that_hangs_is_not_ready_until_it_answers(served, monkeypatch):
    """Broken once: `_check` without its timeout."""
    held, go_on = threading.Event(), threading.Event()

    def hang():
        held.set()
        go_on.wait()

    monkeypatch.setattr(served, "canary", lambda: None)
    with running(served, canary_seconds=0.05, deadline=500.0) as server:
        monkeypatch.setattr(served, "canary", hang)
        assert held.wait(PATIENCE)
        assert readiness(server) == 200
        server.advance(501)
        try:
            wait_until(lambda: readiness(server) == 503)
            assert server.json("GET", "/healthz")[0] == 200
        finally:
            go_on.set()
        wait_until(lambda: readiness(server) == 200)
