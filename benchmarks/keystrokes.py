"""Time from a key press to the grid in its new order, in a real Chromium.

python benchmarks/keystrokes.py [GALLERY]       by default the drawings of nsfse demo and their model
python benchmarks/keystrokes.py --copies 250    each of the 400 drawings under 250 names: a gallery of 100,000

Each letter is a query of its own. Prints one JSON object, in ms. Times run from the key press to the new grid, and to
the frame that shows it; `server` is the part that the server reports.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))
from nsfse.demo.app import DRAWN, IMAGES, TABLE, open_gallery, unpack
from nsfse_runtime import Gallery, open_model
from tests.e2e.browsing import CHROMIUM, DRIVER, browsing, serving

PRESSES = 50
# What is there is known, so that every letter after it brings an answer.
BEGUN, TYPED = "make it red", " with stripes and long sleeves, not with a collar please"
WATCH = """
window.times = [];
const fetched = window.fetch;
window.fetch = async (...call) => {
  const reply = await fetched(...call);
  if (reply.ok) reply.clone().json().then(({ timings_ms }) => { window.timings = timings_ms; });
  return reply;
};
addEventListener("keydown", (event) => { window.pressed = event.timeStamp; }, true);
new MutationObserver(() => {
  const grid = performance.now() - window.pressed;
  requestAnimationFrame(() => setTimeout(() => {
    const server = window.timings.total + (window.timings.queue ?? 0);
    window.times.push({ grid, shown: performance.now() - window.pressed, server });
  }));
}).observe(document.querySelector("#grid"), { childList: true, subtree: true });
"""
WAIT = """
const [count, done] = arguments, end = performance.now() + 5000;
const look = () => {
  if (window.times.length >= count || performance.now() > end) done(window.times.length);
  else setTimeout(look, 5);
};
look();
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="From a key press to the grid in its new order.")
    parser.add_argument("gallery", nargs="?", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    if not (CHROMIUM and DRIVER):
        sys.exit("this needs chromium and chromedriver on the path")
    with open_or_make(options.gallery, options.copies) as gallery, serving(gallery) as address, browsing() as driver:
        with urlopen(f"{address}v1/images?limit=1") as reply:
            listed = json.load(reply)
        driver.get(f"{address}?id={quote(listed['images'][0]['id'])}&text={quote(BEGUN)}")
        print(json.dumps({"images": listed["total"], "presses": PRESSES, **measure(driver)}, indent=2))


@contextmanager
def open_or_make(gallery: Path | None, copies: int) -> Iterator[Path]:
    """Yield `gallery`, or a new one of the demo images, each under `copies` names; features are stored once."""
    if gallery is not None:
        yield gallery
        return
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), open_model(DRAWN.bundle, "cpu")
        if copies == 1:
            open_gallery(DRAWN, folder, model).close()
            yield DRAWN.gallery(folder)
            return
        unpack(DRAWN, folder)
        drawn = folder / DRAWN.name
        for image in list((drawn / IMAGES).iterdir()):
            for copy in range(1, copies):
                image.with_name(f"{copy:03}-{image.name}").hardlink_to(image)
        with Gallery.open(folder / "many.gallery", model, create=True) as many:
            many.sync(drawn / IMAGES, metadata=drawn / TABLE)
        yield folder / "many.gallery"


def measure(driver: Any) -> dict[str, Any]:
    """Type, one letter after the other's answer, and return median and 95th percentile."""
    from selenium.webdriver.common.by import By

    driver.set_script_timeout(10)
    driver.execute_async_script("const done = arguments[0]; setTimeout(done, 1500)")
    driver.execute_script(WATCH)
    field = driver.find_element(By.ID, "text")
    for count, letter in enumerate(TYPED[:PRESSES], 1):
        field.send_keys(letter)
        if driver.execute_async_script(WAIT, count) < count:
            sys.exit(f"no answer to letter {count} within 5 seconds")
    times = driver.execute_script("return window.times")
    return {f"{name}_ms": _summary([press[name] for press in times]) for name in ("grid", "shown", "server")}


def _summary(times: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(times), 1), "p95": round(statistics.quantiles(times, n=20)[-1], 1)}


if __name__ == "__main__":
    main()
