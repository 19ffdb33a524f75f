"""CIRR (rc2): real-life scenes; hard, soft and subset recall; a test split whose answers a test server has.

Facts and counts: docs/benchmarks.md.
"""

import random
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from nsfse.data.anomalies import Anything, Findings
from nsfse.data.datasets.file_index import absent, broken_images, counted, image_id, scan
from nsfse.data.text_files import Name, read_json
from nsfse_runtime.errors import DataError, NotFoundError

__all__ = ["CIRR", "OFFICIAL"]

SPLITS = ("train", "val", "test1")

OFFICIAL: Mapping[str, int] = {
    "train.queries": 28225,
    "val.queries": 4181,
    "test1.queries": 4148,
    "train.listed": 16939,
    "val.listed": 2297,
    "test1.listed": 2315,
}
"""The official counts by `split.what` (docs/benchmarks.md)."""

_SERVER_KEYS = ("version", "metric")
"""Keys of the test server's files beside the pairids."""

Weight = Annotated[float, msgspec.Meta(ge=-1, le=1)]


class _ImageSet(msgspec.Struct, frozen=True):
    members: tuple[Name, ...]


class _Query(msgspec.Struct, frozen=True):
    """A pair of cap.rc2.test1.json."""

    pairid: int | Name
    reference: Name
    caption: str
    img_set: _ImageSet
    target_hard: Name | None = None
    target_soft: Mapping[Name, Weight] = {}

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target_hard,) if self.target_hard else ()


class _Pair(_Query, frozen=True, kw_only=True):
    """A pair of cap.rc2.train.json or cap.rc2.val.json."""

    target_hard: Name


class CIRR:
    """CIRR rc2; `test` is accepted for `test1`.

    `folder` holds `cap.rc2.*.json` and `split.rc2.*.json` in any depth; images are anywhere under it or under
    `images`: `train/34/x.png`, `train/x.png` or all in one folder, .png or .jpg.
    Raises NotFoundError without the folder, DataError for a file that is not in its form.
    """

    name = "cirr"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        self._index = scan(folder, *([options.images] if options.images else []))
        self._seed = options.seed
        self._lists = {s: self._read_list(s) for s in SPLITS if self._has("split", s)}
        self._pairs = {s: self._read_pairs(s) for s in SPLITS if self._has("cap", s)}
        if not self._lists:
            raise DataError(f"no split.rc2.SPLIT.json under {folder}; give the folder of the official annotations")
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
        silent = sum(not trainable(pair.caption) for pair in self._pairs.get("train", ()))
        line = f"{counted(silent, 'training pair')} left out: no caption, or one far too long"
        return (line,) if silent else ()

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, those missing left out."""
        return tuple(item for item in self._lists.get(_official(split), ()) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the training pairs in a seeded shuffle, those without an image or a caption left out.

        Soft targets of full weight are targets too.

        Args:
            epoch: The epoch, from 0.

        Raises:
            NotFoundError: The train captions are absent.
        """
        if "train" not in self._pairs:
            raise NotFoundError(
                f"no cap.rc2.train.json under {self._index.roots[0]}; CIRR cannot be trained on without it"
            )
        pairs = [p for p in self._pairs["train"] if trainable(p.caption)]
        pairs = [p for p in pairs if p.reference in self.images and p.target_hard in self.images]
        random.Random(f"{self._seed}/{epoch}").shuffle(pairs)
        return [TrainingTriplet(p.reference, p.caption, _right_answers(p)) for p in pairs]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the split's protocol: R@1, 5, 10, 50, R_subset@1, 2, 3 and soft recall, the reference removed."""
        split = _official(split)
        if split not in self._pairs or split not in self._lists:
            return []
        missing = absent(self._lists[split], self.images)
        gallery = tuple(item for item in self._lists[split] if item in self.images)
        queries = tuple(_query(pair) for pair in self._pairs[split])
        note = "R_subset: the five other members of the image set, each ranked by its own score"
        return [
            EvaluationProtocol(
                f"cirr-{split}", "rc2", gallery, queries, True, (1, 5, 10, 50), note, len(missing), missing
            )
        ]

    def check(self) -> CheckReport:
        """Count pairs, listed images and images per split; name odd pairs; decode every image."""
        counts: dict[str, int] = {}
        expected = dict(OFFICIAL)
        for split, listed in self._lists.items():
            if split in self._pairs:
                counts[f"{split}.queries"] = len(self._pairs[split])
            counts[f"{split}.listed"] = len(listed)
            counts[f"{split}.found"] = len(listed) - len(absent(listed, self.images))
            expected[f"{split}.found"] = OFFICIAL[f"{split}.listed"]
        faults, odd = self._findings()
        broken = broken_images(sorted(set(self.images.values())), self._index)
        notes = (*map(str, odd.all()), *self._notes())
        return CheckReport(self.name, counts, expected, self.missing, broken, notes, faults.all(), self._index.skipped)

    def _file(self, kind: str, split: str) -> str:
        return f"{kind}.rc2.{split}.json"

    def _has(self, kind: str, split: str) -> bool:
        return self._file(kind, split) in self._index.files

    def _read_list(self, split: str) -> tuple[str, ...]:
        form: Any = Mapping[Name, str] | list[Name]
        names: Iterable[str] = read_json(self._index.file(self._file("split", split)), form, "name")
        return tuple(dict.fromkeys(map(image_id, names)))

    def _read_pairs(self, split: str) -> list[_Query]:
        path = self._index.file(self._file("cap", split))
        listed_pairs: Sequence[_Query] = read_json(
            path, list[_Query] if split == "test1" else list[_Pair], "pair", "pairid"
        )
        pairs = [_with_ids(pair) for pair in listed_pairs]
        first: dict[str, int] = {}
        for number, pair in enumerate(pairs):
            key = str(pair.pairid)
            if first.setdefault(key, number) != number:
                raise DataError(f"{path}: pairs {first[key]} and {number} have the pairid {key}; fix or fetch it again")
            if key in _SERVER_KEYS:
                raise DataError(f"{path}: pair {number}: pairid: {key!r} is a key of the server's files; change it")
            if bool(pair.targets) != bool(pairs[0].targets):
                where = f"{path}: pair {number if pairs[0].targets else 0}"
                raise DataError(f"{where}: target_hard: missing, while other pairs have it; fix or fetch it again")
        return pairs

    def _findings(self) -> tuple[Findings, Findings]:
        """Return what makes pairs unfit to be scored, and what the official files have too."""
        faults, notes = Findings(), Findings()
        split_of: dict[str, str] = {}
        for split, pairs in self._pairs.items():
            listed = frozenset(self._lists[split]) if split in self._lists else Anything()
            for number, pair in enumerate(pairs):
                entry = f"{split} pair {number} (pairid {pair.pairid})"
                _judge(pair, listed, faults, notes, entry)
                if (other := split_of.setdefault(str(pair.pairid), split)) != split:
                    origin = f"of the split {other}"
                    notes.add(f"pairid is also {origin}", f"pairids are also {origin}", entry)
        return faults, notes

    def _notes(self) -> tuple[str, ...]:
        absent_files = [self._file(k, s) for k in ("cap", "split") for s in SPLITS if not self._has(k, s)]
        notes = [f"absent: {', '.join(absent_files)}"] if absent_files else []
        if "train" not in self._pairs:
            notes.append("without cap.rc2.train.json val and test1 can be scored, and nothing trained")
        if not self.images:
            notes.append("no images: the annotations alone can be counted, not trained on or scored")
        elif self.missing:
            notes.append("incomplete: training leaves such pairs out; scores are stamped with what the gallery lacks")
        return tuple(notes)


