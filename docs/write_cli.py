"""Write docs/cli.md from what `nsfse ... --help` says: python docs/write_cli.py."""

import contextlib
import io
import os
from pathlib import Path

os.environ["COLUMNS"] = "100"

from nsfse.cli.app import main

HEAD = """\
# The command line

The result goes to stdout, progress and errors to stderr. `--json` prints one JSON object with a `schema_version`;
text is for people and may change.
Exit codes: [errors.md](errors.md). Written by `docs/write_cli.py`; a test compares it with the program.
"""
COMMANDS = (
    *("", "train", "init", "export", "index", "query", "serve", "evaluate"),
    *("reproduce", "data draw", "data check", "bench accuracy", "bench speed", "info", "doctor", "demo"),
)


def help_of(command: str) -> str:
    """Return what `nsfse COMMAND --help` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return text.getvalue().strip()


def page() -> str:
    """Return the whole page."""
    parts = (f"\n## nsfse {command}\n\n```text\n{help_of(command)}\n```\n" for command in COMMANDS)
    return HEAD + "".join(parts).replace("## nsfse \n", "## nsfse\n")


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
