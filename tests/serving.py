"""What the server's tests share: a real server on a free port, in a thread, and a client that hides nothing."""

import asyncio
import http.client
import io
import json
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from nsfse_runtime import Bundle, Gallery
from nsfse_runtime.server.galleries import ServedFile
from nsfse_runtime.server.serve import create_server, listen
from nsfse_runtime.server.services import Services
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import Log
from tests.galleries import save_images

BUNDLE = Path(__file__).parent / "golden" / "bundle"
TEXT = ("texts", "make it red")
TOKEN = "a-token-of-nineteen"
PATIENCE = 200.0
"""Seconds after which what hangs is given up. No test's outcome depends on it."""


def open_served(folder, name="shop", images=12):
    """Index `images` images and return their gallery, served."""
    from nsfse_runtime.inference.onnx_scorer import OnnxScorer

    model = OnnxScorer(Bundle.open(BUNDLE), threads=1)
    gallery = Gallery.open(folder / f"{name}.gallery", model, create=True)
    names = save_images(folder / name, images)
    table = folder / f"{name}.csv"
    rows = [f"{each},{('red', 'blue')[number % 2]}" for number, each in enumerate(names)]
    table.write_text("\n".join(["id,colour", *rows]) + "\n")
    gallery.sync(folder / name, metadata=table)
    return ServedFile(name, model, gallery)


class Running:
    """A server that runs: its `services`, its `port`, and what it has logged."""

    def __init__(self, services, port, server, log, clock):
        self.services, self.port, self.server, self._log, self._clock = services, port, server, log, clock

    def advance(self, seconds):
        """Move the clock on by `seconds`: deadlines pass, and timers that are due then fire."""
        passed = threading.Event()

        def move():
            self._clock.ahead += seconds
            passed.set()

        self._clock.loop.call_soon_threadsafe(move)
        assert passed.wait(PATIENCE)

    @property
    def open_connections(self):
        return len(self.server.config.http.open_connections)

    def connect(self):
        """Return a connection of its own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def __call__(self, method, path, body=b"", headers=(), timeout=PATIENCE):
        """Send one request as it stands; return (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.putrequest(method, path, skip_host=any(k.lower() == "host" for k, _ in headers))
            for key, value in headers:
                connection.putheader(key, value)
            if body or method in ("POST", "PUT"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def json(self, method, path, *rest, **options):
        status, _, body = self(method, path, *rest, **options)
        return status, json.loads(body)

    def query(self, fields=(), files=(), headers=(), path="/v1/query"):
        kind, body = multipart(fields, files)
        status, got, reply = self("POST", path, body, [("Content-Type", kind), *headers])
        return status, json.loads(reply), got

    def raw(self, data):
        """Send bytes on a connection of their own; return all that comes until it is closed."""
        with self.connect() as connection:
            connection.sendall(data)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)

    @property
    def lines(self):
        self.services.log.flush(PATIENCE)
        return [json.loads(line) for line in self._log.getvalue().splitlines()]


def multipart(fields=(), files=(), name=b"image.png"):
    """Return (content type, body) of a form of (name, text) and (name, bytes)."""
    mark = secrets.token_hex(8).encode()
    parts = []
    for field, value in fields:
        head = b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % (mark, field.encode())
        parts.append(head + value.encode() + b"\r\n")
    for field, data in files:
        head = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n'
        parts.append(head % (mark, field.encode(), name) + data + b"\r\n")
    return f"multipart/form-data; boundary={mark.decode()}", b"".join(parts) + b"--%s--\r\n" % mark


class Clock:
    """The time of a server: the machine's, and as much more as a test adds."""

    def __init__(self):
        self.ahead, self.loop = 0.0, None

    def __call__(self):
        return time.perf_counter() + self.ahead

    def make_loop(self):
        """Return an event loop that goes by this clock."""
        clock = self

        class Loop(asyncio.SelectorEventLoop):
            def time(self):
                return super().time() + clock.ahead

        self.loop = Loop()
        return self.loop


@contextmanager
def running(*galleries, token=None, **settings):
    """Serve `galleries` for a while, with time enough for any machine but where `settings` say so."""
    log, clock = io.StringIO(), Clock()
    settings = {"deadline": 600.0, "body_seconds": 600.0, "body_grace": 600.0, "canary_seconds": 1e9} | settings
    if token is not None:
        settings["write_tokens"] = (token,)
    services = Services(galleries, Settings(port=0, **settings), "test", Log(log), clock)
    listener = listen(services.settings)
    port = listener.getsockname()[1]
    server = create_server(services)

    def serve():
        with asyncio.Runner(loop_factory=clock.make_loop) as runner:
            runner.run(server.serve([listener]))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        wait_until(lambda: services.warm or services.failure)
        yield Running(services, port, server, log, clock)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
    assert not thread.is_alive()


def wait_until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


class Gate:
    """Holds the model's image encoder until it is opened, and counts the images that it is given."""

    def __init__(self, model, monkeypatch):
        self._encode, self.seen, self.open = model.encode_images, 0, threading.Event()
        self.held = threading.Event()
        self.batches = []
        monkeypatch.setattr(model, "encode_images", self)

    def __call__(self, pixels):
        self.seen += len(pixels)
        self.batches.append(len(pixels))
        self.held.set()
        assert self.open.wait(PATIENCE)
        return self._encode(pixels)


class Callers:
    """Concurrent queries of TEXT by image."""

    def __init__(self, server, count):
        self._pool = ThreadPoolExecutor(count)
        self._server = server

    def send(self, seed):
        return self._pool.submit(self._server.query, [TEXT, ("k", "3")], [("reference_images", image(seed))])

    def wait_for_places(self, count):
        wait_until(lambda: reserved(self._server) == count)


def reserved(server):
    return server.services.queue.reserved


def image(seed=1, size=(20, 14), kind="PNG"):
    """Return an image's bytes."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
