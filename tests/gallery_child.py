"""Sync a folder and say what is committed, until killed: python gallery_child.py GALLERY FOLDER honest|early."""

import os
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


class EarlySync(sync._Sync):
    """The null control: a store that reports before it commits, and then waits for a line of stdin."""

    def commit(self, reads: list[ReadResult]) -> None:
        say(SyncProgress(0, 0, tuple(read.name for read in reads)))
        sys.stdin.readline()
        super().commit(reads)


def say(progress: SyncProgress) -> None:
    if progress.ids:
        os.write(1, ("\t".join(progress.ids) + "\n").encode())


if __name__ == "__main__":
    _, path, folder, store = sys.argv
    scorer = SlowScorer()
    gallery = Gallery.open(path, scorer, create=True)
    if store == "early":
        sync._Sync = EarlySync
    os.write(1, b"ready\n")
    sync.sync(Path(path), Path(folder), scorer, batch=4, progress=say if store == "honest" else None)
