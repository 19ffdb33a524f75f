"""How much a promise is tried: a little in every run of the tests, a lot in `make promises`."""

import os

FULL = os.environ.get("NSFSE_PROMISES") == "full"


def count(quick, full):
    """Return `full` in `make promises`, else `quick`."""
    return full if FULL else quick
