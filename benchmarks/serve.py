"""Measure a service under load: latency, overload, the gain of batches, and memory, as one Markdown table.

python benchmarks/serve.py GALLERY [--seconds 60] [--requests 20000] [--by id|image] [--text "make it red"]
python benchmarks/serve.py GALLERY --slow-clients 3 [--sample 400]

It starts `nsfse serve` in a process of its own and sends queries over HTTP, by ids or by images of the gallery.
Capacity is the rate of eight clients that wait for each answer. Overload is ten times that rate, whether answers come
or not. Each request takes an idle connection or else a new one. --slow-clients measures how long another client waits
beside many slow ones of one address, against the same client before, so many times in turns (Linux).
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import random
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nsfse_runtime import Gallery
from nsfse_runtime.hardware import cpu_threads

WARM_UP_REQUESTS = 100
# A load script that cannot send any faster would measure itself.
MAX_OPEN = 900
# Seconds after which the server may close a connection just when a query is sent on it.
MAX_IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Reply:
    """One request: its status (0: no answer at all), when it was sent and how long it took, in seconds."""

    status: int
    sent: float
    seconds: float


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    """Sends queries to one server."""

    def __init__(self, port: int, bodies: list[tuple[str, bytes]]) -> None:
        self._port, self._bodies = port, bodies
        self._idle: list[tuple[float, Connection]] = []

    async def send_query(self) -> Reply:
        """Send one query, on a connection that no other uses meanwhile."""
        kind, body = random.choice(self._bodies)
        head = (
            f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sent, status = time.perf_counter(), 0
        try:
            connection = await self._connection()
            reader, writer = connection
            writer.write(head.encode() + body)
            status = await read_reply(reader)
            self._idle.append((time.perf_counter(), connection))
        except (OSError, asyncio.IncompleteReadError):
            pass
        return Reply(status, sent, time.perf_counter() - sent)

    async def _connection(self) -> Connection:
        while self._idle:
            idle_since, connection = self._idle.pop()
            if time.perf_counter() - idle_since < MAX_IDLE_SECONDS:
                return connection
            connection[1].close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def closed(self, clients: int, requests: int) -> list[Reply]:
        """Let `clients` send one query after the other, `requests` in all."""

        async def client() -> list[Reply]:
            return [await self.send_query() for _ in range(requests // clients)]

        return [reply for part in await asyncio.gather(*(client() for _ in range(clients))) for reply in part]

    async def open(self, rate: float, seconds: float) -> list[Reply]:
        """Send `rate` queries a second, whether the earlier ones are answered or not."""
        tasks: set[asyncio.Task[Reply]] = set()
        replies: list[Reply] = []
        started, sent = time.perf_counter(), 0
        while (now := time.perf_counter() - started) < seconds:
            while sent < rate * now and len(tasks) < MAX_OPEN:
                tasks.add(asyncio.create_task(self.send_query()))
                sent += 1
            done = {task for task in tasks if task.done()}
            replies += [task.result() for task in done]
            tasks -= done
            await asyncio.sleep(0.002)
        return replies + list(await asyncio.gather(*tasks))


async def read_reply(reader: asyncio.StreamReader) -> int:
    """Read one reply; return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head.split(b" ", 2)[1])


def bodies_of(path: Path, by: str, text: str, count: int = 64) -> list[tuple[str, bytes]]:
    """Return the forms of `count` queries, by ids or by the files of the gallery's images."""
    with Gallery.open(path) as gallery:
        rows = random.Random(0).sample(range(len(gallery)), min(count, len(gallery)))
        images = [(gallery.ids[row], gallery.snapshot.path_of(row)) for row in rows]
    forms = []
    for name, file in images:
        reference = ("reference_ids", name.encode()) if by == "id" else ("reference_images", file.read_bytes())
        forms.append(form_of([("texts", text.encode()), reference]))
    return forms


