"""FashionIQ: three categories, two captions a pair, and two galleries that must never share a table.

Facts and counts: docs/benchmarks.md. `candidate` in the official files is the reference, here and nowhere else.
"""

import random
from collections.abc import Container, Iterable, Mapping, Sequence
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
from nsfse.data.anomalies import Anything, Findings
from nsfse.data.datasets.file_index import absent, broken_images, counted, image_id, scan
from nsfse.data.text_files import Name, read_json
from nsfse_runtime.errors import DataError, UsageError

__all__ = ["CATEGORIES", "OFFICIAL", "FashionIQ", "FashionIQOptions"]

CATEGORIES = ("dress", "shirt", "toptee")
SPLITS = ("train", "val", "test")

OFFICIAL: Mapping[str, int] = {
    **{f"{c}.train.queries": n for c, n in zip(CATEGORIES, (5985, 5988, 6027), strict=True)},
    **{f"{c}.val.queries": n for c, n in zip(CATEGORIES, (2017, 2038, 1961), strict=True)},
    **{f"{c}.val.gallery-original": n for c, n in zip(CATEGORIES, (3817, 6346, 5373), strict=True)},
    **{f"{c}.val.gallery-VAL": n for c, n in zip(CATEGORIES, (2628, 3089, 2902), strict=True)},
}
"""The official counts by `category.split.what` (docs/benchmarks.md)."""

JOINS = ("c1 and c2", "both orders", "clip4cir")
_MARKS = ".?, "
"""What CLIP4Cir and those after it cut off both ends of a caption."""


