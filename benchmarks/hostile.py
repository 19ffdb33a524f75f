"""How a service replies to bad images and odd strings, and to clients during restarts, as one Markdown table.

python benchmarks/hostile.py GALLERY [--images DIR] [--strings LIST.json] [--restarts 100]

Each file under DIR is sent as the image of a query, each string of the list in every field of one. Restarts stop
the server (SIGTERM) while three clients send queries, and start it again on the same port. What was sent between
"ready" and the signal must be answered. The exit code is 1 where a reply has a status of 500 or above, or is missing
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


def send_query(port: int, fields: list[tuple[str, bytes]]) -> int:
    """Send one query of `fields`; return the status of the reply, 0 where there was none."""
    content_type, body = form_of(fields)
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/query", body, {"Content-Type": content_type})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


@dataclass
class Outcomes:
    """The outcomes of queries: how often each status came, and the longest time in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0

    def add(self, port: int, fields: list[tuple[str, bytes]]) -> None:
        """Send a query and count its outcome."""
        started_at = time.perf_counter()
        self.statuses[send_query(port, fields)] += 1
        self.longest = max(self.longest, time.perf_counter() - started_at)

    def failed(self) -> bool:
        """Return whether a reply was missing or the server's fault."""
        return any(status == 0 or status >= 500 for status in self.statuses)

    def __str__(self) -> str:
        return f"{format_statuses(self.statuses)}; the longest {1000 * self.longest:.0f} ms"


def format_statuses(statuses: Counter[int]) -> str:
    """Return how often each status came."""
    return ", ".join(f"{count} × {status or 'no reply'}" for status, count in sorted(statuses.items()))


def send_images(port: int, files: Iterable[Path]) -> Outcomes:
    """Send each file as an image."""
    outcomes = Outcomes()
    for file in files:
        outcomes.add(port, [("texts", TEXT.encode()), ("reference_images", file.read_bytes())])
    return outcomes


def send_strings(port: int, strings: list[str], image_id: str) -> Outcomes:
    """Send each string in each field of a query that is else well-formed; `image_id` is one of the gallery."""
    outcomes = Outcomes()
    for text in strings:
        for name in FIELDS:
            fields = {"texts": TEXT.encode(), "reference_ids": image_id.encode(), name: text.encode()}
            outcomes.add(port, list(fields.items()))
    return outcomes


class Client:
    """Sends queries without a pause, and records when each was sent and the status of its reply."""

    def __init__(self, port: int, image_id: str) -> None:
        self.replies: list[tuple[float, int]] = []
        self._fields = [("texts", TEXT.encode()), ("reference_ids", image_id.encode())]
        self._port, self._end = port, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            sent_at = time.perf_counter()
            status = send_query(self._port, self._fields)
            self.replies.append((sent_at, status))
            if status != 200:
                time.sleep(0.01)

    def stop(self) -> list[tuple[float, int]]:
        """Stop, and return (time, status) of all queries."""
        self._end.set()
        self._thread.join()
        return self.replies


def restart_under_load(gallery: Path, count: int, image_id: str) -> tuple[Counter[int], int]:
    """Restart under traffic; return the statuses of queries sent while it was ready, and the number of others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    clients = [Client(port, image_id) for _ in range(CLIENTS)]
    uptimes: list[tuple[float, float]] = []
    try:
        for _ in range(count):
            with serving(gallery, "--port", str(port)):
                ready_at = time.perf_counter()
                time.sleep(SECONDS_UP)
                uptimes.append((ready_at, time.perf_counter()))
    finally:
        replies = [reply for client in clients for reply in client.stop()]
    due = Counter(status for sent_at, status in replies if any(start <= sent_at < end for start, end in uptimes))
    return due, len(replies) - due.total()


def main() -> int:
    """Run the checks, print them, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--images", type=Path, help="a folder of image files, bad ones among them")
    parser.add_argument("--strings", type=Path, help="a JSON list of strings")
    parser.add_argument("--restarts", type=int, default=0)
    options = parser.parse_args()
    with Gallery.open(options.gallery) as gallery:
        image_id = gallery.ids[0]
    rows, failed = [], False
    with serving(options.gallery) as (port, pid):
        if options.images:
            outcomes = send_images(port, sorted(path for path in options.images.rglob("*") if path.is_file()))
            rows.append(("images", f"{outcomes}; peak of memory {memory(pid, 'VmHWM'):.0f} MB"))
            failed |= outcomes.failed()
        if options.strings:
            outcomes = send_strings(port, json.loads(options.strings.read_text()), image_id)
            rows.append((f"strings in {', '.join(FIELDS)}", str(outcomes)))
            failed |= outcomes.failed()
    if options.restarts:
        due, others = restart_under_load(options.gallery, options.restarts, image_id)
        name = f"{options.restarts} restarts under {CLIENTS} clients"
        rows.append((name, f"{format_statuses(due)}; {others} sent while it was not ready"))
        failed |= set(due) != {200}
    print("| what | replies |\n|---|---|")
    print("\n".join(f"| {what} | {value} |" for what, value in rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
