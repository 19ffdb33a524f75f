"""wardrobe-1: real photos of clothes with all right answers (docs/wardrobe.md), a catalogue with free texts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, WordLabel
from nsfse.data.anomalies import Findings
from nsfse.data.datasets.catalogue import CatalogueSource
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.wardrobe import ANNOTATIONS, VERSION, annotations
from nsfse_runtime.errors import NotFoundError
from nsfse_runtime.regular_files import read_regular

COUNTS: Mapping[str, int] = {
    "train.found": 3391,
    "val.found": 607,
    "test.found": 700,
    "val.queries.wardrobe-attribute": 492,
    "test.queries.wardrobe-attribute": 487,
    "val.queries.wardrobe-caption": 300,
    "test.queries.wardrobe-caption": 300,
}


class WardrobeOptions(CatalogueOptions, frozen=True, kw_only=True):
    """Options of a catalogue, with the columns of wardrobe-1. Half of the triplets have a free text."""

    attributes: Sequence[str] | None = ("category", "colour", "print", "sleeve")
    described: Sequence[str] = ("colour2", "neck", "closure", "length", "kids")
    unnamed_values: Sequence[str] = ("-", "multi", "other")
    group: str | None = None
    title: str | None = "caption"
    phrase_ratio: float = 0.2
    title_phrase_ratio: float = 0.5
    instance_ratio: float = 0.0
    texts: str = "train-captions.jsonl"
    text_ratio: float = 0.5
    voice_ratio: float = 0.5


class WardrobeSource(CatalogueSource):
    """A folder that `nsfse data prepare wardrobe` made. Raises as CatalogueSource."""

    name = "wardrobe"

    def __init__(self, folder: Path, options: WardrobeOptions | None = None) -> None:
        super().__init__(folder, options or WardrobeOptions())

    def calibration_split(self) -> EvaluationProtocol | None:
        """Return the validation queries of both protocols: training shows no photo of these people."""
        protocols = self.protocols("val")
        if not any(protocol.gallery for protocol in protocols):
            return super().calibration_split()
        rows = self._table.rows
        queries = tuple(labelled(query, rows) for protocol in protocols for query in protocol.queries)
        return EvaluationProtocol("validation", VERSION, protocols[0].gallery, queries)

    def check(self) -> CheckReport:
        """Count images and queries against the official numbers, decode every image, and compare the annotations."""
        report = super().check()
        counts = dict(report.counts)
        for split in ("val", "test"):
            for protocol in self.protocols(split):
                counts[f"{split}.queries.{protocol.name}"] = len(protocol.queries)
        faults = Findings()
        for name in ANNOTATIONS:
            if self._differs(name):
                what = f"of {VERSION}: prepare the set again"
                faults.add(f"file is not that {what}", f"files are not those {what}", name)
        return CheckReport(
            self.name, counts, COUNTS, report.missing, report.broken, (VERSION,), faults.all(), report.skipped
        )

    def _differs(self, name: str) -> bool:
        try:
            return read_regular(self._folder / name) != annotations(name)
        except FileNotFoundError:
            if name in ("boxes.csv", "LICENSE"):
                return False
            raise NotFoundError(f"no {name} in {self._folder}; prepare the set again") from None


def labelled(query: EvalQuery, rows: Mapping[str, Mapping[str, str]]) -> EvalQuery:
    """Return a query that changes one attribute with the words of its new value labelled; others as they are."""
    value = rows[query.targets[0]].get(query.kind, "")
    label = WordLabel(query.kind, (value, *value.split("-")), query.kind, (value,))
    return replace(query, word_labels=(label,)) if value else query
