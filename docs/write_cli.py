"""Write docs/cli.md from what `nsfse ... --help` says: python docs/write_cli.py."""

import contextlib
import io
import os
from pathlib import Path

import click
import typer.main

os.environ["COLUMNS"] = "100"

from nsfse.cli.app import app, main

HEAD = """\
# Command line

The result goes to stdout, progress and errors to stderr. `--json` prints one object with a
`schema_version`; text is for people and may change. [Errors](errors.md) lists exit codes. Written
by `docs/write_cli.py`; a test compares it with the program.
"""


def commands(command: click.Command, name: str = "") -> list[str]:
    """Return the names of a command and of those under it, as they are typed after `nsfse`."""
    below = getattr(command, "commands", {}).items()
    return ([name] if not below or not name else []) + [
        path for word, inner in below if not inner.hidden for path in commands(inner, f"{name} {word}".strip())
    ]


def help_of(command: str) -> str:
    """Return what `nsfse COMMAND --help` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return text.getvalue().strip()


def page() -> str:
    """Return the whole page."""
    names = commands(typer.main.get_command(app))
    parts = (f"\n## {f'nsfse {name}'.strip()}\n\n```text\n{help_of(name)}\n```\n" for name in names)
    return HEAD + "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
