"""A folder of malformed files among good images: each is indexed or listed, none takes long, memory stays bounded."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.galleries import save_image, save_images

ARCHIVE = Path(os.environ.get("NSFSE_BAD_IMAGES", Path(__file__).parents[3] / "../shared/data/bad-images.tar.gz"))
pytestmark = pytest.mark.skipif(not ARCHIVE.exists(), reason=f"no malformed images at {ARCHIVE} (set NSFSE_BAD_IMAGES)")

CHILD = """
import json, sys, time
from pathlib import Path
from nsfse_runtime import Gallery
from nsfse_runtime.images import decode
from nsfse_runtime.images.pillow_warnings import ignore_pillow_warnings
from tests.galleries import ColourScorer, peak_mb

ignore_pillow_warnings()  # as the command line does
slowest, load = [0.0], decode.load_image
def timed(stream, size):
    began = time.thread_time()
    try:
        return load(stream, size)
    finally:
        slowest[0] = max(slowest[0], time.thread_time() - began)
began = time.thread_time()
decode.decode_image(sys.argv[3])
yardstick = time.thread_time() - began
decode.load_image = timed
gallery = Gallery.open(sys.argv[1], ColourScorer(), create=True)
first = gallery.sync(sys.argv[2])
second = gallery.sync(sys.argv[2])
print(json.dumps({"ids": gallery.ids, "failed": first.failed, "again": second.failed, "encoded": second.encoded,
                  "slowest": slowest[0] / yardstick, "peak": peak_mb()}))
"""


def test_each_malformed_file_is_indexed_or_listed_with_a_reason(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    good = save_images(photos, 200)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(photos / "bad", filter="data")
    large = save_image(tmp_path / "large.png", 0, (4000, 3000))
    files = {
        str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file() and not path.name.startswith(".")
    }
    assert len(files) > len(good) + 100
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{CHILD}", tmp_path / "g", photos, large],
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stderr == "", "a library warned on the user's terminal"
    found = json.loads(run.stdout)
    failed = dict(found["failed"])
    assert set(found["ids"]) | set(failed) == files and not set(found["ids"]) & set(failed)
    assert set(good) <= set(found["ids"])
    assert all(reason and "\n" not in reason for reason in failed.values())
    assert sorted(found["again"]) == sorted(found["failed"]) and found["encoded"] == 0
    # In processor time of a good PNG of 12 megapixels: no clock of the wall, and no machine, decides.
    assert found["slowest"] < 25 and found["peak"] < 700
