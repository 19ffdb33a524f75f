"""A query's answer on a terminal: colours, images where the environment names a terminal that takes them."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from nsfse.cli import rich_output
from nsfse.cli.reports import query_text
from nsfse_runtime.retrieval.retriever import Hit, Result, WordEvidence
from nsfse_runtime.retrieval.text_warnings import NOT_WHOLE, TextReading, UnknownWord

WORDS = (
    WordEvidence("make", 0.1, True, 0.05),
    WordEvidence("it", 0.1, True, 0.05),
    WordEvidence("red", 0.6, True, 0.5),
    WordEvidence("striped", 0.2, False, 0.4),
)


def result(*hits, matches=True):
    found = (
        Hit(id=name, path=name, score=2.0, is_match=match, evidence=WORDS, confidence=sure)
        for name, match, sure in hits
    )
    return Result(hits=tuple(found), has_match=matches, timings_ms={"total": 7.0})


def printed(found, width=70):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=width, highlight=False)
    rich_output.print_query(console, found)
    return console.file.getvalue()


def plain(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_words_are_green_struck_or_grey_and_matches_stand_apart():
    text = printed(result(("a.png", True, 0.9), ("b.png", False, 0.2)))
    assert "\x1b[32mred\x1b[0m" in text and "\x1b[9;31mstriped\x1b[0m" in text and "\x1b[90mit\x1b[0m" in text
    lines = [line.split() for line in plain(text).splitlines()]
    assert lines[0] == ["rank", "score", "match", "name", "words"]
    assert lines[2][:6] == ["1", "2.00", "match", "90", "%", "a.png"] and lines[4][2:5] == ["weak", "20", "%"]
    assert lines[3] == [] and lines[5] == ["7", "ms"]


def test_what_matches_nothing_says_so_and_no_hits_say_why():
    assert "nothing here matches" in plain(printed(result(("a.png", False, 0.1), matches=False)))
    assert plain(printed(result(matches=None))) == "no image in the gallery fits these conditions\n"


UNREAD = ("unknown word: re\x1bdd; did you mean red?", NOT_WHOLE)


def noted(*hits):
    texts = (TextReading(unknown=(UnknownWord("re\x1bdd", "red", 0),)),)
    return Result(hits=hits, timings_ms={}, texts=texts, notes=UNREAD)


@pytest.mark.parametrize("show", [lambda found: plain(printed(found)), query_text])
def test_words_that_are_not_read_have_a_line(show):
    hit = Hit(id="a.png", path="a.png", score=2.0, is_match=None, evidence=WORDS)
    for found in (noted(hit), noted()):
        lines = show(found).splitlines()
        assert "unknown word: re\\x1bdd; did you mean red?" in lines and NOT_WHOLE in lines
    assert "no hit is left" in lines and not any("fits these conditions" in line for line in lines)
    assert "unknown" not in show(result(("a.png", True, 0.9)))


def test_a_name_from_outside_is_text_and_breaks_no_line():
    text = plain(printed(result(("[red]\x1b[2J\n" + "x" * 90 + ".png", True, None)), width=60))
    assert "[red]" in text and "\x1b" not in text and max(map(len, text.splitlines())) <= 60
    assert "".join(text.split()).count("x") >= 90  # folded and not cut


@pytest.mark.parametrize(
    ("environment", "can"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2", "TERM": "xterm-256color"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_what_a_terminal_can_is_read_from_its_environment(environment, can):
    assert rich_output.graphics(environment) == can


def test_a_strip_holds_its_images_and_leaves_room_for_one_that_is_gone():
    red = np.full((40, 20, 3), (200, 0, 0), np.uint8)
    image = Image.open(io.BytesIO(rich_output.strip([red, None, red])))
    seen = np.asarray(image)[..., 3].any(0).nonzero()[0]
    gaps = np.flatnonzero(np.diff(seen) > 1)
    assert len(gaps) == 1 and seen[gaps[0] + 1] - seen[gaps[0]] > rich_output.THUMBNAIL[1]


@pytest.mark.parametrize("can", ["kitty", "iterm"])
def test_codes_carry_the_image_whole_and_ask_nothing(can):
    png = bytes(range(256)) * 40
    codes = "".join(rich_output.image_codes(png, can, 60))
    if can == "iterm":
        head, data = codes.removesuffix("\x07").split(":")
        assert f"size={len(png)};width=60" in head and "inline=1" in head
    else:
        parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", codes)
        assert "".join(f"\x1b_G{head};{data}\x1b\\" for head, data in parts) == codes
        assert "q=2" in parts[0][0] and len(parts) > 2 and all(len(data) <= 4096 for _, data in parts)
        assert [head[-3:] for head, _ in parts] == ["m=1"] * (len(parts) - 1) + ["m=0"]
        data = "".join(data for _, data in parts)
    assert base64.b64decode(data) == png


def test_images_come_where_they_can_unless_they_are_not_wanted(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 40), "red").save(path)
    found = result((str(path), True, 0.9), ("gone.png", False, 0.2))
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    for name in ("TMUX", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def shown(preview, reference=path):
        rich_output.show_query(found, reference, preview)
        return capsys.readouterr()

    assert "\x1b]1337;" in shown(None).out and "\x1b]1337;" in shown(True, tmp_path / "gone").out
    assert "\x1b]1337;" not in shown(False).out
    monkeypatch.setenv("TERM_PROGRAM", "Apple_Terminal")
    assert shown(None).err == "" and "\x1b]" not in shown(None).out
    assert shown(True).err.count("\n") == 1 and "kitty" in shown(True).err
