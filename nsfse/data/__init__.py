"""Data sets: what they all become (`base`), which there are (`registry`), and their readers.

`datasets/` reads folders and tables, `synthetic/` draws a catalogue, `text/` makes and varies the texts of edits.
"""

from nsfse.data.base import (
    CheckReport,
    EvalQuery,
    EvaluationProtocol,
    FolderOptions,
    HasAttributes,
    HasCalibrationSplit,
    HasCategoryEdits,
    HasLeftOut,
    HasNotes,
    HasTitles,
    HasTrainingTexts,
    Pixels,
    Source,
    TrainingTriplet,
    WordLabel,
    calibration_split,
    gallery_digest,
    load_item,
    notes_of,
    trainable,
)

__all__ = [
    "CheckReport",
    "EvalQuery",
    "EvaluationProtocol",
    "FolderOptions",
    "HasAttributes",
    "HasCalibrationSplit",
    "HasCategoryEdits",
    "HasLeftOut",
    "HasNotes",
    "HasTitles",
    "HasTrainingTexts",
    "Pixels",
    "Source",
    "TrainingTriplet",
    "WordLabel",
    "calibration_split",
    "gallery_digest",
    "load_item",
    "notes_of",
    "trainable",
]
