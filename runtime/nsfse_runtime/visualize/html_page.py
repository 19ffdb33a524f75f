"""Results as one HTML file that can be mailed: images inside, no script, nothing loaded from anywhere."""

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nsfse_runtime.escaping import printable
from nsfse_runtime.output_files import PAGE, write_output
from nsfse_runtime.types import Pixels
from nsfse_runtime.visualize.rows import SheetHit, SheetRow, Word, thumbnail, verdict

_STYLE = (Path(__file__).parent / "html_page.css").read_text("utf-8")

_LEGEND = (
    "Words are green when matched in the image, red and struck through when not, grey when they say little. "
    "✓ says the whole is a match."
)


def html_page(rows: Sequence[SheetRow], path: str | os.PathLike[str], *, title: str = "nsfse", note: str = "") -> None:
    """Write `rows` as one self-contained page at `path`; see `write_page`. Raises OutputError."""
    known = any(hit.right is not None for row in rows for hit in row.hits)
    write_page("".join(map(section, rows)), path, title=title, note=note, answers_known=known)


def write_page(
    body: str, path: str | os.PathLike[str], *, title: str, note: str = "", answers_known: bool = False
) -> None:
    """Write the HTML `body` as one self-contained page at `path`, with what its marks mean at its end.

    Thumbnails are re-encoded, so no metadata of an image is copied. Every text is escaped, and the
    page's policy allows nothing but its own style and its own images.

    Args:
        body: The rows as HTML (see `section`).
        path: The file to write.
        title: The page's title.
        note: A line under the title.
        answers_known: Whether green frames are explained.

    Raises:
        OutputError: `path` cannot be written.
    """
    text = _page(body, title, note, _LEGEND + (" A green frame is a right answer." if answers_known else ""))
    write_output(path, PAGE, lambda file: file.write_bytes(text.encode("utf-8")))


def _page(body: str, title: str, note: str, legend: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="generator" content="nsfse">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{safe(title)}</h1><p>{safe(note)}</p></header>\n<main>\n"
        f"{body}</main>\n<footer>{legend}</footer>\n</body>\n</html>\n"
    )


_MARKS = {
    True: '<span class="yes" title="a match">✓</span>',
    False: '<span class="no" title="not a match">✗</span>',
    None: "",
}


def section(row: SheetRow, heading: str = "h2") -> str:
    """Return one query with its hits as HTML, its text in a `heading`."""
    hits = "".join(_figure(rank, hit) for rank, hit in enumerate(row.hits, 1))
    more = "".join(
        f'<li>{safe(caption)}<span class="frame">{_image(image, caption)}</span></li>' for caption, image in row.more
    )
    notes = "".join(f'<p class="unread">{safe(note)}</p>' for note in row.notes)
    reference = None if row.pixels is None else _image(row.pixels, "the reference image")
    frame = f'<div class="frame">{reference}</div>' if reference else ""
    return (
        '<section class="result"><div class="query">'
        f"{frame}"
        f'<div><{heading}>“{safe(row.text)}”</{heading}><p class="note">{safe(row.note)}</p>'
        f"{notes}"
        f'<ul class="more">{more}</ul></div></div><ol>{hits}</ol></section>\n'
    )


def _figure(rank: int, hit: SheetHit) -> str:
    kinds = " ".join(name for name, is_so in (("right", hit.right), ("apart", hit.rank)) if is_so)
    caption = "a right answer" if hit.right else safe(hit.note)
    return (
        f'<li class="{kinds}"><figure><div class="frame">{_image(hit.pixels, hit.id)}</div><figcaption>'
        f'<p class="score"><span>{hit.rank or rank}. <b>{hit.score:.2f}</b></span>{_MARKS[hit.is_match]}</p>'
        f'<p class="id"><bdi>{safe(hit.id)}</bdi></p><p class="answer">{caption}</p>'
        f'<p class="words">{"".join(_word(word, len(hit.words)) for word in hit.words)}</p>'
        "</figcaption></figure></li>"
    )


def _word(word: Word, count: int) -> str:
    kind = verdict(word, count)
    return f'<span class="{kind}" title="{kind}">{safe(word.word)}</span>'


def _image(pixels: Pixels | None, name: str) -> str:
    if pixels is None:
        return "file is gone"
    buffer = io.BytesIO()
    thumbnail(pixels).save(buffer, format="JPEG", quality=82)
    return f'<img alt="{safe(name)}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def safe(text: str) -> str:
    """Return `text` as HTML: what does not print as its escape, nothing of it markup."""
    return escape(printable(text), quote=True)
