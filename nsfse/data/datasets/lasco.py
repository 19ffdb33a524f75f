"""LaSCo: edits of COCO images made from questions and answers (Levy et al., AAAI 2024)."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from nsfse.data import EvalQuery, EvaluationProtocol, FolderOptions, TrainingTriplet, trainable
from nsfse.data.datasets.file_index import image_id, scan
from nsfse.data.datasets.scored_only import ScoredOnly
from nsfse.data.text_files import Name, read_json
from nsfse_runtime.errors import NotFoundError

OFFICIAL: Mapping[str, int] = {"val.listed": 39826}
KS = (1, 5, 10, 50, 100, 500)
_Image = tuple[int, Name]
"""COCO's number of an image, and its path."""


class _Listed(msgspec.Struct, frozen=True):
    path: Name


class _Query(msgspec.Struct, frozen=True):
    """A triplet of lasco_train.json or lasco_val.json."""

    qid: int
    reference: _Image = msgspec.field(name="query-image")
    text: str = msgspec.field(name="query-text")
    target: _Image = msgspec.field(name="target-image")


class LaSCo(ScoredOnly):
    """LaSCo; an id is the name of COCO's file without its suffix.

    `folder` holds `lasco_val.json` with `lasco_val_corpus.json`, or `lasco_train.json`, in any depth; images are
    anywhere under it or under `images`. Raises NotFoundError without one of them, DataError for one not in its form.
    """

    name = "lasco"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        self._seed = options.seed
        index = scan(folder, *([options.images] if options.images else []))
        splits = [split for split in ("train", "val") if f"lasco_{split}.json" in index.files]
        if not splits:
            raise NotFoundError(
                f"no lasco_val.json or lasco_train.json under {folder}; give the folder of LaSCo's files"
            )
        queries = {split: _read(index.file(f"lasco_{split}.json")) for split in splits}
        listed: dict[str, list[str]] = {}
        for split, pairs in queries.items():
            shown = dict.fromkeys(item for pair in pairs for item in (pair.reference, *pair.targets))
            listed[split] = list(shown)
        if "val" in splits:
            corpus = read_json(index.file("lasco_val_corpus.json"), list[_Listed], "image")
            listed["val"] = [image_id(image.path) for image in corpus]
        super().__init__(index, listed, queries, OFFICIAL if "val" in splits else {})

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the training triplets in a seeded shuffle, those without an image or a text left out."""
        triplets = [
            TrainingTriplet(query.reference, query.texts[0], query.targets)
            for query in self._queries.get("train", ())
            if trainable(query.texts[0]) and query.reference in self.images and query.targets[0] in self.images
        ]
        random.Random(f"{self._seed}/{epoch}").shuffle(triplets)
        return triplets

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocol of `val`: R@K among the images of its corpus, the reference removed."""
        if split != "val" or split not in self._queries:
            return []
        note = "gallery: lasco_val_corpus.json; the reference is removed"
        return [replace(self._protocol(split), ks=KS, note=note)]


def _read(path: Path) -> list[EvalQuery]:
    return [
        EvalQuery(image_id(row.reference[1]), (row.text,), (image_id(row.target[1]),), pairid=str(row.qid))
        for row in read_json(path, list[_Query], "triplet", "qid")
    ]
