"""FashionIQ: three categories, two captions a pair, and two galleries that must never share a table.

Facts and counts: docs/benchmarks.md. `candidate` in the official files is the reference, here and nowhere else.
"""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from nsfse.data import CheckReport, Pixels, Protocol, Triplet, load_picture
from nsfse.data.layout import Layout, absent, broken_pictures, read_json, scan
from nsfse_runtime.errors import DataError, UsageError

__all__ = ["CATEGORIES", "OFFICIAL", "FashionIQ"]

CATEGORIES = ("dress", "shirt", "toptee")
SPLITS = ("train", "val", "test")

OFFICIAL: Mapping[str, int] = {
    **{f"{c}.train.queries": n for c, n in zip(CATEGORIES, (5985, 5988, 6027), strict=True)},
    **{f"{c}.val.queries": n for c, n in zip(CATEGORIES, (2017, 2038, 1961), strict=True)},
    **{f"{c}.val.gallery-original": n for c, n in zip(CATEGORIES, (3817, 6346, 5373), strict=True)},
    **{f"{c}.val.gallery-VAL": n for c, n in zip(CATEGORIES, (2628, 3089, 2902), strict=True)},
}
"""The official counts by `category.split.what` (docs/benchmarks.md)."""

Join = Literal["c1 and c2", "both orders"]


