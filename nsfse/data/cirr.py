"""CIRR (rc2): real-life scenes; hard, soft and subset recall; a test split whose answers a server keeps.

Facts and counts: docs/benchmarks.md.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsfse.data import CheckReport, Pixels, Protocol, Triplet, load_picture
from nsfse.data.layout import absent, broken_pictures, read_json, scan
from nsfse_runtime.errors import DataError, NotFoundError

__all__ = ["CIRR", "OFFICIAL"]

SPLITS = ("train", "val", "test1")

OFFICIAL: Mapping[str, int] = {
    "train.queries": 28225,
    "val.queries": 4181,
    "test1.queries": 4148,
    "train.images": 16939,
    "val.images": 2297,
    "test1.images": 2315,
}
"""The official counts by `split.what` (docs/benchmarks.md)."""


class CIRR:
    """CIRR rc2; `test` is accepted for `test1`.

    `folder` holds `cap.rc2.*.json` and `split.rc2.*.json` in any depth; pictures lie anywhere under it or under
    `images`: `train/34/x.png`, `train/x.png` or all in one folder, .png or .jpg.
    Raises NotFoundError without the folder, DataError for a file that is not in its form.
    """

    name = "cirr"

    def __init__(self, folder: Path, *, images: Path | None = None, seed: int = 0) -> None:
        self._layout = scan(folder, *([images] if images else []))
        self._seed = seed
        self._lists = {s: tuple(self._annotation("split", s)) for s in SPLITS if self._has("split", s)}
        self._pairs = {s: self._read_pairs(s) for s in SPLITS if self._has("cap", s)}
        if not self._lists:
            raise DataError(f"no split.rc2.SPLIT.json under {folder}; give the folder of the official annotations")
        listed = [item for ids in self._lists.values() for item in ids]
        self.images = self._layout.locate(listed)
        self.missing = absent(listed, self.images)

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one picture [H, W, 3] fitted to `size` (H, W)."""
        return load_picture(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, those missing left out."""
        return tuple(item for item in self._lists.get(_official(split), ()) if item in self.images)

    def triplets(self, epoch: int) -> list[Triplet]:
        """Return the training pairs in a seeded shuffle, those with a missing picture left out.

        Soft targets of full weight are right answers too. Raises NotFoundError where the train captions are absent.
        """
        if "train" not in self._pairs:
            raise NotFoundError(
                f"no cap.rc2.train.json under {self._layout.roots[0]}; CIRR cannot be trained on without it"
            )
        pairs = [p for p in self._pairs["train"] if p["reference"] in self.images and p["target_hard"] in self.images]
        random.Random(f"{self._seed}/{epoch}").shuffle(pairs)
        return [Triplet(p["reference"], (p["caption"],), _right_answers(p), pairid=str(p["pairid"])) for p in pairs]

    def protocols(self, split: str) -> list[Protocol]:
        """Return the split's protocol: R@1, 5, 10, 50, R_subset@1, 2, 3 and soft recall, the reference removed."""
        split = _official(split)
        if split not in self._pairs or split not in self._lists:
            return []
        missing = absent(self._lists[split], self.images)
        gallery = tuple(item for item in self._lists[split] if item in self.images)
        queries = tuple(_query(pair) for pair in self._pairs[split])
        note = "R_subset: the five other members of the image set, each ranked by its own score"
        return [Protocol(f"cirr-{split}", "rc2", gallery, queries, True, (1, 5, 10, 50), note, len(missing), missing)]

    def check(self) -> CheckReport:
        """Count pairs, listed images and pictures per split; decode every picture."""
        counts: dict[str, int] = {}
        expected = dict(OFFICIAL)
        for split, listed in self._lists.items():
            if split in self._pairs:
                counts[f"{split}.queries"] = len(self._pairs[split])
            counts[f"{split}.images"] = len(listed)
            counts[f"{split}.pictures"] = len(listed) - len(absent(listed, self.images))
            expected[f"{split}.pictures"] = OFFICIAL[f"{split}.images"]
        broken = broken_pictures(sorted(set(self.images.values())), self._layout)
        return CheckReport(self.name, counts, expected, self.missing, broken, self._notes())

    def _file(self, kind: str, split: str) -> str:
        return f"{kind}.rc2.{split}.json"

    def _has(self, kind: str, split: str) -> bool:
        return self._file(kind, split) in self._layout.files

    def _annotation(self, kind: str, split: str) -> Any:
        return read_json(self._layout.file(self._file(kind, split)))

    def _read_pairs(self, split: str) -> list[dict[str, Any]]:
        pairs: list[dict[str, Any]] = self._annotation("cap", split)
        needed = {"pairid", "reference", "caption", "img_set"} | (set() if split == "test1" else {"target_hard"})
        if not isinstance(pairs, list) or not all(needed <= pair.keys() for pair in pairs):
            raise DataError(f"{self._layout.file(self._file('cap', split))} lacks {sorted(needed)}; fetch it again")
        return pairs

    def _notes(self) -> tuple[str, ...]:
        gone = [self._file(k, s) for k in ("cap", "split") for s in SPLITS if not self._has(k, s)]
        notes = [f"absent: {', '.join(gone)}"] if gone else []
        if "train" not in self._pairs:
            notes.append("without cap.rc2.train.json val and test1 can be scored, and nothing trained")
        if not self.images:
            notes.append("no pictures: the annotations alone can be counted, not trained on or scored")
        elif self.missing:
            notes.append("incomplete: training leaves such pairs out; scores are stamped with what the gallery lacks")
        return tuple(notes)


def _official(split: str) -> str:
    return "test1" if split == "test" else split


def _query(pair: dict[str, Any]) -> Triplet:
    reference = pair["reference"]
    return Triplet(
        reference=reference,
        texts=(pair["caption"],),
        targets=(pair["target_hard"],) if "target_hard" in pair else (),
        subset=tuple(member for member in pair["img_set"]["members"] if member != reference),
        soft=tuple(pair.get("target_soft", {}).items()),
        pairid=str(pair["pairid"]),
    )


def _right_answers(pair: dict[str, Any]) -> tuple[str, ...]:
    soft = (name for name, weight in pair.get("target_soft", {}).items() if weight >= 1.0)
    return tuple(dict.fromkeys([pair["target_hard"], *(name for name in soft if name != pair["reference"])]))
