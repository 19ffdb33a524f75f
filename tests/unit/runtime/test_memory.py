"""Many large images at once take no more memory than a few."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHILD = """
import sys
from nsfse_runtime import Gallery
from tests.galleries import ColourScorer, peak_mb

gallery = Gallery.open(sys.argv[1], ColourScorer(), create=True)
assert gallery.sync(sys.argv[2]).added == 8
print(peak_mb())
"""


@pytest.mark.slow
def test_eight_images_of_thirty_million_pixels_peak_below_700_mb(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(8):
        colour = np.random.default_rng(seed).integers(0, 256, 4).tolist()
        Image.new("RGBA", (6000, 5000), tuple(colour)).save(photos / f"{seed}.png", compress_level=1)
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{CHILD}"
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "g", photos], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 700
