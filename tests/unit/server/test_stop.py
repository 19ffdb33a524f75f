"""A real process: ready when it is ready, stopped when all is answered, and forced by a second signal."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from tests.serving import BUNDLE, PATIENCE, TOKEN, image, multipart, open_served, running, wait_until

# The model waits at a gate, which stdin opens and closes, so that signals find queries at work.
CHILD = """
import os, sys, threading
sys.path[:0] = {path}
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
encode, gate = OnnxScorer.encode_images, threading.Event()
def gated(self, pixels):
    gate.wait()
    return encode(self, pixels)
OnnxScorer.encode_images = gated
def obey():
    for line in sys.stdin:
        (gate.set if line == "open\\n" else gate.clear)()
        os.write(2, b'{{"event": "gate"}}\\n')
threading.Thread(target=obey, daemon=True).start()
from nsfse.cli.app import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    open_served(folder)
    return folder / "shop.gallery"


class Process:
    def __init__(self, gallery, *options, gate="open"):
        code = CHILD.format(path=[entry for entry in sys.path if entry])
        command = [sys.executable, "-c", code, "serve", "-g", str(gallery), "--port", "0", *options]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.child = subprocess.Popen([*command, "--deadline", "600"], text=True, **pipes)
        self.lines = []
        self._reading = threading.Thread(
            target=lambda: self.lines.extend(map(json.loads, self.child.stderr)), daemon=True
        )
        self._reading.start()
        self.port = int(self.child.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        self.gate(gate)

    def gate(self, state):
        """Let the model work ("open"), or hold what comes to it from now on ("closed")."""
        before = self.events.count("gate")
        self.child.stdin.write(f"{state}\n")
        self.child.stdin.flush()
        wait_until(lambda: self.events.count("gate") > before)

    @property
    def events(self):
        return [line["event"] for line in self.lines]

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def query(self, seed):
        kind, body = multipart([("texts", "make it red")], [("reference_images", image(seed))])
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/query", body, {"Content-Type": kind})
            return connection.getresponse().status
        finally:
            connection.close()

    def wait_until_ready(self):
        wait_until(lambda: self.get("/readyz") == 200)

    def refuses(self):
        """Tell whether nobody listens any more."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return True
        return False

    def end(self):
        code = self.child.wait(PATIENCE)
        self._reading.join(PATIENCE)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.stderr.close()


def test_ready_follows_a_real_query_and_health_does_not(gallery):
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


def test_all_that_was_accepted_is_answered_before_it_ends(gallery):
    with Process(gallery) as process, ThreadPoolExecutor(32) as pool:
        process.wait_until_ready()
        process.gate("closed")
        calls = [pool.submit(process.query, seed) for seed in range(32)]
        wait_until(lambda: _waiting(process.port) == 32)
        process.child.send_signal(signal.SIGTERM)
        wait_until(process.refuses)
        process.gate("open")
        assert {call.result() for call in calls} == {200}
        assert process.end() == 0


def _waiting(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b""
        while part := connection.recv(65536):
            text += part
    return float(text.partition(b"\nnsfse_queue_length ")[2].split(b"\n")[0])


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
    with Process(gallery, gate="closed") as process:
        assert process.get("/healthz") == 200
        process.child.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in process.events)
        process.child.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "options, code, words",
    [
        (["--host", "0.0.0.0"], 2, "there is no token"),
        (["-g", "shop=nowhere.gallery"], 2, "two galleries are called shop"),
        (["-g", "nowhere.gallery"], 3, "no gallery at nowhere.gallery"),
        (["--token-file", "nowhere"], 3, "no token at nowhere"),
        (["-b", str(BUNDLE.parent)], 3, "not a bundle"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(gallery, capsys, monkeypatch, options, code, words):
    from nsfse.cli import app

    monkeypatch.delenv("NSFSE_TOKEN", raising=False)
    with pytest.raises(SystemExit) as stop:
        app.main(["serve", "-g", str(gallery), "--port", "0", *options])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (code, "")
    assert words in err and err.count("\n") == 1


def test_a_damaged_gallery_ends_it_with_its_error(tmp_path):
    import sqlite3

    served = open_served(tmp_path)
    served.gallery.close()
    with sqlite3.connect(tmp_path / "shop.gallery") as connection:
        connection.execute("UPDATE contents SET crc = crc + 1")
    connection.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "nsfse", "serve", "-g", str(tmp_path / "shop.gallery"), "--port", "0"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert found.returncode == 5
    assert "is damaged" in found.stderr.splitlines()[-1] and "Traceback" not in found.stderr


def test_a_missing_extra_is_named(monkeypatch, gallery):
    from nsfse.open import open_services
    from nsfse_runtime import extras
    from nsfse_runtime.errors import MissingExtraError
    from nsfse_runtime.inference.devices import ON_CPU
    from nsfse_runtime.server.settings import Settings

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "nsfse\[serve\]"'):
        open_services([str(gallery)], None, ON_CPU, Settings())


def test_a_server_in_a_thread_logs_no_token(gallery, tmp_path):
    with running(open_served(tmp_path), token=TOKEN) as server:
        assert server.json("GET", "/healthz")[0] == 200
        assert Path(server.services.galleries["shop"].gallery.path).exists()
        assert TOKEN not in json.dumps(server.lines)
