"""Methods, backbones and data sets of other packages, found by their entry points (docs/extending.md)."""

from collections.abc import Callable
from importlib import metadata
from typing import Literal, TypeVar

from nsfse.progress import print_status
from nsfse_runtime.escaping import printable

Entry = TypeVar("Entry")
_searched: set[str] = set()


def add_plugins(
    group: Literal["methods", "backbones", "datasets"], table: dict[str, Entry], accept: Callable[[object], Entry]
) -> None:
    """Add to `table`, once, what installed packages name in the entry points `nsfse.GROUP`.

    Args:
        group: What the table holds.
        table: The entries by name; those that it has are never replaced.
        accept: Turns what an entry point names into an entry. Raises TypeError for anything else.

    A plug-in that cannot be loaded, or whose name is taken, is left out with one line on stderr.
    """
    if group in _searched:
        return
    _searched.add(group)
    for point in metadata.entry_points(group=f"nsfse.{group}"):
        try:
            if point.name in table or point.name != point.name.lower():
                raise ValueError("its name is taken" if point.name in table else "its name has capitals")
            table[point.name] = accept(point.load())
        except (Exception, SystemExit) as error:  # code of others: whatever it raises, nsfse goes on
            named = f"{point.name} = {point.value} of nsfse.{group}"
            print_status(printable(f"nsfse: plug-in {named} is left out: {type(error).__name__}: {error}"))
