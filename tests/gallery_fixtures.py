"""A folder of images, a gallery of it, and its scorer."""

from pathlib import Path

import pytest

from nsfse_runtime.gallery.gallery import Gallery
from tests.galleries import ColourScorer, save_images


@pytest.fixture
def scorer() -> ColourScorer:
    return ColourScorer()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_images(tmp_path / "photos", 25)
    return tmp_path / "photos"


@pytest.fixture
def gallery(tmp_path: Path, photos: Path, scorer: ColourScorer) -> Gallery:
    """A gallery of `photos`; the scorer's count starts after it."""
    gallery = Gallery.open(tmp_path / "shop.gallery", scorer, create=True)
    gallery.sync(photos)
    scorer.encoded = 0
    return gallery
