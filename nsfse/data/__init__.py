"""Data sets: what they all become (`base`), which there are (`registry`), and their readers.

`datasets/` reads folders and tables, `synthetic/` draws a catalogue, `text/` makes and varies the texts of edits.
"""

from nsfse.data.base import (
    CheckReport,
    Claim,
    Described,
    EditsCategories,
    Pixels,
    Protocol,
    Source,
    Titled,
    Triplet,
    Worded,
    gallery_digest,
    held_out,
    load_item,
    notes_of,
    trainable,
)

__all__ = [
    "CheckReport",
    "Claim",
    "Described",
    "EditsCategories",
    "Pixels",
    "Protocol",
    "Source",
    "Titled",
    "Triplet",
    "Worded",
    "gallery_digest",
    "held_out",
    "load_item",
    "notes_of",
    "trainable",
]
