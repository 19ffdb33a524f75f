"""Data sets by name: what `data.source` and `--dataset` can be."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nsfse.data import FolderOptions, Source
from nsfse.data.datasets.catalogue import CatalogueSource
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.datasets.circo import CIRCO
from nsfse.data.datasets.cirr import CIRR
from nsfse.data.datasets.fashion200k import Fashion200K
from nsfse.data.datasets.fashioniq import FashionIQ, FashionIQOptions
from nsfse.data.datasets.genecis import GeneCIS
from nsfse.data.datasets.lasco import LaSCo
from nsfse.data.datasets.pinpoint import PinPoint
from nsfse.data.datasets.query_set import QuerySetOptions, QuerySetSource
from nsfse.data.datasets.shoes import Shoes
from nsfse.data.datasets.table import Table
from nsfse.data.datasets.wardrobe import WardrobeOptions, WardrobeSource
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.plugins import add_plugins
from nsfse.suggest import did_you_mean
from nsfse_runtime.errors import UsageError

__all__ = ["SOURCES", "SourceEntry", "known_name", "open_source", "parse_options"]


class SourceEntry(NamedTuple):
    """A data set: its reader, called with the folder (where it has one) and the options, and their struct."""

    reader: Callable[..., Source]
    options: type[msgspec.Struct] = FolderOptions
    has_folder: bool = True


SOURCES: dict[str, SourceEntry] = {
    "drawn": SourceEntry(DrawnSource, DrawnOptions, has_folder=False),
    "catalogue": SourceEntry(CatalogueSource, CatalogueOptions),
    "queryset": SourceEntry(QuerySetSource, QuerySetOptions),
    "wardrobe": SourceEntry(WardrobeSource, WardrobeOptions),
    "table": SourceEntry(Table),
    "fashioniq": SourceEntry(FashionIQ, FashionIQOptions),
    "cirr": SourceEntry(CIRR),
    "fashion200k": SourceEntry(Fashion200K),
    "shoes": SourceEntry(Shoes),
    "circo": SourceEntry(CIRCO),
    "genecis": SourceEntry(GeneCIS),
    "lasco": SourceEntry(LaSCo),
    "pinpoint": SourceEntry(PinPoint),
}


def open_source(name: str, folder: str | os.PathLike[str] | None = None, **options: Any) -> Source:
    """Open a data set.

    Args:
        name: A name of SOURCES, in small letters or capitals.
        folder: The folder (or table) that holds it; None for the drawn catalogue.
        options: The reader's options, as its struct names them.

    Returns:
        The data set.

    Raises:
        UsageError: The name or an option is unknown, an option has a wrong value, or the folder is one too many or too
            few.
        NotFoundError: The folder is not there.
        DataError: A file is not in its form.
    """
    name = known_name(name)
    entry = SOURCES[name]
    if folder is not None and not entry.has_folder:
        raise UsageError(f"the {name} catalogue is made in memory and takes no folder; leave it out")
    if folder is None and entry.has_folder:
        raise UsageError(f"the data set {name!r} needs the folder that holds it")
    parsed = parse_options(name, options)
    return entry.reader(parsed) if folder is None else entry.reader(Path(folder), parsed)


def known_name(name: str) -> str:
    """Return a data set's name as SOURCES has it. Raises UsageError for an unknown one, with the nearest."""
    add_plugins("datasets", SOURCES, _as_entry)
    if name.lower() in SOURCES:
        return name.lower()
    nearest = did_you_mean(name.lower(), SOURCES, 0.4) or ";"
    raise UsageError(f"unknown data set {name!r}{nearest} there are: {', '.join(SOURCES)}")


def _as_entry(found: object) -> SourceEntry:
    """Return what a plug-in names, a SourceEntry or a reader's class, as an entry. Raises TypeError."""
    if isinstance(found, SourceEntry):
        return found
    if not isinstance(found, type):
        raise TypeError("it is neither a nsfse.data.registry.SourceEntry nor a reader's class")
    return SourceEntry(found)


def parse_options(name: str, options: Mapping[str, Any]) -> msgspec.Struct:
    """Return the options of a data set as its struct. Raises UsageError for an unknown one and for a wrong value."""
    kind = SOURCES[name].options
    known = [field.name for field in msgspec.structs.fields(kind)]
    for option in options:
        if option not in known:
            nearest = did_you_mean(option, known) or ";"
            raise UsageError(f"the data set {name!r} has no option {option!r}{nearest} there are: {', '.join(known)}")
    try:
        return msgspec.convert(dict(options), kind, dec_hook=lambda field, value: field(value))
    except msgspec.ValidationError as error:
        raise UsageError(f"data.options of {name!r}: {error}".replace("`", "")) from None
