"""The page in a real Chromium, against a real server with the drawings of `nsfse demo` and their model.

NSFSE_PAGE_BUNDLE names another bundle, and NSFSE_PAGE_CATALOGUE a query set of the drawn easy level for it.
"""

import base64
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytest.importorskip("selenium")
pytest.importorskip("starlette")
pytest.importorskip("onnxruntime")
pytest.importorskip("urllib3")

import urllib3
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from nsfse.demo import app
from nsfse_runtime import Gallery, open_model
from tests.e2e.browsing import CHROMIUM, DRIVER, browsing, emulate_screen, serving

BROWSER = bool(CHROMIUM and DRIVER)
if not BROWSER and os.environ.get("CI") == "true":
    pytest.fail("no chromium and chromedriver: apt-get install chromium chromium-driver", pytrace=False)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium and chromedriver on this machine")

HOSTILE = "'><img src=x onerror=\"document.body.id='caught'\"><b>.png"
COLUMNS = ("id", "category", "colour", "pattern", "length", "detail")
DROP = """
const dataTransfer = new DataTransfer();
for (const [name, type, data] of arguments[0]) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  dataTransfer.items.add(new File([bytes], name, { type }));
}
window.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
"""

# How dark the middle of each cell is. The images are square, and the model saw them padded to its own aspect.
VEIL = """
const [tile, rows, columns] = arguments, canvas = tile.querySelector("canvas"), { width, height } = canvas;
const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
const cell = Math.max(width, height * columns / rows) / columns;
const inside = (value, most) => Math.round(Math.min(Math.max(value, 1), most - 2));
return Array.from({ length: rows * columns }, (_, at) => {
  const x = inside(width / 2 + (at % columns + 0.5 - columns / 2) * cell, width);
  const y = inside(height / 2 + (Math.floor(at / columns) + 0.5 - rows / 2) * cell, height);
  return data[4 * (y * width + x) + 3];
});
"""


