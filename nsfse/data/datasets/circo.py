"""CIRCO: several right answers a query among the images of COCO 2017 unlabeled (Baldrati et al., ICCV 2023).

mAP@K counts every right answer, R@K the one that the caption was written for. The reference stays in the gallery, as in
the authors' code. A test server has the answers of `test`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from nsfse.data import EvalQuery, EvaluationProtocol, FolderOptions
from nsfse.data.datasets.file_index import scan
from nsfse.data.datasets.scored_only import ScoredOnly
from nsfse.data.text_files import read_json
from nsfse_runtime.errors import DataError, NotFoundError

OFFICIAL: Mapping[str, int] = {
    "val.queries": 220,
    "test.queries": 800,
    "val.listed": 123403,
    "test.listed": 123403,
}
KS = (5, 10, 25, 50)
IMAGE_LIST = "image_info_unlabeled2017.json"


class _Image(msgspec.Struct, frozen=True):
    id: int


class _Images(msgspec.Struct, frozen=True):
    """The list of COCO's images."""

    images: list[_Image]


class _Query(msgspec.Struct, frozen=True):
    """A query of annotations/val.json or test.json."""

    id: int
    reference_img_id: int
    relative_caption: str
    target_img_id: int | None = None
    gt_img_ids: tuple[int, ...] = ()
    semantic_aspects: tuple[str, ...] = ()


class CIRCO(ScoredOnly):
    """CIRCO; an id is COCO's, of twelve digits.

    `folder` holds `val.json`, `test.json` and COCO's image_info_unlabeled2017.json in any depth; images are anywhere
    under it or under `images`. Raises NotFoundError without one of them, DataError for a file that is not in its form.
    """

    name = "circo"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        index = scan(folder, *([options.images] if options.images else []))
        splits = [split for split in ("val", "test") if f"{split}.json" in index.files]
        if not splits:
            raise NotFoundError(f"no val.json or test.json under {folder}; give the folder of CIRCO's annotations")
        listed = [coco_id(image.id) for image in read_json(index.file(IMAGE_LIST), _Images, "image").images]
        queries = {split: _read(index.file(f"{split}.json")) for split in splits}
        super().__init__(
            index,
            dict.fromkeys(splits, listed),
            queries,
            {k: n for k, n in OFFICIAL.items() if k.split(".")[0] in splits},
        )

    def _protocol(self, split: str) -> EvaluationProtocol:
        return replace(
            super()._protocol(split),
            remove_reference=False,
            ks=KS,
            map_ks=KS,
            first_target_only=True,
            note="mAP@K counts every right answer, R@K the annotated target alone; the reference is kept",
        )


def coco_id(number: int) -> str:
    """Return COCO's number of an image as its file is called."""
    return f"{number:012d}"


def _read(path: Path) -> list[EvalQuery]:
    rows = read_json(path, list[_Query], "query", "id")
    if len({row.id for row in rows}) < len(rows):
        raise DataError(f"{path}: two queries have the same id; fix or fetch it again")
    return [
        EvalQuery(
            coco_id(row.reference_img_id),
            (row.relative_caption,),
            tuple(dict.fromkeys(map(coco_id, [*([row.target_img_id] if row.target_img_id else []), *row.gt_img_ids]))),
            pairid=str(row.id),
            aspects=tuple(dict.fromkeys(row.semantic_aspects)),
        )
        for row in rows
    ]
