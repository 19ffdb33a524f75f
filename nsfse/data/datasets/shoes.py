"""Shoes: relative captions over the Attribute Discovery images (Guo et al., NeurIPS 2018).

Facts: docs/benchmarks.md. In the official file `ImageName` is the target.
"""

import random
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nsfse.data import (
    CheckReport,
    EvalQuery,
    EvaluationProtocol,
    FolderOptions,
    Pixels,
    TrainingTriplet,
    load_item,
    trainable,
)
from nsfse.data.anomalies import Findings
from nsfse.data.datasets.file_index import absent, broken_images, counted, image_id, scan
from nsfse.data.text_files import Name, read_json, read_lines
from nsfse_runtime.errors import NotFoundError

__all__ = ["OFFICIAL", "Shoes"]

LISTS = {"train": "train_im_names.txt", "test": "eval_im_names.txt"}

OFFICIAL: Mapping[str, int] = {
    "train.listed": 10000,
    "test.listed": 4658,
    "train.queries": 8990,
    "test.queries": 1761,
}
"""The counts that published work scores on (VAL, ARTEMIS); the captions themselves are 10 751."""


class _Pair(msgspec.Struct, frozen=True):
    """A pair of relative_captions_shoes.json."""

    reference: Name = msgspec.field(name="ReferenceImageName")
    target: Name = msgspec.field(name="ImageName")
    caption: str = msgspec.field(name="RelativeCaption")

    @property
    def triplet(self) -> EvalQuery:
        return EvalQuery(image_id(self.reference), (self.caption.strip(),), (image_id(self.target),))


class Shoes:
    """Shoes; an id is the image's name without its suffix. `val` is accepted for `test`, the only held-out split.

    Args:
        folder: Has `relative_captions_shoes.json` and the two name lists in any depth. Images are
            anywhere under it or under `options.images`, flat or as `womens_*/0/img_*.jpg`.
        options: Options of the reader.

    Raises:
        NotFoundError: The folder or a file is not there.
        DataError: A file is not in its form.
    """

    name = "shoes"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        self._index = scan(folder, *([options.images] if options.images else []))
        self._seed = options.seed
        self._lists = {s: self._names(name) for s, name in LISTS.items() if name in self._index.files}
        if not self._lists:
            raise NotFoundError(f"no train_im_names.txt or eval_im_names.txt under {folder}; fetch the official lists")
        path = self._index.file("relative_captions_shoes.json")
        self._all_pairs = [pair.triplet for pair in read_json(path, list[_Pair], "pair", "ImageName")]
        self._pairs = {split: self._split_pairs(split) for split in self._lists}
        listed = [item for ids in self._lists.values() for item in ids]
        self.images = self._index.locate(listed)
        self.missing = absent(listed, self.images)

    @property
    def notes(self) -> tuple[str, ...]:
        """Folders and files that could not be read, a line each."""
        return self._index.notes

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out, a line each."""
        untrainable = sum(not trainable(pair.texts[0]) for pair in self._pairs.get("train", ()))
        line = f"{counted(untrainable, 'training pair')} left out: no caption, or one far too long"
        return (line,) if untrainable else ()

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, those missing left out."""
        return tuple(item for item in self._lists.get(_official(split), ()) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the training pairs in a seeded shuffle, those without an image or a caption left out."""
        pairs = [pair for pair in self._pairs.get("train", ()) if trainable(pair.texts[0])]
        pairs = [p for p in pairs if p.reference in self.images and p.targets[0] in self.images]
        random.Random(f"{self._seed}/{epoch}").shuffle(pairs)
        return [TrainingTriplet(p.reference, p.texts[0], p.targets) for p in pairs]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocol of the test split: R@1, 10, 50 among all its images, the reference removed."""
        if _official(split) != "test" or "test" not in self._lists:
            return []
        missing = absent(self._lists["test"], self.images)
        queries = tuple(self._pairs["test"])
        note = "gallery: all images of eval_im_names.txt"
        return [
            EvaluationProtocol(
                "shoes-test", "1", self.items("test"), queries, True, (1, 10, 50), note, len(missing), missing
            )
        ]

    def check(self) -> CheckReport:
        """Count pairs, listed images and images per split; name odd pairs; decode every image."""
        counts: dict[str, int] = {}
        expected = dict(OFFICIAL)
        for split, listed in self._lists.items():
            counts[f"{split}.listed"] = len(listed)
            counts[f"{split}.queries"] = len(self._pairs[split])
            counts[f"{split}.found"] = len(listed) - len(absent(listed, self.images))
            expected[f"{split}.found"] = OFFICIAL[f"{split}.listed"]
        broken = broken_images(sorted(set(self.images.values())), self._index)
        faults, odd = self._findings()
        notes = [*map(str, odd.all())]
        notes += [f"absent: {name}" for split, name in LISTS.items() if split not in self._lists]
        return CheckReport(
            self.name, counts, expected, self.missing, broken, tuple(notes), faults.all(), self._index.skipped
        )

    def _names(self, name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(image_id(line) for _, line in read_lines(self._index.file(name))))

    def _split_pairs(self, split: str) -> list[EvalQuery]:
        listed = set(self._lists[split])
        return [pair for pair in self._all_pairs if pair.reference in listed and pair.targets[0] in listed]

    def _findings(self) -> tuple[Findings, Findings]:
        """Return what makes pairs unfit to be scored, and what only has to be known."""
        faults, notes = Findings(), Findings()
        split_of = {item: split for split, ids in self._lists.items() for item in ids}
        seen: set[EvalQuery] = set()
        for number, pair in enumerate(self._all_pairs):
            entry, (target,) = f"pair {number}", pair.targets
            for role, item in (("reference", pair.reference), ("target", target)):
                if item not in split_of and len(self._lists) == len(LISTS):
                    faults.add(f"{role} is in no list", f"{role}s are in no list", f"{entry} {item}")
            if {split_of.get(pair.reference), split_of.get(target)} >= set(LISTS):
                faults.add("pair lies across both splits", "pairs lie across both splits", entry)
            if pair.reference == target:
                faults.add("pair has its reference as target", "pairs have their reference as target", entry)
            if pair in seen:
                notes.add("pair is there twice", "pairs are there twice", entry)
            if not pair.texts[0]:
                notes.add("pair has no caption", "pairs have no caption", entry)
            seen.add(pair)
        both = set(self._lists.get("train", ())) & set(self._lists.get("test", ()))
        for item in sorted(both):
            faults.add("image is in both lists", "images are in both lists", item)
        return faults, notes


def _official(split: str) -> str:
    return "test" if split == "val" else split
