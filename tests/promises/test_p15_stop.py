"""P15: a signal ends the server when all that was accepted is answered; nothing else holds it up."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.server import telemetry
from nsfse_runtime.server.telemetry import Log
from tests.serving import PATIENCE, open_served, wait_until
from tests.serving_process import Process

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and SIGHUP are of POSIX")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    open_served(folder)
    return folder / "shop.gallery"


def test_all_that_was_accepted_is_answered_before_it_ends(gallery):
    """Broken once: `timeout_graceful_shutdown` 0."""
    with Process(gallery) as process, ThreadPoolExecutor(32) as pool:
        process.wait_until_ready()
        process.gate("closed")
        calls = [pool.submit(process.query, seed) for seed in range(32)]
        wait_until(lambda: process.metric("nsfse_queue_length") == 32)
        process.child.send_signal(signal.SIGTERM)
        wait_until(process.refuses)
        process.gate("open")
        assert {call.result() for call in calls} == {200}
        assert process.end() == 0


def test_it_answers_but_is_not_ready_during_the_shutdown_delay(gallery):
    with Process(gallery, "--shutdown-delay", "600") as process:
        process.wait_until_ready()
        process.child.send_signal(signal.SIGTERM)
        wait_until(lambda: process.get("/readyz") == 503)
        assert process.query(1) == 200
        process.child.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM


def test_the_shutdown_delay_ends_by_itself(gallery):
    with Process(gallery, "--shutdown-delay", "0.5") as process:
        process.wait_until_ready()
        process.child.send_signal(signal.SIGTERM)
        assert process.end() == 0
    assert process.events[-1] == "stopped"


def test_a_second_signal_forces(gallery):
    """Broken once: `_signalled` returning in the place of os._exit."""
    with Process(gallery, gate="closed") as process:
        assert process.get("/healthz") == 200
        process.child.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in process.events)
        process.child.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM


@posix
def test_a_hangup_is_ignored(gallery):
    """Broken once: no handler of SIGHUP."""
    with Process(gallery) as process:
        process.wait_until_ready()
        process.child.send_signal(signal.SIGHUP)
        wait_until(lambda: "ignored" in process.events)
        assert process.query(1) == 200
        process.child.send_signal(signal.SIGTERM)
        assert process.end() == 0


# The process logs to a pipe that nobody reads: more than it holds, and more than may wait.
BLOCKED = """
import os, sys
sys.path[:0] = {path}
from nsfse_runtime.server.telemetry import Log
log = Log()
for number in range(3000):
    log("request", padding="x" * 100)
os.write(1, b"%d" % log.lost)
log.flush(0.1)
"""


@posix
def test_a_log_that_nobody_reads_blocks_nothing(monkeypatch):
    """Broken once: `Log.__call__` writing by itself."""
    code = BLOCKED.format(path=[entry for entry in sys.path if entry])
    unread, write = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    try:
        lost, _ = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0
        assert 0 < int(lost) <= 2000
    finally:
        child.kill()
        os.close(unread)


@posix
def test_a_server_whose_log_is_blocked_answers_and_stops(gallery, monkeypatch):
    """Broken once: `Log.__call__` writing by itself."""
    with Process(gallery) as process:
        process.wait_until_ready()
        process.stop_reading()
        for seed in range(400):  # a line of a request has about 300 bytes, a pipe 65,536
            assert process.get(f"/readyz?x={'x' * 300}{seed}") == 200
        process.child.send_signal(signal.SIGTERM)
        assert process.child.wait(PATIENCE) == 0


def test_lines_that_are_not_written_are_counted(monkeypatch):
    """Broken once: `put_nowait` without `queue.Full` counted."""
    monkeypatch.setattr(telemetry, "_MAX_WAITING_LINES", 2)
    writing, go_on = threading.Event(), threading.Event()

    class Stream:
        text = ""

        def fileno(self):
            raise OSError

        def write(self, line):
            writing.set()
            assert go_on.wait(PATIENCE)
            self.text += line

        def flush(self):
            pass

    log = Log(stream := Stream())
    log("first")
    assert writing.wait(PATIENCE)
    for _ in range(5):
        log("later")
    assert log.lost == 3
    go_on.set()
    log.flush(PATIENCE)
    assert stream.text.count("\n") == 3
