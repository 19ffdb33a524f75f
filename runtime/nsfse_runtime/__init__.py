"""Serve composed image retrieval without PyTorch: open a model, sync a gallery, query it.

    from nsfse_runtime import Gallery, Retriever, open_model

    model = open_model("bundle")
    gallery = Gallery.open("my.gallery", model, create=True)
    gallery.sync("photos")
    hits = Retriever(model, gallery).query("dress.jpg", "make it red").hits

Names are imported when they are first used, so importing the package costs nothing.

Importing it sets ORT_DISABLE_TELEMETRY=1 where the variable is not set: some builds of ONNX Runtime report to their
maker otherwise. To allow that, set the variable to 0 before the import.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsfse_runtime.errors import NsfseError
    from nsfse_runtime.gallery.gallery import Gallery
    from nsfse_runtime.gallery.snapshot import Snapshot
    from nsfse_runtime.inference.bundle import Bundle
    from nsfse_runtime.inference.open import open_model
    from nsfse_runtime.retrieval.query import Query
    from nsfse_runtime.retrieval.retriever import Hit, Result, Retriever

# It is read when ONNX Runtime starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "Bundle": "inference.bundle",
    "Gallery": "gallery.gallery",
    "Hit": "retrieval.retriever",
    "NsfseError": "errors",
    "Query": "retrieval.query",
    "Result": "retrieval.retriever",
    "Retriever": "retrieval.retriever",
    "Snapshot": "gallery.snapshot",
    "open_model": "inference.open",
}

__all__ = ["Bundle", "Gallery", "Hit", "NsfseError", "Query", "Result", "Retriever", "Snapshot", "open_model"]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"nsfse_runtime.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
