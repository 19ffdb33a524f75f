"""Syncs of a folder that say what is committed, until they are killed.

python gallery_child.py honest|early GALLERY FOLDER TABLE
"""

import os
import signal
import sys
import time
from pathlib import Path

from nsfse_runtime.gallery import sync
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.reader import ReadResult
from nsfse_runtime.gallery.report import SyncProgress
from nsfse_runtime.types import Pixels, TargetFeatures
from tests.galleries import ColourScorer


class SlowScorer(ColourScorer):
    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        time.sleep(0.004)  # so that more of the kills fall between commits
        return super().encode_images(pixels)


class DyingSync(sync._Sync):
    """A sync that kills itself at a statement of its last step."""

    last = -1

    def finish(self) -> None:
        statements = iter(range(self.last))

        def count(_: str) -> None:
            if next(statements, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        if self.last >= 0:
            self._store._connection.set_trace_callback(count)
        super().finish()


class EarlySync(sync._Sync):
    """The null control: a store that reports before it commits, and then waits for a line of stdin."""

    def commit(self, reads: list[ReadResult]) -> None:
        say(SyncProgress(0, 0, tuple(read.name for read in reads)))
        read_line()
        super().commit(reads)


def say(progress: SyncProgress) -> None:
    if progress.ids:
        os.write(1, ("\t".join(progress.ids) + "\n").encode())


def read_line() -> str:
    """Read a line of stdin and no byte more: the next process reads on."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line.decode()


def serve(store: str, path: Path, folder: Path, table: Path) -> None:
    """Run a sync for each line of stdin, in a process of its own; its id comes first, and "ended N" at its end.

    A line has the number of the statement of the last step at which the sync kills itself, or -1. N is 1 where a
    signal ended it.
    """
    while line := read_line():
        if (child := os.fork()) == 0:
            DyingSync.last = int(line)
            sync._Sync = EarlySync if store == "early" else DyingSync
            scorer = SlowScorer()
            Gallery.open(path, scorer, create=True).close()
            os.write(1, f"{os.getpid()}\n".encode())
            progress = say if store == "honest" else None
            sync.sync(path, folder, scorer, table, batch=4, progress=progress, allow_removals=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.write(1, f"\nended {int(os.WIFSIGNALED(status))}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], *map(Path, sys.argv[2:]))