class Shop:
    """A folder of drawn images, their attributes, and the gallery over them."""

    def __init__(self, folder, bundle, catalogue=None):
        model = open_model(bundle, "cpu")
        if not catalogue:
            app.unpack(app.DRAWN, folder)
        images = catalogue or folder / app.DRAWN.name
        self.images, self.path = images / "images", folder / "shop.gallery"
        with (images / "items.csv").open(encoding="utf-8") as file:
            rows = [(row["file"].split("/")[-1], *(row[name] for name in COLUMNS[1:])) for row in csv.DictReader(file)]
        if not catalogue:
            with Image.open(self.images / rows[0][0]) as image:  # mirrored: a copy of the reference is no hit
                image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(self.images / HOSTILE)
            rows.append((HOSTILE, *rows[0][1:]))
        table = folder / "shelf.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        self.truth = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}
        with Gallery.open(self.path, model, create=True) as gallery:
            gallery.sync(self.images, metadata=table)

    def ids(self, **about):
        return [name for name, truth in self.truth.items() if about.items() <= truth.items()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    bundle, catalogue = (os.environ.get(f"NSFSE_PAGE_{name}") for name in ("BUNDLE", "CATALOGUE"))
    folder = tmp_path_factory.mktemp("shop")
    return Shop(folder, bundle or app.DRAWN.bundle, Path(catalogue) if catalogue else None)


@pytest.fixture(scope="module")
def browser(shop):
    with serving(shop.path, "shelf", "--deadline", "300") as address, browsing() as driver:
        driver.address = address
        yield driver


class Page:
    """The page as a user sees it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, query=""):
        self.driver.get(self.driver.address + query)
        self.settle()
        return self

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def script(self, text, *values):
        return self.driver.execute_script(text, *values)

    def wait(self, met, about="what was expected"):
        end = time.monotonic() + 300  # only ends what hangs
        while time.monotonic() < end:
            if found := met():
                return found
            time.sleep(0.02)
        raise AssertionError(f"{about} did not happen: {self.one('#headline').text!r}, {self.one('#hint').text!r}")

    def settle(self):
        """Wait until the last query is answered and shown."""
        self.wait(lambda: self.script("return document.querySelector('#grid').ariaBusy === 'false'"), "a result")

    @property
    def ids(self):
        """The first page of hits; a pointer that goes to one of the last rows brings more."""
        return self.all_ids[:24]

    @property
    def all_ids(self):
        return self.script("return [...document.querySelectorAll('.tile')].map((tile) => tile.dataset.id)")

    @property
    def steps(self):
        query = urlsplit(self.driver.current_url).query
        return len([name for name in query.split("&") if name.startswith(("id=", "upload="))])

    @property
    def sentences(self):
        """Each hit's words: (word, class), of the first page of hits."""
        return self.script(
            "return [...document.querySelectorAll('.tile')].slice(0, 24).map((tile) =>"
            " [...tile.querySelectorAll('.word')].map((word) => [word.textContent, word.classList[1]]))"
        )

    def type(self, text):
        self.one("#text").send_keys(text)
        self.settle()

    def drop_files(self, *files):
        self.script(DROP, [(name, kind, base64.b64encode(data).decode()) for name, kind, data in files])

    def drop(self, path):
        self.drop_files(("mine.png", "image/png", path.read_bytes()))
        self.wait(lambda: self.steps == 1, "a dropped image")
        self.settle()

    def press(self, element):
        ActionChains(self.driver).move_to_element(element).click().perform()
        self.settle()

    def open_hit(self, index):
        self.press(self.all(".tile .open")[index])
        self.wait(lambda: self.one("#viewer").is_displayed(), "the hit opened")

    def search_from(self, index):
        self.open_hit(index)
        self.press(self.one("#viewer .search-from"))

    def like(self, index, label):
        def shown():
            ActionChains(self.driver).move_to_element(self.all(".tile .open")[index]).perform()
            buttons = self.all(".tile")[index].find_elements(By.CSS_SELECTOR, ".likes button")
            return [each for each in buttons if each.text == label]

        [button] = self.wait(shown, "the button under the pointer")
        self.press(button)


@pytest.fixture
def page(browser):
    browser.get_log("browser")
    yield Page(browser)
    emulate_screen(browser, 1440, 900)
    # A refused half word is logged by Chromium itself; everything else, a breach of the policy too, is a fault.
    logged = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    refused = ("/v1/query", "/v1/images")
    faults = [e for e in logged if not (e["source"] == "network" and any(path in e["message"] for path in refused))]
    assert faults == []
    assert browser.execute_script("return document.body.id") == ""


def query_server(address, *fields, k=24):
    reply = urllib3.request("POST", f"{address}v1/query", fields=[*fields, ("k", str(k))])
    assert reply.status == 200, reply.data
    return reply.json()


def verdicts(hit):
    return [
        [
            item["word"],
            "neutral"
            if abs(item["weight"]) * len(hit["evidence"]) < 0.5
            else "matched"
            if item["matched"]
            else "mismatched",
        ]
        for item in hit["evidence"]
    ]


def plain(shop):
    """Return an image that is not red."""
    return next(name for name, truth in shop.truth.items() if truth["colour"] != "red" and name != HOSTILE)


def test_a_search_starts_from_a_sample_of_the_gallery(page, shop):
    page.open()
    sample = page.ids
    assert len(sample) == 24 == len(set(sample)) and set(sample) <= set(shop.truth)
    page.press(page.one(".tile .open"))
    assert page.steps == 1 and parse_qs(urlsplit(page.driver.current_url).query)["id"] == sample[:1]
    assert sample[0] not in page.ids and len(page.ids) == 24
    assert page.ids == [
        hit["id"] for hit in query_server(page.driver.address, ("reference_ids", sample[0]), ("balance", "0"))["hits"]
    ]


def test_words_alone_find_images_and_a_hit_goes_on_from_there(page):
    page.open().type("red")
    assert page.ids == [hit["id"] for hit in query_server(page.driver.address, ("texts", "red"))["hits"]]
    assert page.one("#headline").text == "Nearest first"
    page.wait(lambda: page.driver.current_url.endswith("?text=red"), "the words in the address")
    assert not page.one("#extra-images").is_displayed()
    first = page.ids[0]
    page.search_from(0)
    assert page.steps == 1 and first not in page.ids
    page.open().type("red")
    page.one("#text").clear()
    page.type(" ")
    assert len(page.ids) == 24 and "text=" not in page.driver.current_url


def test_a_dropped_image_and_a_text_show_the_hits_of_the_server(page, shop):
    path = shop.images / plain(shop)
    page.open().drop(path)
    page.script(
        "window.fewest = 99; new MutationObserver(() => { window.fewest = Math.min(window.fewest,"
        " document.querySelectorAll('.tile').length); }).observe(document.querySelector('#grid'), { childList: true })"
    )
    page.type("make it red")
    fields = [("reference_images", ("mine.png", path.read_bytes())), ("texts", "make it red")]
    result = query_server(page.driver.address, *fields)
    assert page.ids == [hit["id"] for hit in result["hits"]]
    assert page.sentences == [verdicts(hit) for hit in result["hits"]]
    for word in page.all(".word.mismatched"):
        assert word.find_element(By.TAG_NAME, "s").get_property("textContent")
    assert page.script("return window.fewest") == 24, "the grid was empty between two answers"
    assert page.one("#speed").text == "Timing"
    page.press(page.one("#speed summary"))
    assert "ms on cpu" in page.one("#speed").text


def test_red_images_come_first(page, shop):
    def else_alike(name):
        return {**shop.truth[name], "id": "", "colour": "red"}

    reds = [else_alike(name) for name in shop.ids(colour="red")]
    others = [name for name, truth in shop.truth.items() if truth["colour"] != "red" and else_alike(name) in reds]
    for name in others[:: len(others) // 5]:
        page.open().drop(shop.images / name)
        page.type("make it red")
        hits = [hit for hit in page.ids if hit != name]  # the dropped image itself is in the gallery
        assert all(else_alike(name) == {**shop.truth[hit], "id": ""} for hit in hits[:2]), name
        assert page.sentences[page.ids.index(hits[0])][-1] == ["red", "matched"]
        assert "match" in page.one("#headline").text


def test_unread_words_are_listed_and_corrected_by_a_click(page, shop):
    def notes():
        return [line.text for line in page.all("#unread li")]

    page.open(f"?{urlencode([('id', plain(shop)), ('edit', 'xyzzy with dots'), ('text', 'make it redd')])}")
    assert page.sentences[0][0] == ["xyzzy", "unread"] and page.sentences[0][-1] == ["redd", "unread"]
    assert page.one("#headline").text == "Nearest first" and not page.all(".tile.match")
    page.wait(lambda: notes() == ["unknown word: xyzzy", "unknown word: redd did you mean red?"], "two unknown words")
    page.press(page.one("#unread button"))
    assert page.one("#text").get_property("value") == "make it red" and page.sentences[0][-1][0] == "red"
    page.wait(lambda: notes() == ["unknown word: xyzzy"], "one unknown word")
    page.press(page.one("#edits button"))
    page.wait(lambda: not page.one("#unread").is_displayed(), "nothing unread")
    assert "match" in page.one("#headline").text
    page.open(f"?{urlencode([('id', plain(shop)), ('text', 'red ' * 24 + 'in blue')])}")
    assert page.sentences[0][-2:] == [["in", "unread"], ["blue", "unread"]]
    page.wait(lambda: notes() == ["not read, after the first 24 words: in blue"], "words beyond the limit")


def test_without_stands_before_the_negative_texts(page, shop):
    page.open(f"?{urlencode([('id', plain(shop)), ('text', 'make it red'), ('without', 'long sleeves, belt')])}")
    page.wait(lambda: page.one(".evidence").text, "the words of the first hit")
    assert page.one(".evidence").text.replace(" ✓", "").startswith("make it red without long sleeves belt")


def test_a_hit_becomes_the_next_reference_and_back(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    before, hit = page.ids, page.ids[2]
    page.search_from(2)
    assert page.steps == 2 and page.one("#text").get_property("value") == "" and hit not in page.ids
    page.type("in blue")
    after = page.ids
    assert [element.text for element in page.all("#steps .step-text")] == ["make it red", "in blue"]
    page.wait(lambda: "in+blue" in page.driver.current_url, "the words in the address")
    page.driver.refresh()
    page.settle()
    assert page.ids == after and page.one("#text").get_property("value") == "in blue"
    page.driver.back()
    page.wait(lambda: page.steps == 1, "the step before")
    page.settle()
    assert page.ids == before and page.one("#text").get_property("value") == "make it red"
    page.driver.forward()
    page.wait(lambda: page.steps == 2, "the step after")
    page.settle()
    page.press(page.one("#steps button"))
    assert page.ids == before and page.steps == 1


def test_filters_show_only_images_with_the_value(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    page.press(page.one("[data-column=colour] summary"))
    page.press(page.one("[data-column=colour] label"))
    [colour] = parse_qs(urlsplit(page.driver.current_url).query)["where.colour"]
    assert page.ids and {shop.truth[name]["colour"] for name in page.ids} == {colour}
    assert page.one("[data-column=colour] summary").text == f"colour: {colour}"
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    assert not page.all("details[open]")
    page.driver.back()
    page.settle()
    assert len(page.ids) == 24


def test_a_hit_is_excluded_until_it_is_allowed_again(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    before = page.ids
    page.like(0, "less like this")
    reply = query_server(
        page.driver.address, ("reference_ids", plain(shop)), ("texts", "make it red"), ("negative_ids", before[0])
    )
    assert page.ids == [hit["id"] for hit in reply["hits"]] and before[0] not in page.ids
    assert parse_qs(urlsplit(page.driver.current_url).query)["not"] == before[:1]
    page.press(page.one("#negative-images button"))
    assert page.ids == before
    page.one("#negative-text").send_keys("stripes")
    page.settle()
    reply = query_server(
        page.driver.address, ("reference_ids", plain(shop)), ("texts", "make it red"), ("negative_texts", "stripes")
    )
    assert page.ids == [hit["id"] for hit in reply["hits"]]


def test_several_images_and_texts_are_one_query(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    other = page.ids[3]
    page.one("#text").send_keys(Keys.SHIFT + Keys.ENTER)
    page.type("with dots")
    page.like(page.ids.index(other), "more like this")
    fields = [("reference_ids", plain(shop)), ("reference_ids", other)]
    fields += [("texts", "make it red"), ("texts", "with dots")]
    result = query_server(page.driver.address, *fields)
    assert page.ids == [hit["id"] for hit in result["hits"]] and other not in page.ids
    assert page.sentences == [verdicts(hit) for hit in result["hits"]]
    query = parse_qs(urlsplit(page.driver.current_url).query)
    assert (query["and-like"], query["edit"], query["text"]) == ([other], ["make it red"], ["with dots"])
    page.driver.refresh()
    page.settle()
    assert page.ids == [hit["id"] for hit in result["hits"]]
    assert [element.text for element in page.all("#edits button")] == ["make it red"]
    assert page.one("#extra-images ul button").get_attribute("aria-label") == f"remove {other}"
    page.press(page.one("#extra-images ul button"))
    page.press(page.one("#edits button"))
    reply = query_server(page.driver.address, ("reference_ids", plain(shop)), ("texts", "with dots"))
    assert page.ids == [hit["id"] for hit in reply["hits"]] and not page.all("#edits button, #extra-images ul button")


def test_the_slider_goes_from_the_image_to_the_text(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    for at, balance in ((0, "0"), (2, "1")):
        page.press(page.all(".balance-ends button")[at])
        reply = query_server(
            page.driver.address, ("reference_ids", plain(shop)), ("texts", "make it red"), ("balance", balance)
        )
        assert page.ids == [hit["id"] for hit in reply["hits"]]
        assert page.one("#balance").get_attribute("aria-valuetext") == page.all(".balance-ends button")[at].text


def test_a_late_result_does_not_replace_a_newer_one(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    page.script(
        "const fetched = window.fetch; window.fetch = async (...request) => {"
        " if (!window.release) await new Promise((go) => { window.release = go; }); return fetched(...request); }"
    )
    like_image, _, like_words = page.all(".balance-ends button")
    like_image.click()
    page.press(like_words)
    newest = page.ids
    page.script("window.release()")
    time.sleep(0.4)
    assert page.ids == newest
    page.press(like_image)
    assert page.ids != newest


def test_a_word_shows_its_heatmap(page, shop):
    evidences = (
        (text, reply["grid"], at, hit["evidence"][-1])
        for text in ("make it red", "with dots", "with stripes")
        for fields in [(("reference_ids", plain(shop)), ("texts", text), ("heatmaps", "1"))]
        for reply in [query_server(page.driver.address, *fields)]
        for at, hit in enumerate(reply["hits"])
    )
    # A word may be found in an image as a whole, and in none of its parts.
    text, (rows, columns), at, evidence = next(item for item in evidences if max(item[-1]["regions"]) > 0)
    page.open(f"?{urlencode({'id': plain(shop), 'text': text})}")
    tile = page.all(".tile")[at]
    word = tile.find_elements(By.CSS_SELECTOR, "button.word")[-1]
    ActionChains(page.driver).move_to_element(word).perform()
    page.wait(lambda: "highlighted" in tile.get_attribute("class"), "the heatmap")
    assert tile.find_element(By.CSS_SELECTOR, ".heatmap-caption").get_property("textContent") == evidence["word"]
    # The veil is thinnest in the cell that the server says has the most of the word.
    veil = page.script(VEIL, tile, rows, columns)
    regions = evidence["regions"]
    assert veil[regions.index(max(regions))] == min(veil) < max(veil)
    ActionChains(page.driver).move_to_element(page.one("#headline")).perform()
    page.wait(lambda: "highlighted" not in tile.get_attribute("class"), "the image as it was")


def test_the_keyboard_reaches_everything(page, shop):
    def keys(*pressed):
        ActionChains(page.driver).send_keys(*pressed).perform()

    page.open(f"?id={plain(shop)}")
    keys("/")
    keys("in red")
    page.settle()
    keys(Keys.ENTER)
    ids, focus = page.ids, "return document.activeElement.closest('.tile')?.dataset.id"
    assert page.script(focus) == ids[0]
    columns = page.script(
        "return getComputedStyle(document.querySelector('#grid')).gridTemplateColumns.split(' ').length"
    )
    keys(Keys.ARROW_RIGHT)
    assert page.script(focus) == ids[1]
    tops = page.script("return [...document.querySelectorAll('.tile')].map((tile) => tile.offsetTop)")
    keys(Keys.ARROW_DOWN)
    below = ids.index(page.script(focus))
    assert tops[below] == min(top for top in tops if top > tops[1]) and below <= 1 + columns
    keys(Keys.ARROW_UP, Keys.HOME, "-")
    page.settle()
    assert ids[0] not in page.ids and page.script(focus) == page.ids[0]
    keys(Keys.ARROW_RIGHT, "+")
    page.settle()
    added = parse_qs(urlsplit(page.driver.current_url).query)["and-like"][0]
    assert added in ids and added not in page.ids
    keys(Keys.HOME)
    hit = page.script(focus)
    keys(Keys.ENTER)
    page.wait(lambda: page.one("#viewer").is_displayed(), "the hit opened")
    keys(Keys.ENTER)
    page.wait(lambda: page.steps == 2, "the next step")
    page.settle()
    assert hit not in page.ids


def test_a_hit_opens_beside_the_reference(page, shop):
    def keys(*pressed):
        ActionChains(page.driver).send_keys(*pressed).perform()

    page.open(f"?id={plain(shop)}&text=make+it+red")
    title, ids = page.one("#viewer-title"), page.ids
    fields = [("reference_ids", plain(shop)), ("texts", "make it red"), ("heatmaps", "1")]
    reply = query_server(page.driver.address, *fields)
    page.open_hit(1)
    assert title.text == ids[1] and page.one("#viewer .rank").text == f"2 of {reply['total']}"
    names = [image.get_attribute("alt") for image in page.all("#viewer .sheet img")]
    assert names == [plain(shop), ids[1]]
    assert "cut" in page.one(".compared-hit figcaption").text
    words = (
        "return [...document.querySelectorAll('.compared-reference .word')]"
        ".map((word) => [word.textContent, word.classList[1]])"
    )
    page.wait(lambda: page.script(words), "the words in the reference")
    assert page.script(words) == verdicts({"evidence": reply["references"][0]})
    ActionChains(page.driver).move_to_element(page.all(".compared-hit button.word")[-1]).perform()
    page.wait(lambda: "highlighted" in page.one("#viewer").get_attribute("class"), "the heatmaps")
    keys(Keys.ARROW_RIGHT)
    page.wait(lambda: title.text == ids[2], "the next hit")
    wide = "return document.querySelector('.compared-hit .sheet').getBoundingClientRect().width"
    before = page.script(wide)
    page.one("#viewer .zoom-in").click()
    page.wait(lambda: page.script(wide) > 1.4 * before, "the zoom")
    assert page.one(".open-image").get_attribute("href").endswith("gallery=shelf")
    page.script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.one(".copy-path").click()
    page.wait(lambda: page.script("return window.copied") == ids[2], "the copied path")
    keys(Keys.ESCAPE)
    page.wait(lambda: not page.one("#viewer").is_displayed(), "the closed hit")
    assert page.script("return document.activeElement.closest('.tile').dataset.id") == ids[2]
    assert page.ids == ids and page.steps == 1


def test_more_hits_come_on_scrolling(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    assert len(page.ids) == 24
    page.script("document.querySelector('#show-more').scrollIntoView()")
    page.wait(lambda: len(page.all_ids) >= 48, "the next hits")
    fields = [("reference_ids", plain(shop)), ("texts", "make it red")]
    pages = [query_server(page.driver.address, *fields, ("offset", str(offset)))["hits"] for offset in (0, 24)]
    assert page.all_ids[:48] == [hit["id"] for hits in pages for hit in hits]


def test_a_file_that_is_no_image_is_told_where_it_was_dropped(page, shop):
    page.open().drop_files(("notes.txt", "text/plain", b"red"))
    page.wait(lambda: "notes.txt is not an image" in page.one("#problem").text, "the problem")
    assert page.steps == 0 and not page.one("#reference-image").is_displayed()
    page.drop_files(("broken.png", "image/png", b"not a PNG"))
    page.wait(
        lambda: "not an image" in page.one("#problem").text and "notes" not in page.one("#problem").text, "the problem"
    )
    page.settle()
    assert page.steps == 0 and page.one("#text").get_attribute("placeholder").startswith("Describe it")


def test_filters_that_leave_nothing_are_removed(page):
    page.open("?text=red&where.colour=red&where.colour=blue&where.category=none-such")
    assert page.one("#headline").text == "No image passes the filters" and page.ids == []
    page.press(page.one("#notice button"))
    assert len(page.ids) == 24 and "where" not in page.driver.current_url


def test_a_server_that_is_gone_fades_the_hits_and_is_tried_again(page, shop):
    page.open(f"?id={plain(shop)}&text=make+it+red")
    before = page.ids
    page.script("window.fetched = window.fetch; window.fetch = async () => { throw new TypeError('gone'); }")
    page.type(" please")
    page.wait(lambda: "does not answer" in page.one("#notice").text, "the notice")
    assert page.ids == before and "gone" in page.one("body").get_attribute("class")
    page.script("window.fetch = window.fetched")
    page.press(page.one("#notice button"))
    page.wait(lambda: "gone" not in page.one("body").get_attribute("class"), "the server's return")
    assert not page.one("#notice").is_displayed() and len(page.ids) == 24


def test_the_browsers_language_is_spoken(page, shop):
    agent = page.script("return navigator.userAgent")
    languages = "Emulation.setUserAgentOverride"
    page.driver.execute_cdp_cmd(languages, {"userAgent": agent, "acceptLanguage": "de-AT,en"})
    try:
        page.open(f"?id={plain(shop)}&text=make+it+red")
        assert page.one("html").get_attribute("lang") == "de"
        assert re.search("Treffer|Nichts passt", page.one("#headline").text)  # by the confidence of the first hits
        assert page.one("#copy-curl").text == "Als curl kopieren"
    finally:
        page.driver.execute_cdp_cmd(languages, {"userAgent": agent, "acceptLanguage": "en-US"})


def test_an_empty_gallery_takes_the_images_that_are_dropped(page, shop, tmp_path):
    token, images = "a token of the test 0123", sorted(shop.images.iterdir())[:2]
    key, gallery, folder = tmp_path / "token", tmp_path / "new.gallery", tmp_path / "images"
    key.write_text(token.replace(" ", "-"))
    key.chmod(0o600)
    folder.mkdir()
    with Gallery.open(gallery, open_model(app.DRAWN.bundle, "cpu"), create=True) as empty:
        empty.sync(folder)
    headers = {"headers": {"Authorization": f"Bearer {key.read_text()}"}}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", headers)
    try:
        with serving(gallery, "new", "--token-file", str(key)) as address:
            page.driver.get(address)
            page.settle()
            assert page.one("#headline").text == "This gallery is empty" and "Drop images" in page.one("#lead").text
            files = [(f"image-{number}.png", "image/png", path.read_bytes()) for number, path in enumerate(images)]
            page.drop_files(*files, ("notes.txt", "text/plain", b"red"), ("bad.png", "image/png", b"bad"))
            page.wait(lambda: page.one("#adding-title").text == "Add 3 images to “new”?", "the question")
            page.one("#adding .add").click()
            page.wait(lambda: "2 added, 0 known already, 1 refused" in page.one("#adding-title").text, "the images")
            assert "bad.png" in page.one("#adding .refused").text
            page.press(page.one("#adding .close"))
            page.wait(lambda: sorted(page.ids) == ["image-0.png", "image-1.png"], "the new images")
            page.driver.get("about:blank")
    finally:
        page.driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {}})


def test_a_missing_image_is_explained(page, shop):
    page.open().drop(shop.images / plain(shop))
    before, address = page.ids, page.driver.current_url
    page.driver.refresh()
    page.settle()
    assert page.ids == before, "the tab keeps the image"
    page.script("sessionStorage.clear()")
    page.driver.get(address)
    page.settle()
    assert page.one("#headline").text == "Your image is not available" and len(page.ids) == 24
    page.press(page.one(".tile .open"))
    assert page.steps == 1 and "upload" not in page.driver.current_url
    page.open("?id=gone.png&text=make+it+red")
    assert page.one("#headline").text == "This image is not in the gallery" and len(page.ids) == 24
    # The browser logs by itself that the image and its query were not found.
    assert {entry["source"] for entry in page.driver.get_log("browser")} <= {"network"}


def test_copied_snippets_run_and_find_the_same(page, shop):
    more = f"and-like={next(name for name in shop.truth if name not in (plain(shop), HOSTILE))}&edit=with+dots"
    page.open(f"?id={plain(shop)}&{more}&text=make+it+red&without=it%27s+%24HOME+stripes&balance=0.7")
    page.script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    snippets = []
    for name in ("curl", "python"):
        page.press(page.one(f"#copy-{name}"))
        snippets.append(page.script("return window.copied"))
    output = subprocess.run(["bash", "-c", snippets[0]], capture_output=True, text=True, check=True).stdout
    assert [hit["id"] for hit in json.loads(output)["hits"]] == page.ids
    code = subprocess.run([sys.executable, "-c", snippets[1]], capture_output=True, text=True, check=True).stdout
    assert [line.rsplit(" ", 2)[0] for line in code.splitlines()] == page.ids


def test_file_names_are_shown_as_text(page, shop):
    if HOSTILE not in shop.truth:
        pytest.skip("this gallery has no hostile name")
    page.open(f"?id={plain(shop)}")
    for _ in range(2):
        if HOSTILE in page.ids:
            break
        page.open(f"?id={plain(shop)}&where.colour={shop.truth[HOSTILE]['colour']}")
    tile = page.all(".tile")[page.ids.index(HOSTILE)]
    assert tile.find_element(By.TAG_NAME, "bdi").get_property("textContent") == HOSTILE
    page.open_hit(page.ids.index(HOSTILE))
    assert page.one("#viewer-title").text == HOSTILE
    page.press(page.one("#viewer .search-from"))
    assert page.script("return document.querySelector('#reference-image').naturalWidth") == 160


def test_the_content_security_policy_is_strict(page):
    page.open()
    reply = urllib3.request("GET", page.driver.address)
    policy = reply.headers["Content-Security-Policy"]
    for rule in ("default-src 'self'", "object-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in policy


def test_every_control_has_a_name_and_fits_on_a_phone(page, shop):
    query_of_all = f"?id={plain(shop)}&and-like={plain(shop)}&edit=in+blue&text=make+it+red"
    page.open(f"{query_of_all}&not={plain(shop)}")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "textbox", "slider", "checkbox", "DisclosureTriangle", "image", "navigation", "region"}
    named = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(named) > 70 and not [node for node in named if not node["name"]["value"].strip()]
    assert page.one("#live").get_attribute("aria-live") == "polite"
    page.wait(lambda: "images" in page.one("#live").get_attribute("textContent"), "what is read aloud")
    for phone in (True, False):
        emulate_screen(page.driver, 390, 844, phone=phone)
        for query in ("", query_of_all):
            page.open(query)
            assert page.script("return document.scrollingElement.scrollWidth") <= 390


def test_dark_mode_and_reduced_motion_are_respected(page, shop):
    emulate_screen(page.driver, 1440, 900, dark=True, still=True)
    page.open(f"?id={plain(shop)}")
    red, green, blue = page.script(
        "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    )
    assert max(red, green, blue) < 40
    page.type("make it red")
    assert page.script("return document.getAnimations().length") == 0
