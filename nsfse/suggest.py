"""Suggestions for misspelt names in error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `; did you mean 'x'?` for the nearest name.

    Args:
        word: The name as given.
        known: The names that there are.
        cutoff: How alike two names must be, from 0 to 1.

    Returns:
        The end of an error message; empty where no name is near.
    """
    nearest = difflib.get_close_matches(word, list(known), 1, cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
