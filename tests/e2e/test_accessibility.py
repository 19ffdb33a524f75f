"""axe-core on the page in a real Chromium: no serious finding on any of its screens.

NSFSE_AXE names axe.min.js of the npm package axe-core, which `.ci/run` installs where there is npm.
"""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("selenium")
pytest.importorskip("starlette")
pytest.importorskip("onnxruntime")

from nsfse.demo import app
from nsfse_runtime import open_model
from tests.e2e.browsing import CHROMIUM, DRIVER, browsing, emulate_screen, serving

AXE = os.environ.get("NSFSE_AXE", "")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine"),
    pytest.mark.skipif(not Path(AXE).is_file(), reason="no axe-core: NSFSE_AXE names axe.min.js of its npm package"),
]

RUN = """
const done = arguments[0];
axe.run({ resultTypes: ["violations"] }).then(({ violations }) => done(violations.filter(
  ({ impact }) => ["serious", "critical"].includes(impact)).map(
  ({ id, nodes }) => [id, nodes.slice(0, 3).map(({ html, failureSummary }) => [html.slice(0, 200), failureSummary])])));
"""
OPEN = "document.querySelector('.tile .open').click()"
QUERY = "?id=test-000005.webp&text=make+it+red&edit=with+dots&not=test-000006.webp&without=belt"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    app.open_gallery(app.DRAWN, folder, open_model(app.DRAWN.bundle, "cpu")).close()
    with serving(app.DRAWN.gallery(folder)) as address, browsing() as driver:
        driver.address = address
        yield driver


@pytest.mark.parametrize(
    ("query", "action", "screen"),
    [
        ("", "", {}),
        (QUERY, "", {}),
        (QUERY, OPEN, {"dark": True}),
        ("?text=red+xyzzy&where.colour=none-such", "", {"dark": True}),
        (QUERY, "document.querySelector('#refine-toggle').click()", {"phone": True}),
        (QUERY, OPEN, {"phone": True}),
    ],
)
def test_axe_finds_nothing_serious(browser, query, action, screen):
    emulate_screen(browser, *((390, 844) if "phone" in screen else (1440, 900)), still=True, **screen)
    browser.get(browser.address + query)
    end = time.monotonic() + 60  # only ends what hangs
    while browser.execute_script("return document.querySelector('#grid').ariaBusy !== 'false'"):
        assert time.monotonic() < end, "no result"
        time.sleep(0.05)
    browser.execute_script(action)
    browser.execute_script(Path(AXE).read_text("utf-8"))
    browser.set_script_timeout(120)
    assert browser.execute_async_script(RUN) == []
