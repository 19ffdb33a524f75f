"""What the readers of benchmarks without training pairs share: listed images, queries by split, counts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, Pixels, TrainingTriplet, load_item
from nsfse.data.anomalies import Findings
from nsfse.data.datasets.file_index import FileIndex, absent, broken_images


class ScoredOnly:
    """A benchmark that is scored and not trained on.

    Args:
        index: The files of its folders.
        listed: The images of its gallery by split, in the official order.
        queries: Its queries by split.
        official: The official counts by `split.what`.
    """

    name = ""

    def __init__(
        self,
        index: FileIndex,
        listed: Mapping[str, Sequence[str]],
        queries: Mapping[str, Sequence[EvalQuery]],
        official: Mapping[str, int],
    ) -> None:
        self._index, self._listed, self._queries, self._official = index, listed, queries, official
        shown = [item for each in queries.values() for query in each for item in query.reference_ids]
        names = dict.fromkeys([item for ids in listed.values() for item in ids] + shown)
        self.images = self._locate(names)
        self.missing = absent(names, self.images)

    @property
    def notes(self) -> tuple[str, ...]:
        """Folders and files that could not be read, a line each."""
        return self._index.notes

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have queries."""
        return tuple(self._queries)

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the gallery of a split, images that are missing left out."""
        return tuple(item for item in self._listed.get(split, ()) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return nothing: there are no training pairs."""
        return []

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocol of a split; none where it has no queries."""
        return [self._protocol(split)] if split in self._queries else []

    def check(self) -> CheckReport:
        """Count queries, listed images and images per split; name odd queries; decode every image."""
        counts: dict[str, int] = {}
        faults = Findings()
        for split, queries in self._queries.items():
            listed = set(self._listed[split])
            counts[f"{split}.queries"] = len(queries)
            counts[f"{split}.listed"] = len(self._listed[split])
            counts[f"{split}.found"] = len(self.items(split))
            for number, query in enumerate(queries):
                if not listed.issuperset(query.targets):
                    faults.add("target is in no list", "targets are in no list", f"{split} query {number}")
        expected = dict(self._official)
        expected |= {key.replace("listed", "found"): count for key, count in expected.items() if "listed" in key}
        broken = broken_images(sorted(set(self.images.values())), self._index)
        return CheckReport(self.name, counts, expected, self.missing, broken, (), faults.all(), self._index.skipped)

    def _locate(self, names: Iterable[str]) -> dict[str, Path]:
        return self._index.locate(names)

    def _protocol(self, split: str) -> EvaluationProtocol:
        missing = absent(self._listed[split], self.images)
        return EvaluationProtocol(
            f"{self.name}-{split}",
            "1",
            self.items(split),
            tuple(self._queries[split]),
            missing=len(missing),
            missing_ids=missing,
        )