class FashionIQ:
    """The three categories as one source.

    `folder` holds `captions/cap.*.json` and `image_splits/split.*.json` in any depth; pictures lie anywhere under it
    or under `images`: one folder or one per category, `ID.jpg`, `ID.png` or `CATEGORY_ID.jpg`.
    `join`: one query "c1 and c2" (CLIP4Cir), or both orders, scored as two phrasings (CoSMo, ARTEMIS).
    Raises NotFoundError without the folder, DataError for a file that is not in its form.
    """

    name = "fashioniq"

    def __init__(self, folder: Path, *, images: Path | None = None, seed: int = 0, join: Join = "c1 and c2") -> None:
        if join not in ("c1 and c2", "both orders"):
            raise UsageError(f"join is {join!r}; it is 'c1 and c2' or 'both orders'")
        self._layout = scan(folder, *([images] if images else []))
        self._seed = seed
        self._join = join
        self._lists: dict[tuple[str, str], tuple[str, ...]] = {}
        self._pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for category in CATEGORIES:
            for split in SPLITS:
                self._read(category, split)
        if not self._lists:
            raise DataError(f"no split.CATEGORY.SPLIT.json under {folder}; give the folder of the official annotations")
        self.images = self._find_pictures()
        self.missing = absent((item for ids in self._lists.values() for item in ids), self.images)

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one picture [H, W, 3] fitted to `size` (H, W)."""
        return load_picture(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split over the three categories, those missing left out."""
        ids = dict.fromkeys(item for c in CATEGORIES for item in self._lists.get((c, split), ()))
        return tuple(item for item in ids if item in self.images)

    def triplets(self, epoch: int) -> list[Triplet]:
        """Return the training pairs in a seeded shuffle; a quarter each is told as c1+c2, c2+c1, c1 and c2 (CLIP4Cir).

        Pairs with a missing picture are left out: `missing` and the score's stamp say how many pictures that is.
        """
        rng = random.Random(f"{self._seed}/{epoch}")
        pairs = [pair for c in CATEGORIES for pair in self._pairs.get((c, "train"), ())]
        pairs = [pair for pair in pairs if pair["candidate"] in self.images and pair["target"] in self.images]
        rng.shuffle(pairs)
        return [Triplet(p["candidate"], (_told(p["captions"], rng),), (p["target"],)) for p in pairs]

    def protocols(self, split: str) -> list[Protocol]:
        """Return, per category, both galleries with the reference removed and kept; none for test (no targets)."""
        found: list[Protocol] = []
        for category in CATEGORIES:
            pairs = self._pairs.get((category, split), [])
            if split == "test" or not pairs:
                continue
            for gallery, listed in self._galleries(category, split):
                found += [self._protocol(gallery, category, split, listed, pairs, keep) for keep in (False, True)]
        return found

    def check(self) -> CheckReport:
        """Count queries, galleries and pictures per category and split; decode every picture."""
        counts: dict[str, int] = {}
        expected = dict(OFFICIAL)
        for (category, split), ids in self._lists.items():
            pairs, key = self._pairs.get((category, split), []), f"{category}.{split}"
            counts[f"{key}.queries"] = len(pairs)
            if split == "val":
                counts |= {f"{key}.gallery-{name}": len(listed) for name, listed in self._galleries(category, split)}
            counts[f"{key}.pictures"] = len(ids) - len(absent(ids, self.images))
            expected[f"{key}.pictures"] = len(ids)
        listed_ids = {item for ids in self._lists.values() for item in ids}
        broken = broken_pictures(
            sorted({self.images[item] for item in listed_ids if item in self.images}), self._layout
        )
        return CheckReport(self.name, counts, expected, self.missing, broken, self._notes())

    def _read(self, category: str, split: str) -> None:
        names = self._layout.files
        if f"split.{category}.{split}.json" in names:
            ids = read_json(names[f"split.{category}.{split}.json"])
            self._lists[category, split] = tuple(dict.fromkeys(ids))
        if f"cap.{category}.{split}.json" in names:
            path = names[f"cap.{category}.{split}.json"]
            pairs = read_json(path)
            if not isinstance(pairs, list) or not all({"candidate", "captions"} <= pair.keys() for pair in pairs):
                raise DataError(f"{path} is not a list of {{candidate, captions, target}}; fetch it again")
            self._pairs[category, split] = pairs

    def _find_pictures(self) -> dict[str, Path]:
        layout: Layout = self._layout
        images = layout.locate(item for ids in self._lists.values() for item in ids)
        for (category, _), ids in self._lists.items():
            prefixed = layout.locate(f"{category}_{item}" for item in ids if item not in images)
            images |= {name.removeprefix(f"{category}_"): path for name, path in prefixed.items()}
        return images

    def _galleries(self, category: str, split: str) -> list[tuple[str, tuple[str, ...]]]:
        whole = self._lists.get((category, split), ())
        used = {pair[role] for pair in self._pairs[category, split] for role in ("candidate", "target")}
        return [("original", whole), ("VAL", tuple(item for item in whole if item in used))]

    def _protocol(
        self, gallery: str, category: str, split: str, listed: tuple[str, ...], pairs: list[dict[str, Any]], keep: bool
    ) -> Protocol:
        missing = absent(listed, self.images)
        present = tuple(item for item in listed if item in self.images)
        name = f"fashioniq-{gallery}{'-keepref' if keep else ''}-{category}{'' if split == 'val' else '-' + split}"
        queries = tuple(Triplet(p["candidate"], _joined(p["captions"], self._join), (p["target"],)) for p in pairs)
        which = "all of the split" if gallery == "original" else "the split's references and targets"
        note = f"gallery: {which}; captions: {self._join}; reference {'kept' if keep else 'removed'}"
        return Protocol(name, "1", present, queries, not keep, (1, 10, 50), note, len(missing), missing)

    def _notes(self) -> tuple[str, ...]:
        gone = [
            f"{c}.{s}" for c in CATEGORIES for s in SPLITS if (c, s) not in self._lists or (c, s) not in self._pairs
        ]
        notes = [f"no annotations for {', '.join(gone)}"] if gone else []
        if not self.images:
            notes.append("no pictures: the annotations alone can be counted, not trained on or scored")
        elif self.missing:
            notes.append("incomplete: training leaves such pairs out; scores are stamped with what the gallery lacks")
        return tuple(notes)


def _spoken(captions: Iterable[str]) -> list[str]:
    return [caption.strip() for caption in captions if caption.strip()]


def _joined(captions: Iterable[str], join: Join) -> tuple[str, ...]:
    said = _spoken(captions)
    one = " and ".join(said)
    return (one,) if join == "c1 and c2" else (one, " and ".join(reversed(said)))


def _told(captions: Iterable[str], rng: random.Random) -> str:
    said = _spoken(captions)
    ways = [" and ".join(said), " and ".join(reversed(said)), said[0], said[-1]]
    return rng.choice(ways)
