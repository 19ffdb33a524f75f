"""Data sets by name."""

import difflib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsfse.data import Source
from nsfse.data.datasets.catalogue import CatalogueSource
from nsfse.data.datasets.cirr import CIRR
from nsfse.data.datasets.fashion200k import Fashion200K
from nsfse.data.datasets.fashioniq import FashionIQ
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.datasets.shoes import Shoes
from nsfse.data.datasets.table import Table
from nsfse.data.synthetic.source import DrawnSource
from nsfse_runtime.errors import UsageError

SOURCES: dict[str, Callable[..., Source]] = {
    "drawn": DrawnSource,
    "catalogue": CatalogueSource,
    "queryset": QuerySetSource,
    "table": Table,
    "fashioniq": FashionIQ,
    "cirr": CIRR,
    "fashion200k": Fashion200K,
    "shoes": Shoes,
}


def open_source(name: str, folder: str | os.PathLike[str] | None = None, **options: Any) -> Source:
    """Open a data set by name, in small letters or capitals; `options` are its reader's.

    Raises UsageError for an unknown name or option and for a folder too many or too few, and the reader's own errors.
    """
    name = known_name(name)
    if name == "drawn" and folder is not None:
        raise UsageError("the drawn catalogue is made in memory and takes no folder; leave it out")
    if name != "drawn" and folder is None:
        raise UsageError(f"the data set {name!r} needs the folder that holds it")
    _refuse_unknown(name, options)
    if isinstance(options.get("images"), str):  # from TOML
        options["images"] = Path(options["images"])
    return SOURCES[name](**options) if folder is None else SOURCES[name](Path(folder), **options)


def known_name(name: str) -> str:
    """Return a data set's name as SOURCES has it. Raises UsageError for an unknown one, with the nearest."""
    if name.lower() in SOURCES:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), SOURCES, 1, 0.4)
    meant = f"; did you mean {near[0]!r}?" if near else ";"
    raise UsageError(f"unknown data set {name!r}{meant} there are: {', '.join(SOURCES)}")


def _refuse_unknown(name: str, options: dict[str, Any]) -> None:
    known = [option for option in inspect.signature(SOURCES[name]).parameters if option not in ("folder", "file")]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ";"
            raise UsageError(f"the data set {name!r} has no option {option!r}{meant} there are: {', '.join(known)}")
