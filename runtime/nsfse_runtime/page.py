"""Results as one HTML file that can be mailed: pictures inside, no script, nothing loaded from anywhere."""

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nsfse_runtime.features import Pixels
from nsfse_runtime.printable import printable
from nsfse_runtime.sheet import SheetHit, SheetRow, Word, thumbnail, verdict, write_output

_STYLE = (Path(__file__).parent / "page.css").read_text("utf-8")

_LEGEND = (
    "Words are green when matched in the picture, red and struck through when not, grey when they say little. "
    "✓ says the whole is a match."
)


def html_page(rows: Sequence[SheetRow], path: str | os.PathLike[str], *, title: str = "nsfse", note: str = "") -> None:
    """Write `rows` as one self-contained page at `path`.

    Thumbnails are re-encoded, so no metadata of a picture travels along; every text is escaped, and the page's policy
    allows nothing but its own style and its own pictures. Raises OutputError when `path` cannot be written.
    """
    text = _page(rows, title, note)
    write_output(path, lambda file: file.write_bytes(text.encode("utf-8")))


def _page(rows: Sequence[SheetRow], title: str, note: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    known = any(hit.right is not None for row in rows for hit in row.hits)
    legend = _LEGEND + (" A green frame is a right answer." if known else "")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_safe(title)}</h1><p>{_safe(note)}</p></header>\n<main>\n"
        f"{''.join(map(_section, rows))}</main>\n<footer>{legend}</footer>\n</body>\n</html>\n"
    )


_MARKS = {
    True: '<span class="yes" title="a match">✓</span>',
    False: '<span class="no" title="not a match">✗</span>',
    None: "",
}


def _section(row: SheetRow) -> str:
    hits = "".join(_figure(rank, hit) for rank, hit in enumerate(row.hits, 1))
    return (
        f'<section><div class="query"><div class="frame">{_picture(row.picture, "the reference picture")}</div>'
        f'<div><h2>“{_safe(row.text)}”</h2><p class="note">{_safe(row.note)}</p></div></div><ol>{hits}</ol></section>\n'
    )


def _figure(rank: int, hit: SheetHit) -> str:
    mark = _MARKS[hit.match]
    kind, answer = (' class="right"', '<p class="answer">a right answer</p>') if hit.right else ("", "")
    return (
        f'<li{kind}><figure><div class="frame">{_picture(hit.picture, hit.id)}</div><figcaption>'
        f'<p class="score"><span>{rank}. <b>{hit.score:.2f}</b></span>{mark}</p>'
        f'<p class="id"><bdi>{_safe(hit.id)}</bdi></p>'
        f'{answer}<p class="words">{"".join(_word(word, len(hit.words)) for word in hit.words)}</p>'
        "</figcaption></figure></li>"
    )


def _word(word: Word, count: int) -> str:
    kind = verdict(word, count)
    return f'<span class="{kind}" title="{kind}">{_safe(word.word)}</span>'


def _picture(picture: Pixels | None, name: str) -> str:
    if picture is None:
        return "file is gone"
    buffer = io.BytesIO()
    thumbnail(picture).save(buffer, format="JPEG", quality=88)
    return f'<img alt="{_safe(name)}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _safe(text: str) -> str:
    return escape(printable(text), quote=True)
