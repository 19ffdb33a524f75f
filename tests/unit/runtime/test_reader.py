"""Images are decoded while others are encoded, in batches that the memory holds, and a sync tells how fast."""

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nsfse_runtime.errors import UsageError
from nsfse_runtime.gallery import reader, sync
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.types import Pixels, TargetFeatures
from tests.galleries import PLAIN_INFO, ColourScorer, save_images


def test_the_next_batch_is_decoded_while_one_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, whole = [], threading.Event()
    load = reader.decode.load_image

    def counted(stream: object, size: tuple[int, int]) -> Pixels:
        pixels = load(stream, size)
        decoded.append(1)
        if len(decoded) == 40:
            whole.set()
        return pixels

    class Waiting(ColourScorer):
        def encode_images(self, pixels: Pixels) -> TargetFeatures:
            assert whole.wait(200), f"only {len(decoded)} images are decoded while the first 20 are encoded"
            return super().encode_images(pixels)

    monkeypatch.setattr(reader.decode, "load_image", counted)
    save_images(tmp_path / "photos", 60)
    gallery = Gallery.open(tmp_path / "g", Waiting(), create=True)
    assert gallery.sync(tmp_path / "photos", batch=20, workers=1).encoded == 60


def test_batches_shrink_with_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for free in (20_000_000_000, 1_000_000_000, 200_000_000, 0):
        monkeypatch.setattr(reader, "available_memory", lambda free=free: free)
        sizes.append(reader.default_batch_size((224, 224)))
    assert sizes == [64, 17, 3, 1]
    monkeypatch.setattr(reader, "available_memory", lambda: 1_000_000_000)
    assert reader.default_batch_size((96, 128)) == 64


def test_a_sync_tells_its_device_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0, 2.5)
    monkeypatch.setattr(sync, "time", SimpleNamespace(perf_counter=lambda: next(seconds), time_ns=time.time_ns))
    save_images(tmp_path / "photos", 12)
    scorer = ColourScorer()
    scorer.info = replace(PLAIN_INFO, device="cuda")
    gallery = Gallery.open(tmp_path / "g", scorer, create=True)
    report = gallery.sync(tmp_path / "photos", workers=3, batch=5)
    assert (report.device, report.workers, report.batch, report.ann) == ("cuda", 3, 5, None)
    assert (report.seconds, report.images_per_second) == (2.5, 4.8)
    for wrong in ({"workers": 0}, {"batch": 0}):
        with pytest.raises(UsageError, match="give 1 or more"):
            gallery.sync(tmp_path / "photos", **wrong)
