"""Take the images of the page in docs/images: python docs/shoot_page.py [GALLERY].

By default of the gallery that `make demo` left in demo/. Needs chromium and chromedriver on the path.
"""

import io
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.e2e.browsing import browsing, serving

IMAGES, MOST_BYTES = Path(__file__).with_name("images"), 300_000
RED = [("id", "test-000774.png"), ("text", "make it red")]
CHAIN = [("id", "test-000040.png"), ("text", "make it purple"), ("id", "test-000495.png"), ("text", "with dots")]
SHOTS: dict[str, tuple[list[tuple[str, str]], dict[str, Any]]] = {
    "page-start": ([], {}),
    "page": (CHAIN, {}),
    "page-dark": (RED, {"dark": True}),
    "page-phone": (RED, {"width": 390, "height": 844, "phone": True}),
}


def main() -> None:
    """Write one PNG for each of SHOTS."""
    gallery = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/easy.gallery")
    with serving(gallery) as address:
        for name, (steps, screen) in SHOTS.items():
            with browsing(**screen) as driver:
                driver.get(f"{address}?{urlencode(steps)}")
                time.sleep(2)  # images and movements
                if name == "page":
                    point_at_a_word(driver)
                shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            save(shot, IMAGES / f"{name}.png")


def save(shot: Image.Image, path: Path) -> None:
    """Write a PNG of at most MOST_BYTES, with as many shades as fit, the paper's own (its corner) among them."""
    paper = shot.getpixel((0, 0))
    for step in (1, 2, 4, 6, 8, 12, 16):
        shades = [
            min(255, max(0, tone + round((value - tone) / step) * step)) for tone in paper for value in range(256)
        ]
        shot.point(shades).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return


def point_at_a_word(driver: Any) -> None:
    """Hold the mouse over the last word of the first hit: the image shows where it is."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    word = driver.find_element(By.CSS_SELECTOR, ".tile").find_elements(By.CSS_SELECTOR, "button.word")[-1]
    ActionChains(driver).move_to_element(word).perform()
    time.sleep(1)


if __name__ == "__main__":
    main()
