"""Take the image of the page in docs/images, of the demo's gallery: python docs/shoot_page.py.

Needs chromium and chromedriver on the path. Photos are indexed where `nsfse demo` has not done it yet.
"""

import io
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))
from nsfse.demo.app import PHOTOS, demo_folder, open_gallery
from nsfse_runtime import open_model
from tests.e2e.browsing import browsing, serving

FILE, MOST_BYTES = Path(__file__).parent / "images" / "page.png", 300_000
STEPS = [("id", "dress-001.avif"), ("text", "in black")]

LOADED = "return document.images.length > 20 && [...document.images].every((image) => image.complete)"


def main() -> None:
    """Write the image of one query."""
    folder = demo_folder()
    open_gallery(PHOTOS, folder, open_model(PHOTOS.bundle)).close()
    with serving(PHOTOS.gallery(folder), PHOTOS.name) as address, browsing() as driver:
        driver.get(f"{address}?{urlencode(STEPS)}")
        while not driver.execute_script(LOADED):
            time.sleep(0.5)
        time.sleep(3)  # movements
        save(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))


def save(shot: Image.Image) -> None:
    """Write a PNG of at most MOST_BYTES, with as many shades as fit, the background's own among them."""
    background = shot.getpixel((0, 0))
    for step in (1, 2, 4, 6, 8, 12, 16):
        shades = [
            min(255, max(0, tone + round((value - tone) / step) * step)) for tone in background for value in range(256)
        ]
        shot.point(shades).save(FILE, optimize=True)
        if FILE.stat().st_size <= MOST_BYTES:
            return


if __name__ == "__main__":
    main()
