"""A query's answer where stdout is a terminal: a table in colours and, where the terminal can, the images themselves.

What a terminal can show is read from its environment alone: no query is sent to it, so nothing comes back on stdin.
"""

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nsfse.cli.reports import empty, field_values, match_lines, shown_id
from nsfse.progress import print_status
from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.escaping import printable
from nsfse_runtime.visualize.rows import THUMBNAIL, thumbnail, verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nsfse_runtime.retrieval.retriever import Hit, Result
    from nsfse_runtime.types import Pixels

Graphics = Literal["kitty", "iterm"]
STYLES = {"matched": "green", "mismatched": "red strike", "silent": "bright_black"}
KITTY = ("ghostty", "kitty")
ITERM = ("iterm.app", "iterm2", "wezterm", "rio")
MOST, GAP, CELL = 9, 10, 12
"""Images in a row, pixels between them, and columns of the terminal for each."""
CHUNK = 4096


def in_colour() -> bool:
    """Return whether stdout is a terminal that shows colours and wants them."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    console = Console()
    return bool(console.color_system) and not console.no_color


def show_query(
    result: "Result", reference: Path | None, preview: bool | None, offset: int = 0, fields: Sequence[str] = ()
) -> None:
    """Print hits as a table, with thumbnails before it where the terminal can show them.

    Args:
        result: The answer.
        reference: The file of the query's image; None for words alone.
        preview: False for no thumbnails. True prints a note to stderr where the terminal is not known
            to show images.
        offset: How many better hits there are.
        fields: The columns of metadata to show.
    """
    from rich.console import Console

    console, protocol = Console(highlight=False), graphics(os.environ)
    if protocol and preview is not False and result.hits:
        thumbnails = _thumbnails(result.hits, reference)[: max(1, console.width // CELL)]
        sys.stdout.write("".join(image_codes(strip(thumbnails), protocol, CELL * len(thumbnails))) + "\n")
    elif preview:
        print_status("nsfse: this terminal is not known to show images; kitty, Ghostty, iTerm2, WezTerm and Rio are")
    print_query(console, result, offset, fields)


def print_query(console: "Console", result: "Result", offset: int = 0, fields: Sequence[str] = ()) -> None:
    """Print hits as a table: those that match set apart, the words that are not in an image struck through."""
    from rich.text import Text

    if not result.hits:
        for line in (*map(printable, result.notes), empty(result)):
            console.print(Text(line))
        return
    console.print(query_table(result, offset, fields))
    for line in match_lines(result):
        console.print(Text(line, "bold" if result.has_match is False else "bright_black"))
    for note in result.notes:
        console.print(Text(printable(note), "yellow"))
    if offset:
        console.print(Text(f"{offset + 1} to {offset + len(result.hits)} of {result.total}", "bright_black"))
    if (total := result.timings_ms.get("total")) is not None:
        console.print(Text(f"{total:.0f} ms", "bright_black"))


def query_table(result: "Result", offset: int = 0, fields: Sequence[str] = ()) -> "Table":
    """Return the hits' table, whose ranks follow `offset`, with columns of `fields`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table_style = {
        "box": SIMPLE_HEAD,
        "show_edge": False,
        "header_style": "bright_black",
        "border_style": "bright_black",
    }
    table = Table(**table_style)  # type: ignore[arg-type]
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("match")
    table.add_column("name", overflow="fold", ratio=1)
    for field in fields:
        table.add_column(_text(printable(field), ""), overflow="fold")
    table.add_column("words", overflow="fold", ratio=2)
    last = max((rank for rank, hit in enumerate(result.hits, 1) if hit.is_match), default=0)
    for rank, hit in enumerate(result.hits, 1):
        name = _text(printable(shown_id(hit)), "" if hit.is_match is not False else "bright_black")
        values = [_text(printable(value), "") for value in field_values(hit, fields)]
        table.add_row(
            str(offset + rank), f"{hit.score:.2f}", _match(hit), name, *values, _words(hit), end_section=rank == last
        )
    return table


def _text(text: str, style: str) -> "Text":
    from rich.text import Text

    return Text(text, style)


def _match(hit: "Hit") -> "Text":
    label, style = {True: ("match", "bold green"), False: ("weak", "bright_black"), None: ("", "")}[hit.is_match]
    sure = "" if hit.confidence is None else f" {100 * hit.confidence:.0f} %"
    return _text(label + sure, style)


def _words(hit: "Hit") -> "Text":
    from rich.text import Text

    words = [Text(printable(word.word), STYLES[verdict(word, len(hit.evidence))]) for word in hit.evidence]
    return Text(" ").join(words)


def graphics(environment: Mapping[str, str]) -> Graphics | None:
    """Return how the terminal of `environment` takes images; None where it does not, or tmux or screen is between."""
    named = {environment.get(name, "").lower() for name in ("TERM_PROGRAM", "LC_TERMINAL")}
    term = environment.get("TERM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or named.intersection(KITTY):
        return "kitty"
    return "iterm" if named.intersection(ITERM) else None


def _thumbnails(hits: "Sequence[Hit]", reference: Path | None) -> "list[Pixels | None]":
    """Return the thumbnails of the reference and the first hits; None without one, and where its file is gone."""
    from nsfse_runtime.images.decode import load_image

    thumbnails: list[Pixels | None] = [] if reference else [None]
    for path in (*([str(reference)] if reference else []), *(hit.path for hit in hits[: MOST - 1])):
        try:
            thumbnails.append(load_image(path, THUMBNAIL))
        except (NotFoundError, ImageError):
            thumbnails.append(None)
    return thumbnails


def strip(thumbnails: "Sequence[Pixels | None]") -> bytes:
    """Return a PNG with `thumbnails` in a row, the first of them, the reference, apart from the others."""
    from PIL import Image

    high, wide = THUMBNAIL
    row = Image.new("RGBA", (len(thumbnails) * (wide + GAP) + GAP, high), (0, 0, 0, 0))
    for index, pixels in enumerate(thumbnails):
        if pixels is not None:
            image = thumbnail(pixels)
            position = (
                index * (wide + GAP) + 2 * GAP * (index > 0) + (wide - image.width) // 2,
                (high - image.height) // 2,
            )
            row.paste(image, position)
    buffer = io.BytesIO()
    row.save(buffer, format="PNG")
    return buffer.getvalue()


def image_codes(png: bytes, protocol: Graphics, columns: int) -> Iterator[str]:
    """Yield what a terminal shows as an image of `columns` columns; none of it makes the terminal answer."""
    data = base64.b64encode(png).decode()
    if protocol == "iterm":
        yield f"\x1b]1337;File=inline=1;size={len(png)};width={columns};preserveAspectRatio=1:{data}\x07"
        return
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    for number, chunk in enumerate(chunks, 1):
        head = f"a=T,f=100,q=2,c={columns}," if number == 1 else ""
        yield f"\x1b_G{head}m={int(number < len(chunks))};{chunk}\x1b\\"
