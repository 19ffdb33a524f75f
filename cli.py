"""Launcher for a checkout: `python cli.py` is `nsfse`; the commands are in nsfse/cli/app.py."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("", "export", "runtime")]

from nsfse.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