class FashionIQOptions(FolderOptions, frozen=True, kw_only=True):
    """Options of FashionIQ."""

    join: str = "c1 and c2"
    """How the two captions of a pair become a text.

    `c1 and c2`: one query, the captions as they are. `both orders`: scored as two phrasings (CoSMo, ARTEMIS).
    `clip4cir` is the form of CLIP4Cir, SPRC and Bi-BLIP4CIR: marks are cut off both ends and the
    first caption is capitalised. It is "C1 and c2" even where one of them is empty.
    """

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown rule."""
        if self.join not in JOINS:
            raise UsageError(f"join is {self.join!r}; it is one of: {', '.join(JOINS)}")


class _Query(msgspec.Struct, frozen=True):
    """A pair of the test split: its target is not published."""

    candidate: Name
    captions: tuple[str, ...]


class _Pair(_Query, frozen=True):
    """A pair of cap.CATEGORY.SPLIT.json."""

    target: Name


class FashionIQ:
    """The three categories as one source.

    Args:
        folder: Has `captions/cap.*.json` and `image_splits/split.*.json` in any depth. Images are
            anywhere under it or under `options.images`, in one folder or one per category. They are
            named `ID.jpg`, `ID.png` or `CATEGORY_ID.jpg`.
        options: Options of the reader.

    Raises:
        NotFoundError: The folder is not there.
        DataError: A file is not in its form.
    """

    name = "fashioniq"

    def __init__(self, folder: Path, options: FashionIQOptions | None = None) -> None:
        options = options or FashionIQOptions()
        self._index = scan(folder, *([options.images] if options.images else []))
        self._seed = options.seed
        self._join = options.join
        self._lists: dict[tuple[str, str], tuple[str, ...]] = {}
        self._pairs: dict[tuple[str, str], list[_Query]] = {}
        for category in CATEGORIES:
            for split in SPLITS:
                self._read(category, split)
        if not self._lists:
            raise DataError(f"no split.CATEGORY.SPLIT.json under {folder}; give the folder of the official annotations")
        self.images = self._find_images()
        self.missing = absent((item for ids in self._lists.values() for item in ids), self.images)

    @property
    def notes(self) -> tuple[str, ...]:
        """Folders and files that could not be read, a line each."""
        return self._index.notes

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out, a line each."""
        silent = sum(not trainable(_all_of(pair.captions)) for c in CATEGORIES for pair in self._answered(c, "train"))
        line = f"{counted(silent, 'training pair')} left out: no caption, or one far too long"
        return (line,) if silent else ()

    @property
    def training_texts(self) -> tuple[str, ...]:
        """Every caption that training may use."""
        return tuple(c for category in CATEGORIES for pair in self._trained(category) for c in pair.captions)

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split over the three categories, those missing left out."""
        ids = dict.fromkeys(item for c in CATEGORIES for item in self._lists.get((c, split), ()))
        return tuple(item for item in ids if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the training pairs in a seeded shuffle.

        A quarter each has the text c1+c2, c2+c1, c1 and c2 (CLIP4Cir). Pairs with a missing image, and
        those without a caption, are left out: see `missing` and `left_out`.
        """
        rng = random.Random(f"{self._seed}/{epoch}")
        pairs = [pair for category in CATEGORIES for pair in self._trained(category)]
        rng.shuffle(pairs)
        return [TrainingTriplet(p.candidate, _training_text(p.captions, self._join, rng), (p.target,)) for p in pairs]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return, per category, both galleries with and without the reference; none for test (no targets)."""
        protocols: list[EvaluationProtocol] = []
        for category in CATEGORIES:
            pairs = self._answered(category, split)
            if not pairs:
                continue
            for gallery, listed in self._galleries(category, split):
                protocols += [self._protocol(gallery, category, split, listed, pairs, keep) for keep in (False, True)]
        return protocols

    def check(self) -> CheckReport:
        """Count queries, galleries and images per category and split; name odd pairs; decode every image."""
        counts: dict[str, int] = {}
        expected = dict(OFFICIAL)
        for (category, split), ids in self._lists.items():
            key = f"{category}.{split}"
            counts[f"{key}.queries"] = len(self._pairs.get((category, split), []))
            if split == "val":
                counts |= {f"{key}.gallery-{name}": len(listed) for name, listed in self._galleries(category, split)}
            counts[f"{key}.found"] = len(ids) - len(absent(ids, self.images))
            expected[f"{key}.found"] = len(ids)
        faults, odd = self._findings()
        broken = broken_images(sorted(set(self.images.values())), self._index)
        notes = (*map(str, odd.all()), *self._notes())
        return CheckReport(self.name, counts, expected, self.missing, broken, notes, faults.all(), self._index.skipped)

    def _read(self, category: str, split: str) -> None:
        files = self._index.files
        if path := files.get(f"split.{category}.{split}.json"):
            self._lists[category, split] = tuple(dict.fromkeys(map(image_id, read_json(path, list[Name], "id"))))
        if path := files.get(f"cap.{category}.{split}.json"):
            read: Sequence[_Query] = read_json(
                path, list[_Query] if split == "test" else list[_Pair], "pair", "candidate"
            )
            self._pairs[category, split] = [_with_ids(pair) for pair in read]

    def _answered(self, category: str, split: str) -> list[_Pair]:
        return [pair for pair in self._pairs.get((category, split), ()) if isinstance(pair, _Pair)]

    def _trained(self, category: str) -> list[_Pair]:
        pairs = self._answered(category, "train")
        present = [pair for pair in pairs if pair.candidate in self.images and pair.target in self.images]
        return [pair for pair in present if trainable(_all_of(pair.captions))]

    def _find_images(self) -> dict[str, Path]:
        images = self._index.locate(item for ids in self._lists.values() for item in ids)
        for (category, _), ids in self._lists.items():
            prefixed = self._index.locate(f"{category}_{item}" for item in ids if item not in images)
            images |= {name.removeprefix(f"{category}_"): path for name, path in prefixed.items()}
        return images

    def _galleries(self, category: str, split: str) -> list[tuple[str, tuple[str, ...]]]:
        whole = self._lists.get((category, split), ())
        used = {item for pair in self._pairs.get((category, split), ()) for item in _ids(pair)}
        return [("original", whole), ("VAL", tuple(item for item in whole if item in used))]

    def _protocol(
        self, gallery: str, category: str, split: str, listed: tuple[str, ...], pairs: Sequence[_Pair], keep: bool
    ) -> EvaluationProtocol:
        missing = absent(listed, self.images)
        present = tuple(item for item in listed if item in self.images)
        name = f"fashioniq-{gallery}{'-keepref' if keep else ''}-{category}{'' if split == 'val' else '-' + split}"
        queries = tuple(EvalQuery(p.candidate, _joined(p.captions, self._join), (p.target,)) for p in pairs)
        scope = "all of the split" if gallery == "original" else "the split's references and targets"
        note = f"gallery: {scope}; captions: {self._join}; reference {'kept' if keep else 'removed'}"
        return EvaluationProtocol(name, "1", present, queries, not keep, (1, 10, 50), note, len(missing), missing)

    def _findings(self) -> tuple[Findings, Findings]:
        """Return what makes pairs unfit to be scored, and what the official files have too."""
        faults, notes = Findings(), Findings()
        for (category, split), pairs in self._pairs.items():
            seen: set[_Pair] = set()
            ids = self._lists.get((category, split))
            listed = Anything() if ids is None else frozenset(ids)
            for number, pair in enumerate(pairs):
                _judge_captions(pair, notes, f"{category}.{split} pair {number}")
                _judge_images(pair, listed, seen, faults, f"{category}.{split} pair {number}")
        return faults, notes

    def _notes(self) -> tuple[str, ...]:
        absent_lists = [
            f"{c}.{s}" for c in CATEGORIES for s in SPLITS if (c, s) not in self._lists or (c, s) not in self._pairs
        ]
        notes = [f"no annotations for {', '.join(absent_lists)}"] if absent_lists else []
        if not self.images:
            notes.append("no images: the annotations alone can be counted, not trained on or scored")
        elif self.missing:
            notes.append("incomplete: training leaves such pairs out; scores are stamped with what the gallery lacks")
        return tuple(notes)


def _with_ids(pair: _Query) -> _Query:
    names = {"candidate": image_id(pair.candidate)}
    if isinstance(pair, _Pair):
        names["target"] = image_id(pair.target)
    return msgspec.structs.replace(pair, **names)


def _ids(pair: _Query) -> tuple[str, ...]:
    return (pair.candidate, pair.target) if isinstance(pair, _Pair) else (pair.candidate,)


def _judge_captions(pair: _Query, notes: Findings, entry: str) -> None:
    texts = _not_blank(pair.captions)
    if not texts:
        notes.add("pair has no caption", "pairs have no caption", entry)
    elif len(texts) < len(pair.captions):
        notes.add("pair has an empty caption", "pairs have an empty caption", entry)
    if len(pair.captions) != 2:
        notes.add("pair does not have two captions", "pairs do not have two captions", entry)


def _judge_images(pair: _Query, listed: Container[str], seen: set[_Pair], faults: Findings, entry: str) -> None:
    if pair.candidate not in listed:
        faults.add("reference is not in its split", "references are not in their split", f"{entry} {pair.candidate}")
    if not isinstance(pair, _Pair):
        return
    if pair.target not in listed:
        faults.add("target is not in its split", "targets are not in their split", f"{entry} {pair.target}")
    if pair.target == pair.candidate:
        faults.add("pair has its reference as target", "pairs have their reference as target", entry)
    if pair in seen:
        faults.add("pair is there twice", "pairs are there twice", entry)
    seen.add(pair)


def _not_blank(captions: Iterable[str]) -> list[str]:
    return [caption.strip() for caption in captions if caption.strip()]


def _all_of(captions: Iterable[str]) -> str:
    return " and ".join(_not_blank(captions))


def _joined(captions: Sequence[str], join: str) -> tuple[str, ...]:
    if join == "clip4cir":
        return (_clip4cir(captions) if captions else "",)
    texts = _not_blank(captions)
    joined = _all_of(captions)
    return (joined,) if join == "c1 and c2" else (joined, " and ".join(reversed(texts)))


def _clip4cir(captions: Sequence[str]) -> str:
    first, *others = (caption.strip(_MARKS) for caption in captions)
    return " and ".join([first.capitalize(), *others])


def _training_text(captions: Sequence[str], join: str, rng: random.Random) -> str:
    """Return a training text: c1 and c2, c2 and c1, c1 or c2, each as `join` writes it."""
    texts = _not_blank(captions)
    if join == "clip4cir":
        cut = [bare for caption in texts if (bare := caption.strip(_MARKS))] or texts
        choices = [_clip4cir(cut), _clip4cir(cut[::-1]), cut[0].capitalize(), cut[-1].capitalize()]
    else:
        choices = [" and ".join(texts), " and ".join(reversed(texts)), texts[0], texts[-1]]
    return rng.choice(choices)
