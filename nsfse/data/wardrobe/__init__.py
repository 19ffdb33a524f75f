"""The annotations of wardrobe-1: 4,698 photos of clothes, queries with all right answers, and free texts.

They are under CC0 1.0 (LICENSE beside this file), as are the photos. Those are not here: nsfse.data.prepare makes the
query set from a clone of the collection. docs/wardrobe.md tells how the photos were labelled.
"""

import lzma
from pathlib import Path

__all__ = ["ANNOTATIONS", "COLLECTION", "VERSION", "annotations"]

VERSION = "wardrobe-1"
COLLECTION = "github.com/alexeygrigorev/clothing-dataset, commit 7ed86a9"
"""Where the photos are."""
ANNOTATIONS = ("items.csv", "queries.jsonl", "train-captions.jsonl", "boxes.csv", "LICENSE")
_FOLDER = Path(__file__).parent


def annotations(name: str) -> bytes:
    """Return one file of ANNOTATIONS."""
    if name == "LICENSE":
        return (_FOLDER / name).read_bytes()
    return lzma.decompress((_FOLDER / f"{name}.xz").read_bytes())