def form_of(fields: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the content type and the body of a form; `reference_images` is sent as a file."""
    boundary = secrets.token_hex(8)
    body = io.BytesIO()
    for name, value in fields:
        file = '; filename="x"' if name == "reference_images" else ""
        body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode())
        body.write(value + b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", body.getvalue()


@contextmanager
def serving(gallery: Path, *options: str, per_client: int = 0) -> Iterator[tuple[int, int]]:
    """Run `nsfse serve`; yield its port and its process's id. Without `per_client` no address is limited."""
    fixed = ["-g", str(gallery), "--port", "0", "--per-client", str(per_client)]
    command = [sys.executable, "-m", "nsfse", "serve", *fixed, *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stderr
    try:
        port = int(child.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        for line in child.stderr:
            if json.loads(line)["event"] == "ready":
                break
        log_reader = subprocess.Popen(["cat"], stdin=child.stderr, stdout=subprocess.DEVNULL)
        yield port, child.pid
    finally:
        child.terminate()
        if code := child.wait(60):
            print(f"the server ended with {code}", file=sys.stderr)
        log_reader.wait(10)


def percentile(replies: list[Reply], share: float, status: int | None = 200) -> float:
    """Return the `share`-th percentile of the times, in ms; NaN where no reply has `status`."""
    times = sorted(1000 * reply.seconds for reply in replies if status is None or reply.status == status)
    return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def rate_of(replies: list[Reply]) -> float:
    """Return the answers a second."""
    first = min(reply.sent for reply in replies)
    last = max(reply.sent + reply.seconds for reply in replies)
    return sum(reply.status == 200 for reply in replies) / (last - first)


def memory(pid: int, what: str = "VmRSS") -> float:
    """Return a process's memory in MB; VmHWM is its peak."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1000


async def measure(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return rows of what was measured and its value."""
    forms = bodies_of(options.gallery, options.by, options.text)
    rows: list[tuple[str, str]] = []
    with serving(options.gallery) as (port, pid):
        load = Load(port, forms)
        await load.closed(8, WARM_UP_REQUESTS)
        capacity = 0.0
        for clients in (1, 8):
            replies = await load.closed(clients, options.sample)
            capacity = rate_of(replies)
            times = f"{percentile(replies, 0.5):.1f} / {percentile(replies, 0.99):.1f} ms, {capacity:.0f} answers/s"
            rows.append((f"{clients} client{'s' * (clients > 1)}: p50 / p99", times))
        # The baseline of the time after the load: one client, as after it.
        before = percentile(await load.closed(1, options.sample), 0.99)
        rows += await overload(load, 10 * capacity, options, before)
        rows.append(await growth(load, pid, options.requests))
    rates = {}
    for batch in (1, 16):
        with serving(options.gallery, "--batch", str(batch)) as (port, _):
            load = Load(port, forms)
            await load.closed(16, WARM_UP_REQUESTS)
            rates[batch] = statistics.median([rate_of(await load.closed(32, options.sample)) for _ in range(3)])
    gain = f"{rates[16]:.0f} / {rates[1]:.0f} answers/s = {rates[16] / rates[1]:.2f}"
    rows.append(("32 clients: batches of up to 16 / one at a time", gain))
    return rows


async def overload(load: Load, rate: float, options: argparse.Namespace, before: float) -> list[tuple[str, str]]:
    """Send at `rate` for a while, and measure again five seconds later."""
    replies = await load.open(rate, options.seconds)
    counts = sorted(Counter(reply.status for reply in replies).items())
    statuses = ", ".join(f"{status or 'none'}: {count}" for status, count in counts)
    refused = [reply for reply in replies if reply.status in (429, 503)]
    await asyncio.sleep(5)
    after = percentile(await load.closed(1, options.sample), 0.99)
    sent = len(replies) / options.seconds
    return [
        (f"{options.seconds} s of {rate:.0f} requests/s wanted, {sent:.0f} sent: replies", statuses),
        ("refusals: p50 / p99", f"{percentile(refused, 0.5, None):.1f} / {percentile(refused, 0.99, None):.1f} ms"),
        ("answers under it: p50 / p99", f"{percentile(replies, 0.5):.0f} / {percentile(replies, 0.99):.0f} ms"),
        ("one client 5 s after / before: p99", f"{after:.1f} / {before:.1f} ms = {after / before:.2f}"),
    ]


async def growth(load: Load, pid: int, requests: int) -> tuple[str, str]:
    """Return how much memory `requests` take that are not given back."""
    await load.closed(8, 1000)
    before = memory(pid)
    await load.closed(8, requests)
    return f"memory over {requests} requests", f"{before:.0f} → {memory(pid):.0f} MB ({memory(pid) - before:+.1f})"


async def read_nothing(port: int) -> None:
    """Ask 600 times and never read an answer."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(SLOW_ADDRESS, 0))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 600)
    await asyncio.Event().wait()


async def send_slowly(port: int) -> None:
    """Begin bodies and send no more of them; come again when one is given up."""
    head = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(SLOW_ADDRESS, 0))
            writer.write(head + b"Content-Length: 1000000\r\n\r\n--x\r\n")
            await reader.read()
            writer.close()
        except OSError:
            pass
        await asyncio.sleep(0.2)


SLOW_ADDRESS = "127.0.0.2"
SLOW_CLIENTS = {"that read nothing": (264, read_nothing), "with slow bodies": (270, send_slowly)}


def hold(kind: str, port: int) -> None:
    """Be all slow clients of a kind, in a process of their own."""
    count, client = SLOW_CLIENTS[kind]

    async def clients() -> None:
        await asyncio.gather(*(client(port) for _ in range(count)), return_exceptions=True)
        await asyncio.Event().wait()

    asyncio.run(clients())


async def measure_beside_slow_clients(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return rows of the p99 of one client, before slow clients of another address and beside them."""
    forms = bodies_of(options.gallery, options.by, options.text)
    rows = []
    for kind, (count, _) in SLOW_CLIENTS.items():
        with serving(options.gallery, per_client=32) as (port, _):
            load, before, beside = Load(port, forms), [], []
            await load.closed(1, WARM_UP_REQUESTS)
            for _ in range(options.slow_clients):
                before.append(await load.closed(1, options.sample))
                slow = multiprocessing.Process(target=hold, args=(kind, port), daemon=True)
                slow.start()
                await asyncio.sleep(5)  # until all of them have come
                beside.append(await load.closed(1, options.sample))
                slow.kill()
                await asyncio.to_thread(slow.join)
        ratios = sorted(percentile(b, 0.99) / percentile(a, 0.99) for a, b in zip(before, beside, strict=True))
        p99 = [statistics.median(percentile(replies, 0.99) for replies in part) for part in (before, beside)]
        others = sum(reply.status != 200 for part in beside for reply in part)
        values = (
            f"{p99[1]:.1f} / {p99[0]:.1f} ms, ratios {', '.join(f'{r:.2f}' for r in ratios)}; {others} not answered"
        )
        rows.append((f"one client beside {count} {kind} / before: p99", values))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--seconds", type=int, default=60, help="how long overload lasts")
    parser.add_argument("--requests", type=int, default=20_000, help="how many requests memory growth is measured over")
    parser.add_argument("--sample", type=int, default=400, help="requests of each latency")
    parser.add_argument("--by", choices=("id", "image"), default="image")
    parser.add_argument("--text", default="make it red")
    parser.add_argument("--slow-clients", type=int, default=0, metavar="ROUNDS", help="measure beside slow clients")
    options = parser.parse_args()
    packages = ("nsfse", "onnxruntime", "numpy", "starlette", "uvicorn")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    with Gallery.open(options.gallery) as gallery:
        size = len(gallery)
    rows = asyncio.run(measure_beside_slow_clients(options) if options.slow_clients else measure(options))
    print(f"{size} images, queries by {options.by}; {cpu_threads()} threads of {os.cpu_count()} processors")
    print(f"Python {platform.python_version()}, {versions}\n\n| what | measured |\n|---|---|")
    print("\n".join(f"| {what} | {value} |" for what, value in rows))


if __name__ == "__main__":
    main()
