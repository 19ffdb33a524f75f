"""Contact sheets and pages: what they show, and what they must never carry."""

import base64
import dataclasses
import io
import re
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from nsfse_runtime.errors import OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.visualize.contact_sheet import GOOD, WARN, contact_sheet
from nsfse_runtime.visualize.html_page import html_page
from nsfse_runtime.visualize.rows import SheetHit, SheetRow, sheet_row, verdict

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202egpj.\udcff\n"


@dataclass
class Word:
    word: str
    matched: bool
    weight: float = 0.5


@dataclass
class Hit:
    id: str
    path: str
    score: float = 0.5
    is_match: bool = True
    evidence: tuple = (Word("red", True), Word("striped", False))


def pixels_of(colour=(200, 20, 20), size=(40, 60)):
    return np.full((*size, 3), colour, np.uint8)


def row(text="make it red", right=None, hits=3, name="a.jpg"):
    words = (Word("make", True), Word("red", False))
    found = tuple(SheetHit(pixels_of(), f"{n}-{name}", 0.9 - n / 10, n == 0, words, right) for n in range(hits))
    return SheetRow(pixels_of((20, 20, 200), (60, 40)), text, found, "note")


def test_a_word_that_says_little_is_neither_matched_nor_mismatched():
    assert [verdict(Word("it", matched, 0.1), 4) for matched in (True, False)] == ["silent", "silent"]
    verdicts = [verdict(Word("red", matched, 0.3), 4) for matched in (True, False, None)]
    assert verdicts == ["matched", "mismatched", "silent"]


def green_pixels(path):
    wanted = tuple(int(GOOD[at : at + 2], 16) for at in (1, 3, 5))
    return int((np.asarray(Image.open(path)) == wanted).all(-1).sum())


def test_a_sheet_grows_with_its_rows_and_hits(tmp_path):
    for rows, hits in ((1, 2), (1, 5), (4, 5)):
        contact_sheet([row(hits=hits)] * rows, tmp_path / f"{rows}-{hits}.png")
    sizes = [Image.open(tmp_path / name).size for name in ("1-2.png", "1-5.png", "4-5.png")]
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]


def test_words_that_are_not_read_are_on_sheet_and_page(tmp_path):
    said = ("unknown word: <redd>; did you mean red?", "so no hit has a confidence")
    for name, notes in (("plain", ()), ("noted", said)):
        noted = dataclasses.replace(row(), notes=notes)
        contact_sheet([noted], tmp_path / f"{name}.png")
        html_page([noted], tmp_path / f"{name}.html")
    wanted = tuple(int(WARN[at : at + 2], 16) for at in (1, 3, 5))
    plain, drawn = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("plain", "noted"))
    assert (drawn == wanted).all(-1).sum() > 10 > (plain == wanted).all(-1).sum() and len(drawn) > len(plain)
    pages = [(tmp_path / f"{name}.html").read_text("utf-8") for name in ("plain", "noted")]
    assert "unknown word: &lt;redd&gt;; did you mean red?" in pages[1] and 'class="unread"' not in pages[0]


def test_right_answers_are_framed_green(tmp_path):
    for name, right in (("right", True), ("wrong", False)):
        contact_sheet([row(right=right)], tmp_path / name)
    assert green_pixels(tmp_path / "right") > green_pixels(tmp_path / "wrong") + 1000


def test_sheets_survive_no_rows_long_texts_and_hostile_names(tmp_path):
    contact_sheet([], tmp_path / "empty.png")
    contact_sheet([row("word " * 2000), row(HOSTILE, name=HOSTILE * 50), row("", hits=0)], tmp_path / "odd.png")
    assert Image.open(tmp_path / "odd.png").height < 2000


def test_a_page_carries_no_script_no_address_and_no_raw_name(tmp_path):
    html_page([row(HOSTILE, name=HOSTILE)], tmp_path / "page.html", title=HOSTILE, note=HOSTILE)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<img src=x" not in text
    assert "<script" not in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert not re.search(r"https?://|//[a-z]", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text))
    assert "default-src 'none'" in text


def test_a_page_holds_its_images_without_metadata(tmp_path):
    html_page([row(hits=2)], tmp_path / "page.html")
    found = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", (tmp_path / "page.html").read_text("utf-8"))
    assert len(found) == 3
    image = Image.open(io.BytesIO(base64.b64decode(found[0])))
    assert image.height > image.width
    assert len(image.getexif()) == 0
    assert "icc_profile" not in image.info


def test_a_page_shows_each_word_as_matched_or_not(tmp_path):
    html_page([row(hits=1)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert re.search(r'class="matched"[^>]*>make<', text)
    assert re.search(r'class="mismatched"[^>]*>red<', text)


def test_a_page_is_the_same_file_for_the_same_rows(tmp_path):
    for name in ("one", "two"):
        html_page([row()], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("write", [contact_sheet, html_page])
def test_a_place_that_cannot_be_written_is_named(tmp_path, write):
    with pytest.raises(OutputError, match="nowhere"):
        write([row()], tmp_path / "nowhere" / "sheet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write([row()], tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_row_keeps_the_place_of_a_hit_whose_file_is_gone(tmp_path):
    Image.new("RGB", (30, 50), "red").save(tmp_path / "here.png")
    hits = [Hit("gone.png", str(tmp_path / "gone.png")), Hit("here.png", str(tmp_path / "here.png"))]
    made = sheet_row(tmp_path / "here.png", "make it red", hits, right={"here.png"})
    assert [hit.pixels is None for hit in made.hits] == [True, False]
    assert [hit.right for hit in made.hits] == [False, True]
    contact_sheet([made], tmp_path / "sheet.png")


def test_printable_leaves_words_and_escapes_the_rest():
    assert printable("blaue Größe 日本") == "blaue Größe 日本"
    assert printable("a\x1b\n\u202e\udcff") == "a\\x1b\\n\\u202e\\udcff"
