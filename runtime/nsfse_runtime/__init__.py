"""Serve composed image retrieval without PyTorch: open a bundle, sync a gallery, ask.

    from nsfse_runtime import Bundle, Gallery, Retriever

    bundle = Bundle.open("bundle")
    gallery = Gallery.open("my.gallery", bundle, create=True)
    gallery.sync("photos")
    hits = Retriever(bundle, gallery).query("dress.jpg", "make it red").hits

Names are imported when they are first used, so importing the package costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsfse_runtime.errors import NsfseError
    from nsfse_runtime.gallery.gallery import Gallery
    from nsfse_runtime.inference.bundle import Bundle
    from nsfse_runtime.retrieval.query import Query
    from nsfse_runtime.retrieval.retriever import Hit, Result, Retriever

# ONNX Runtime's own builds report to their maker, over the network, unless they are told not to before they start.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

SCHEMA_VERSION = 2
"""Version of all JSON that commands and servers print (docs/json.md)."""

_HOMES = {
    "Bundle": "inference.bundle",
    "Gallery": "gallery.gallery",
    "Hit": "retrieval.retriever",
    "NsfseError": "errors",
    "Query": "retrieval.query",
    "Result": "retrieval.retriever",
    "Retriever": "retrieval.retriever",
}

__all__ = ["Bundle", "Gallery", "Hit", "NsfseError", "Query", "Result", "Retriever"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"nsfse_runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
