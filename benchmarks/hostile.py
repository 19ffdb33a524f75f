"""What a service says to bad images and odd strings, and to clients while it is restarted, as one Markdown table.

python benchmarks/hostile.py GALLERY [--images DIR] [--strings LIST.json] [--restarts 100]

Each file under DIR is asked for as an image, each string of the list in every field of a query. Restarts stop the
server (SIGTERM) while three clients ask it, and start it again on the same port: what was sent between "ready" and the
signal must be answered. The exit code is 1 where a reply was the server's fault (500 and above), or was missing
where there had to be one.
"""

import argparse
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from serve import form_of, memory, serving

from nsfse_runtime import Gallery

TEXT = "make it red"
FIELDS = ("texts", "negative_texts", "reference_ids", "where", "gallery")
CLIENTS = 3
SECONDS_UP = 0.5


def ask(port: int, fields: list[tuple[str, bytes]]) -> int:
    """Send one query of `fields`; return the reply's status, 0 where there was none."""
    kind, body = form_of(fields)
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/query", body, {"Content-Type": kind})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


@dataclass
class Asked:
    """What came of the queries of one kind: how often each status, and the longest time in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0

    def add(self, port: int, fields: list[tuple[str, bytes]]) -> None:
        """Ask, and count."""
        started = time.perf_counter()
        self.statuses[ask(port, fields)] += 1
        self.longest = max(self.longest, time.perf_counter() - started)

    def bad(self) -> bool:
        """Tell whether a reply was missing or the server's fault."""
        return any(status == 0 or status >= 500 for status in self.statuses)

    def __str__(self) -> str:
        return f"{listed(self.statuses)}; the longest {1000 * self.longest:.0f} ms"


def listed(statuses: Counter[int]) -> str:
    """Return how often each status came."""
    return ", ".join(f"{count} × {status or 'no reply'}" for status, count in sorted(statuses.items()))


def images(port: int, files: Iterable[Path]) -> Asked:
    """Ask for each file as an image."""
    asked = Asked()
    for file in files:
        asked.add(port, [("texts", TEXT.encode()), ("reference_images", file.read_bytes())])
    return asked


def strings(port: int, said: list[str], name: str) -> Asked:
    """Ask with each string in each field, all else as it ought to be; `name` is an image of the gallery."""
    asked = Asked()
    for text in said:
        for at in FIELDS:
            asked.add(port, list({"texts": TEXT.encode(), "reference_ids": name.encode(), at: text.encode()}.items()))
    return asked


class Client:
    """Asks without a pause; keeps when each query was sent and what came of it."""

    def __init__(self, port: int, name: str) -> None:
        self.replies: list[tuple[float, int]] = []
        self._fields = [("texts", TEXT.encode()), ("reference_ids", name.encode())]
        self._port, self._end = port, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            sent = time.perf_counter()
            status = ask(self._port, self._fields)
            self.replies.append((sent, status))
            if status != 200:
                time.sleep(0.01)

    def end(self) -> list[tuple[float, int]]:
        """Stop asking; return all that was asked."""
        self._end.set()
        self._thread.join()
        return self.replies


def restarts(gallery: Path, count: int, name: str) -> tuple[Counter[int], int]:
    """Restart under traffic; return the statuses of what was sent while the server was ready, and how many others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    clients = [Client(port, name) for _ in range(CLIENTS)]
    times: list[tuple[float, float]] = []
    try:
        for _ in range(count):
            with serving(gallery, "--port", str(port)):
                ready = time.perf_counter()
                time.sleep(SECONDS_UP)
                times.append((ready, time.perf_counter()))
    finally:
        replies = [reply for client in clients for reply in client.end()]
    due = Counter(status for sent, status in replies if any(ready <= sent < end for ready, end in times))
    return due, len(replies) - due.total()


def main() -> int:
    """Ask, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--images", type=Path, help="a folder of image files, bad ones among them")
    parser.add_argument("--strings", type=Path, help="a JSON list of strings")
    parser.add_argument("--restarts", type=int, default=0)
    options = parser.parse_args()
    with Gallery.open(options.gallery) as gallery:
        name = gallery.ids[0]
    rows, failed = [], False
    with serving(options.gallery) as (port, pid):
        if options.images:
            found = images(port, sorted(path for path in options.images.rglob("*") if path.is_file()))
            rows.append(("images", f"{found}; peak of memory {memory(pid, 'VmHWM'):.0f} MB"))
            failed |= found.bad()
        if options.strings:
            found = strings(port, json.loads(options.strings.read_text()), name)
            rows.append((f"strings in {', '.join(FIELDS)}", str(found)))
            failed |= found.bad()
    if options.restarts:
        due, others = restarts(options.gallery, options.restarts, name)
        what = f"{options.restarts} restarts under {CLIENTS} clients"
        rows.append((what, f"{listed(due)}; {others} sent while it was not ready"))
        failed |= set(due) != {200}
    print("| what | replies |\n|---|---|")
    print("\n".join(f"| {what} | {value} |" for what, value in rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
