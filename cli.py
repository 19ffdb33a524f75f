"""Launcher for a checkout: `python cli.py` is `nsfse`; the commands live in nsfse/cli.py."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("", "export", "runtime")]

from nsfse.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
