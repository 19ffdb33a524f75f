"""Results as images: a contact sheet (PNG) of queries and what they found. `html_page.py` writes the same rows."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nsfse_runtime.escaping import printable
from nsfse_runtime.output_files import SHEET, write_output
from nsfse_runtime.types import Pixels
from nsfse_runtime.visualize.rows import THUMBNAIL, SheetHit, SheetRow, Word, thumbnail, verdict

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    Font = FreeTypeFont | BitmapFont

INK, FAINT, PAPER, LINE, WARN = "#1b1f24", "#6b7280", "#ffffff", "#d9dde3", "#8a5a00"
GOOD, BAD, GOOD_TINT, BAD_TINT = "#15803d", "#b42318", "#dcf5e4", "#fbe3e0"
_TONES = {"matched": (GOOD, GOOD_TINT), "mismatched": (BAD, BAD_TINT), "silent": (FAINT, PAPER)}
_GAP, _MARGIN, _UNDER, _WORD_LINES, _NOTE_LINES = 14, 24, 104, 2, 16
_LONGEST = 200
"""Characters of a text that a sheet ever measures: a longer one does not fit in any case."""


def contact_sheet(rows: Sequence[SheetRow], path: str | os.PathLike[str], *, title: str = "") -> None:
    """Write `rows` as one PNG at `path`: a line a query, the reference at the left, the hits at its right.

    Right answers, where known, are framed green and wrong ones grey. Words are green when matched,
    red when not.

    Args:
        rows: The queries with their hits.
        path: The PNG file to write.
        title: A heading; "" for none.

    Raises:
        OutputError: `path` cannot be written, or holds anything but a sheet.
        UsageError: `path` does not end in .png.
    """
    from PIL.PngImagePlugin import PngInfo

    sheet, mark = _draw(rows, title), PngInfo()
    mark.add_text("Software", "nsfse")
    write_output(path, SHEET, lambda file: sheet.save(file, format="PNG", optimize=True, pnginfo=mark))


def _draw(rows: Sequence[SheetRow], title: str) -> "Image":
    from PIL import Image, ImageDraw

    columns = 1 + max((len(row.hits) for row in rows), default=0)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    under = _UNDER + 15 * max((len(_note_lines(measure, row)) for row in rows), default=0)
    step_x, step_y = THUMBNAIL[1] + _GAP, THUMBNAIL[0] + under
    top = _MARGIN + (44 if title else 0)
    width = 2 * _MARGIN + columns * step_x + _GAP
    sheet = Image.new("RGB", (width, top + max(len(rows), 1) * step_y + 40), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_MARGIN, _MARGIN - 4), printable(title), INK, _font(24))
    for number, row in enumerate(rows):
        y = top + number * step_y
        _draw_query(sheet, pen, row, (_MARGIN, y))
        for column, hit in enumerate(row.hits):
            _draw_hit(sheet, pen, hit, (_MARGIN + 2 * _GAP + (column + 1) * step_x, y))
    _draw_legend(pen, (_MARGIN, sheet.height - 36), any(hit.right is not None for row in rows for hit in row.hits))
    return sheet


def _draw_query(sheet: "Image", pen: "ImageDraw", row: SheetRow, corner: tuple[int, int]) -> None:
    x, y = corner
    if row.pixels is not None:
        _paste(sheet, pen, row.pixels, corner, LINE, 1)
    y += THUMBNAIL[0] + 6
    for line in _wrap(pen, f"“{printable(row.text)}”", _font(16), THUMBNAIL[1] + _GAP, 3):
        pen.text((x, y), line, INK, _font(16))
        y += 20
    pen.text((x, y), _cut(pen, printable(row.note), _font(12), THUMBNAIL[1]), FAINT, _font(12))
    for line in _note_lines(pen, row):
        y += 15
        pen.text((x, y), line, WARN, _font(12))
    edge = corner[0] + THUMBNAIL[1] + _GAP + _GAP // 2
    pen.line((edge, corner[1], edge, corner[1] + THUMBNAIL[0] + 60), LINE, 1)


def _note_lines(pen: "ImageDraw", row: SheetRow) -> list[str]:
    """Return what of the text was not read, as lines under it."""
    wrapped = (_wrap(pen, printable(note), _font(12), THUMBNAIL[1] + _GAP, 3) for note in row.notes)
    return [line for lines in wrapped for line in lines][:_NOTE_LINES]


def _draw_hit(sheet: "Image", pen: "ImageDraw", hit: SheetHit, corner: tuple[int, int]) -> None:
    x, y = corner
    _paste(sheet, pen, hit.pixels, corner, GOOD if hit.right else LINE, 4 if hit.right else 1)
    y += THUMBNAIL[0] + 6
    if hit.is_match is not None:
        _tick(pen, (x, y + 2), hit.is_match)
    pen.text((x + 20, y), f"{hit.score:.2f}", INK, _font(15))
    width = THUMBNAIL[1] - 66
    pen.text((x + 66, y + 2), _cut(pen, printable(hit.id), _font(12), width, keep_end=True), FAINT, _font(12))
    _draw_words(pen, hit.words, (x, y + 24))


def _draw_words(pen: "ImageDraw", words: Sequence[Word], corner: tuple[int, int]) -> None:
    x: float
    x, y = corner
    line, font, right = 0, _font(13), corner[0] + THUMBNAIL[1]
    for word in words:
        text = _cut(pen, printable(word.word), font, THUMBNAIL[1] - 12)
        wide = pen.textlength(text, font) + 8
        if x + wide > right:
            x, y, line = corner[0], y + 22, line + 1
        if line >= _WORD_LINES:
            return
        ink, tint = _TONES[verdict(word, len(words))]
        pen.rounded_rectangle((x, y, x + wide, y + 19), 4, tint)
        pen.text((x + 4, y + 2), text, ink, font)
        x += wide + 4


def _draw_legend(pen: "ImageDraw", corner: tuple[int, int], answers_known: bool) -> None:
    x, y = corner
    font = _font(12)
    _tick(pen, (x, y), True)
    x += 18
    entries = [
        ("a match as a whole", FAINT),
        ("matched word", GOOD),
        ("mismatched word", BAD),
        ("a word that says little or is unsure", FAINT),
    ]
    for text, ink in entries + [("green frame: a right answer", FAINT)] * answers_known:
        pen.text((x, y), text, ink, font)
        x += int(pen.textlength(text, font)) + 20


def _paste(
    sheet: "Image", pen: "ImageDraw", pixels: Pixels | None, corner: tuple[int, int], ink: str, thick: int
) -> None:
    """Paste `pixels` centred in its frame, and draw the frame."""
    x, y = corner
    height, width = THUMBNAIL
    if pixels is None:
        pen.text((x + width // 2, y + height // 2), "file is gone", FAINT, _font(14), anchor="mm")
    else:
        image = thumbnail(pixels)
        sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
    pen.rectangle((x - thick, y - thick, x + width + thick - 1, y + height + thick - 1), None, ink, thick)


def _tick(pen: "ImageDraw", corner: tuple[int, int], good: bool) -> None:
    """Draw a tick or a cross of 12 pixels (the built-in font has neither)."""
    x, y = corner
    if good:
        pen.line([(x, y + 7), (x + 4, y + 11), (x + 12, y + 2)], GOOD, 3, joint="curve")
    else:
        pen.line([(x + 1, y + 2), (x + 11, y + 12)], BAD, 2)
        pen.line([(x + 11, y + 2), (x + 1, y + 12)], BAD, 2)


def _wrap(pen: "ImageDraw", text: str, font: "Font", width: float, lines: int) -> list[str]:
    """Break `text` at blanks into at most `lines` lines of `width` pixels; the last ends in … where text is left."""
    out, words = [""], text.split(" ")
    for index, word in enumerate(words):
        longer = f"{out[-1]} {word}".strip()
        if pen.textlength(longer, font) <= width or not out[-1]:
            out[-1] = longer
        elif len(out) < lines:
            out.append(word)
        else:
            out[-1] = f"{out[-1]} {' '.join(words[index:])}"
            break
    return [_cut(pen, line, font, width) for line in out]


def _cut(pen: "ImageDraw", text: str, font: "Font", width: float, *, keep_end: bool = False) -> str:
    """Shorten `text` to `width` pixels with … where it was cut; `keep_end` cuts the front (of a path)."""
    if len(text) <= _LONGEST and pen.textlength(text, font) <= width:
        return text
    text = text[-_LONGEST:] if keep_end else text[:_LONGEST]
    while text and pen.textlength(text + "…", font) > width:
        text = text[1:] if keep_end else text[:-1]
    return "…" + text if keep_end else text + "…"


def _font(size: int) -> "Font":
    from PIL import ImageFont

    return ImageFont.load_default(size)
