"""P6: an interrupted index encodes at most one batch again.

Seen to fail with one batch alone, committed at the end (the condition in `batches` of the reader as False).
"""

import threading
from pathlib import Path

import pytest

from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.report import SyncProgress
from nsfse_runtime.types import Pixels, TargetFeatures
from tests.galleries import ColourScorer
from tests.promises.counts import count


@pytest.mark.parametrize("batches", count([0, 2, 4], range(5)))
def test_an_index_stopped_after_any_batch_encodes_the_rest_alone(tmp_path: Path, photos: Path, batches: int) -> None:
    class Stopping(ColourScorer):
        def encode_images(self, pixels: Pixels) -> TargetFeatures:
            if self.encoded >= 5 * batches:
                self.encoded += len(pixels)
                raise KeyboardInterrupt  # a batch is encoded, and lost
            return super().encode_images(pixels)

    first, second = Stopping(), ColourScorer()
    with pytest.raises(KeyboardInterrupt), Gallery.open(tmp_path / "g", first, create=True) as gallery:
        gallery.sync(photos, batch=5)
    with Gallery.open(tmp_path / "g", second) as gallery:
        gallery.sync(photos, batch=5)
        assert len(gallery) == 25
    assert first.encoded + second.encoded <= 25 + 5


def test_an_interrupted_sync_goes_on_where_it_was(tmp_path: Path, photos: Path, scorer: ColourScorer) -> None:
    gallery = Gallery.open(tmp_path / "g", scorer, create=True)

    def interrupt(progress: SyncProgress) -> None:
        if progress.done >= 10:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        gallery.sync(photos, batch=5, progress=interrupt)
    assert threading.active_count() == threads
    gallery.refresh()
    assert len(gallery) == 10
    assert gallery.sync(photos, batch=5).encoded == 15 and len(gallery) == 25


def test_a_scorer_that_fails_leaves_whole_batches(tmp_path: Path, photos: Path) -> None:
    class Failing(ColourScorer):
        def encode_images(self, pixels: Pixels) -> TargetFeatures:
            if self.encoded >= 10:
                raise RuntimeError("out of memory")
            return super().encode_images(pixels)

    gallery = Gallery.open(tmp_path / "g", Failing(), create=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        gallery.sync(photos, batch=5)
    assert len(gallery) == 10
