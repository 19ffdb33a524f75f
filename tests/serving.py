"""What the server's tests share: a real server on a free port, in a thread, and a client that hides nothing."""

import asyncio
import http.client
import io
import json
import secrets
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from nsfse_runtime import Bundle, Gallery
from nsfse_runtime.server.app import Service
from nsfse_runtime.server.galleries import Served
from nsfse_runtime.server.observing import Log
from nsfse_runtime.server.run import listen, make_server
from nsfse_runtime.server.settings import Settings
from tests.galleries import save_pictures

BUNDLE = Path(__file__).parent / "golden" / "bundle"
TOKEN = "a-token-of-nineteen"


def open_served(folder, name="shop", pictures=12):
    """Index `pictures` pictures and return their gallery, served."""
    from nsfse_runtime.session import OnnxScorer

    model = OnnxScorer(Bundle.open(BUNDLE), threads=1)
    gallery = Gallery.open(folder / f"{name}.gallery", model, create=True)
    names = save_pictures(folder / name, pictures)
    table = folder / f"{name}.csv"
    rows = [f"{each},{('red', 'blue')[number % 2]}" for number, each in enumerate(names)]
    table.write_text("\n".join(["id,colour", *rows]) + "\n")
    gallery.sync(folder / name, metadata=table)
    return Served(name, model, gallery)


class Running:
    """A server that runs: its `service`, its `port`, and what it has logged."""

    def __init__(self, service, port, server, log):
        self.service, self.port, self.server, self._log = service, port, server, log

    def __call__(self, method, path, body=b"", headers=(), timeout=20):
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

    def raw(self, data, timeout=10.0):
        """Send bytes on a connection of their own; return all that comes until it is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)

    @property
    def lines(self):
        return [json.loads(line) for line in self._log.getvalue().splitlines()]


def multipart(fields=(), files=(), name=b"picture.png"):
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


@contextmanager
def running(*galleries, **settings):
    """Serve `galleries` for a while."""
    log = io.StringIO()
    service = Service(galleries, Settings(port=0, **settings), "test", Log(log))
    listener = listen(service.settings)
    port = listener.getsockname()[1]
    server = make_server(service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    wait_until(lambda: service.warm or service.failure)
    try:
        yield Running(service, port, server, log)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Gate:
    """Holds the model's picture encoder until it is opened, and counts the pictures that it is given."""

    def __init__(self, model, monkeypatch):
        self._encode, self.seen, self.open = model.encode_images, 0, threading.Event()
        self.held = threading.Event()
        self.batches = []
        monkeypatch.setattr(model, "encode_images", self)

    def __call__(self, pixels):
        self.seen += len(pixels)
        self.batches.append(len(pixels))
        self.held.set()
        assert self.open.wait(20)
        return self._encode(pixels)


def picture(seed=1, size=(20, 14), kind="PNG"):
    """Return a picture's bytes."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
