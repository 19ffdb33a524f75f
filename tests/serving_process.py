"""A server in a process of its own, whose model waits at a gate, so that signals find queries at work."""

import http.client
import json
import socket
import subprocess
import sys
import threading

from tests.serving import PATIENCE, image, multipart, wait_until

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


class Process:
    def __init__(self, gallery, *options, gate="open"):
        code = CHILD.format(path=[entry for entry in sys.path if entry])
        command = [sys.executable, "-c", code, "serve", "-g", str(gallery), "--port", "0", *options]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.child = subprocess.Popen([*command, "--deadline", "600"], text=True, **pipes)
        self.lines, self._stopped = [], False
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.port = int(self.child.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        self.gate(gate)

    def _read(self):
        for line in self.child.stderr:
            self.lines.append(json.loads(line))
            if self._stopped:
                return

    def stop_reading(self):
        """Leave the log unread from the next line on."""
        self._stopped = True

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
        return self.post("/v1/query", body, kind)

    def post(self, path, body, kind):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            return connection.getresponse().status
        finally:
            connection.close()

    def metric(self, name):
        """Return the value of one of the server's metrics."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

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
