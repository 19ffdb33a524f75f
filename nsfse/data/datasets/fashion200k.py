"""Fashion200K: queries made from captions that differ by one word ("replace red with blue").

Facts, rules and counts: docs/benchmarks.md; the rules are TIRG's, down to their quirks, so that the counts agree.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, FolderOptions, Pixels, TrainingTriplet, load_item
from nsfse.data.anomalies import Findings
from nsfse.data.datasets.file_index import absent, broken_images, counted, scan
from nsfse.data.text_files import read_lines
from nsfse_runtime.errors import DataError, NotFoundError

__all__ = ["OFFICIAL", "Fashion200K", "clean_caption", "modification"]

CATEGORIES = ("dress", "jacket", "pants", "skirt", "top")
SPLITS = ("train", "test")
MARKS = {".": "dotmark", "?": "questionmark", "&": "andmark", "*": "starmark"}

OFFICIAL: Mapping[str, int] = {
    "train.listed": 172049,
    "train.captions": 53099,
    "train.modifiable": 106464,
    "test.listed": 29789,
    "test.queries": 33480,
}
"""The official counts by `split.what` (docs/benchmarks.md; test queries: the file that TIRG released)."""


class Fashion200K:
    """Fashion200K; an id is the path as the label files write it, `women/<cat>/<sub>/<id>/<id>_<n>.jpeg`.

    `folder` holds the label files and `test_queries.txt` in any depth; images are anywhere under it or under
    `images`. `val` is accepted for `test`: there is no other held-out split.
    Raises NotFoundError without the folder, DataError for a file that is not in its form.
    """

    name = "fashion200k"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        self._index = scan(folder, *([options.images] if options.images else []))
        self._seed = options.seed
        self._twice: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
        self._captions = {split: self._read_labels(split) for split in SPLITS}
        if not any(self._captions.values()):
            raise DataError(
                f"no CATEGORY_SPLIT_detect_all.txt under {folder}; give the folder with the official labels"
            )
        listed = [item for captions in self._captions.values() for item in captions]
        self.images = self._index.locate(listed)
        self.missing = absent(listed, self.images)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read, and the test queries left out, a line each."""
        if all(self._captions["test"].values()) or "test_queries.txt" not in self._index.files:
            return self._index.notes
        silent = sum(not self._is_described(pair) for pair in self._test_pairs())
        line = f"{counted(silent, 'test query', 'test queries')} left out: no description"
        return (*self._index.notes, *([line] if silent else []))

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, those missing left out."""
        return tuple(item for item in self._captions.get(_official(split), ()) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return one fresh triplet for each modifiable image, shuffled.

        Pairs are drawn from the images that are there. All images of the target's caption are targets.

        Args:
            epoch: The epoch, from 0.

        Raises:
            NotFoundError: The train labels are absent.
        """
        if not self._captions["train"]:
            raise NotFoundError(f"no train labels under {self._index.roots[0]}; Fashion200K cannot be trained on")
        rng = random.Random(f"{self._seed}/{epoch}")
        sources = [item for items in self._siblings[0].values() for item in items]
        rng.shuffle(sources)
        return [self._sample(source, rng) for source in sources]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return TIRG's protocol on the test split: R@1, 10, 50, a hit if the caption is the target's.

        A pair in which an image has no description has no modification text: it is left out, and the
        note counts it. An image that is listed with several descriptions is right for each, and its
        last one makes the text.
        """
        if _official(split) != "test" or "test_queries.txt" not in self._index.files:
            return []
        captions = self._captions["test"]
        missing = absent(captions, self.images)
        gallery = tuple(item for item in captions if item in self.images)
        alike: dict[str, list[str]] = defaultdict(list)
        for item, caption in captions.items():
            for text in dict.fromkeys([*self._twice["test"].get(item, ()), caption]):
                alike[text].append(item)
        pairs = self._test_pairs()
        described = [pair for pair in pairs if self._is_described(pair)]
        queries = tuple(self._query(source, target, alike) for source, target in described)
        note = "a hit is any image with the target's caption; the query image is excluded"
        if silent := len(pairs) - len(described):
            note += f"; {counted(silent, 'query', 'queries')} without a description left out"
        return [
            EvaluationProtocol(
                "fashion200k-tirg", "1", gallery, queries, True, (1, 10, 50), note, len(missing), missing
            )
        ]

    def check(self) -> CheckReport:
        """Count images, captions, modifiable images and test queries; decode every image."""
        train = self._captions["train"]
        has_queries = "test_queries.txt" in self._index.files
        counts = {
            "train.listed": len(train),
            "train.captions": len(set(train.values())),
            "train.modifiable": sum(len(items) for items in _families(train)[0].values()),
            "test.listed": len(self._captions["test"]),
            "test.queries": len(self._test_pairs()) if has_queries else 0,
        }
        expected = dict(OFFICIAL)
        for split, captions in self._captions.items():
            counts[f"{split}.found"] = len(captions) - len(absent(captions, self.images))
            expected[f"{split}.found"] = OFFICIAL[f"{split}.listed"]
        broken = broken_images(sorted(set(self.images.values())), self._index)
        faults, odd = self._findings(self._test_pairs() if has_queries else [])
        notes = [*map(str, odd.all())]
        if not has_queries:
            notes.append("absent: test_queries.txt (TIRG's release): nothing can be scored without it")
        return CheckReport(
            self.name, counts, expected, self.missing, broken, tuple(notes), faults.all(), self._index.skipped
        )

    def _read_labels(self, split: str) -> dict[str, str]:
        captions: dict[str, str] = {}
        for category in CATEGORIES:
            path = self._index.files.get(f"{category}_{split}_detect_all.txt")
            for number, line in read_lines(path) if path else ():
                fields = line.split("\t")
                if len(fields) < 3 or not fields[0].strip():
                    raise DataError(
                        f"{path} line {number} is not path, score and description with tabs; fix or fetch it again"
                    )
                item = fields[0].strip()
                if item in captions:
                    self._twice[split].setdefault(item, []).append(captions[item])
                captions[item] = clean_caption(fields[2])
        return captions

    def _test_pairs(self) -> list[tuple[str, str]]:
        path = self._index.file("test_queries.txt")
        pairs: list[tuple[str, str]] = []
        for number, line in read_lines(path):
            items = line.split()
            unlisted = [item for item in items if item not in self._captions["test"]]
            if len(items) != 2:
                raise DataError(f"{path} line {number} is not two paths; fix or fetch it again")
            if unlisted:
                raise DataError(
                    f"{path} line {number} names {unlisted[0]}, which no test label file lists; fetch both again"
                )
            pairs.append((items[0], items[1]))
        return pairs

    def _is_described(self, pair: tuple[str, str]) -> bool:
        """Return whether both images of a test query have a description."""
        return all(self._captions["test"][item].split() for item in pair)

    def _findings(self, pairs: Sequence[tuple[str, str]]) -> tuple[Findings, Findings]:
        """Return what makes entries unfit to be scored, and what only has to be known."""
        faults, notes = Findings(), Findings()
        for split, captions in self._captions.items():
            for item, caption in captions.items():
                if not caption.split():
                    notes.add("image has no description", "images have no description", f"{split} {item}")
            for item in self._twice[split]:
                faults.add("path is listed twice", "paths are listed twice", f"{split} {item}")
        for item in self._captions["train"]:
            if item in self._captions["test"]:
                faults.add("path is in both splits", "paths are in both splits", item)
        for number, (source, target) in enumerate(pairs):
            entry = f"query {number} {source}"
            if not self._is_described((source, target)):
                faults.add("query lacks a description", "queries lack a description", entry)
            if source == target:
                faults.add("query has its reference as target", "queries have their reference as target", entry)
        return faults, notes

    def _query(self, source: str, target: str, alike: Mapping[str, Sequence[str]]) -> EvalQuery:
        captions = self._captions["test"]
        text = modification(captions[source], captions[target])
        return EvalQuery(source, (text,), _preferred(target, alike[captions[target]]))

    def _sample(self, source: str, rng: random.Random) -> TrainingTriplet:
        images, children, parents = self._siblings
        caption = self._captions["train"][source]
        parent = rng.choice(parents[caption])
        chosen = rng.choice([child for child in children[parent] if child != caption])
        targets = _preferred(rng.choice(images[chosen]), images[chosen])
        return TrainingTriplet(source, modification(caption, chosen), targets)

    @cached_property
    def _siblings(self) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
        return _families({item: text for item, text in self._captions["train"].items() if item in self.images})


def clean_caption(text: str) -> str:
    """Return a description as TIRG cleans it: stripped, four marks spelled out."""
    text = text.strip()
    for mark, word in MARKS.items():
        text = text.replace(mark, word)
    return text


def modification(source: str, target: str) -> str:
    """Return "replace A with B": the first word that only `source` has, and the first that only `target` has."""
    ours, theirs = source.split(), target.split()
    left = next((word for word in ours if word not in theirs), ours[-1])
    right = next((word for word in theirs if word not in ours), theirs[-1])
    return f"replace {left} with {right}"


def _families(
    captions: Mapping[str, str],
) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """Return caption → its images, parent → its captions, caption → its parents, for modifiable images alone.

    A parent is a caption with every occurrence of one of its words cut out, inside other words too.
    The published count of modifiable images depends on that.
    """
    children: dict[str, dict[str, None]] = defaultdict(dict)
    for caption in dict.fromkeys(captions.values()):
        for word in caption.split():
            children[caption.replace(word, "").replace("  ", " ").strip()][caption] = None
    shared = {parent: list(siblings) for parent, siblings in children.items() if len(siblings) > 1}
    parents: dict[str, list[str]] = defaultdict(list)
    for parent, siblings in shared.items():
        for caption in siblings:
            parents[caption].append(parent)
    images: dict[str, list[str]] = defaultdict(list)
    for item, caption in captions.items():
        if caption in parents:
            images[caption].append(item)
    return images, shared, parents


def _preferred(first: str, items: Sequence[str]) -> tuple[str, ...]:
    return (first, *(item for item in items if item != first))


def _official(split: str) -> str:
    return "test" if split == "val" else split