def _official(split: str) -> str:
    return "test1" if split == "test" else split


def _with_ids(pair: _Query) -> _Query:
    """Return a pair whose names are ids, without an image's suffix."""
    return msgspec.structs.replace(
        pair,
        reference=image_id(pair.reference),
        target_hard=image_id(pair.target_hard) if pair.target_hard else None,
        target_soft={image_id(name): weight for name, weight in pair.target_soft.items()},
        img_set=_ImageSet(tuple(map(image_id, pair.img_set.members))),
    )


def _query(pair: _Query) -> EvalQuery:
    return EvalQuery(
        reference=pair.reference,
        texts=(pair.caption,),
        targets=pair.targets,
        subset=tuple(member for member in pair.img_set.members if member != pair.reference),
        soft=tuple(pair.target_soft.items()),
        pairid=str(pair.pairid),
    )


def _right_answers(pair: _Query) -> tuple[str, ...]:
    soft = (name for name, weight in pair.target_soft.items() if weight >= 1.0)
    return tuple(dict.fromkeys([*pair.targets, *(name for name in soft if name != pair.reference)]))


def _judge(pair: _Query, listed: Container[str], faults: Findings, notes: Findings, entry: str) -> None:
    """Note what is odd about a pair."""
    members = pair.img_set.members
    if pair.reference not in listed:
        faults.add("reference is not in its split", "references are not in their split", f"{entry} {pair.reference}")
    if len(members) != 6:
        faults.add("pair does not have six members", "pairs do not have six members", f"{entry}: {len(members)}")
    if len(set(members)) < len(members):
        faults.add("pair has a member twice", "pairs have a member twice", entry)
    if pair.reference not in members:
        faults.add("reference is not a member of its set", "references are not members of their set", entry)
    if any(member not in listed for member in members):
        faults.add("pair has a member outside its split", "pairs have a member outside their split", entry)
    for target in pair.targets:
        if target == pair.reference:
            faults.add("pair has its reference as target", "pairs have their reference as target", entry)
        if target not in listed:
            faults.add("target is not in its split", "targets are not in their split", f"{entry} {target}")
        if target not in members:
            faults.add("target is not a member of its set", "targets are not members of their set", entry)
    if any(name not in listed for name in pair.target_soft):
        faults.add(
            "pair has a soft target outside its split",
            "pairs have a soft target outside their split",
            entry,
        )
    if pair.reference in pair.target_soft:
        notes.add(
            "pair has its own reference among its soft targets",
            "pairs have their own reference among their soft targets",
            entry,
        )
    if not pair.caption.strip():
        notes.add("pair has no caption", "pairs have no caption", entry)
