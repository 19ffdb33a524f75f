"""GeneCIS: a gallery of 10 to 15 images for each query, in four tasks (Vaze et al., CVPR 2023).

R@K is that among a query's own gallery, here R_subset@K. The attribute tasks show cut-outs of Visual Genome's images,
widened and padded to squares as in the authors' code; the object tasks show images of COCO's val2017.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from nsfse.data import EvalQuery, EvaluationProtocol, FolderOptions, Pixels, load_item
from nsfse.data.datasets.circo import coco_id
from nsfse.data.datasets.file_index import scan
from nsfse.data.datasets.scored_only import ScoredOnly
from nsfse.data.text_files import read_json
from nsfse_runtime.errors import NotFoundError

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
WIDENED = 0.7
"""Part of a box's sides that is added to a cut-out."""
_MARK = "#"


class _Image(msgspec.Struct, frozen=True):
    """An image of an object task, or a cut-out (x, y, width, height) of an attribute task."""

    val_image_id: int | None = None
    image_id: int | None = None
    instance_bbox: tuple[float, float, float, float] | None = None

    @property
    def name(self) -> str:
        if self.val_image_id is not None:
            return coco_id(self.val_image_id)
        box = ",".join(f"{side:g}" for side in self.instance_bbox or ())
        return f"{self.image_id}{_MARK}{box}" if box else str(self.image_id)


class _Query(msgspec.Struct, frozen=True):
    reference: _Image
    target: _Image
    gallery: tuple[_Image, ...]
    condition: str


class GeneCIS(ScoredOnly):
    """GeneCIS; each of its four tasks is a split of its own, and `test` is all of them.

    `folder` holds TASK.json in any depth; images are anywhere under it or under `images`. Queries whose gallery has
    another size than most of the task's are left out, as in the authors' code. Raises NotFoundError or DataError.
    """

    name = "genecis"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        index = scan(folder, *([options.images] if options.images else []))
        tasks = [task for task in TASKS if f"{task}.json" in index.files]
        if not tasks:
            raise NotFoundError(f"no {TASKS[0]}.json under {folder}; give the folder of GeneCIS' annotations")
        queries = {task: _read(index.file(f"{task}.json")) for task in tasks}
        listed = {
            task: list(dict.fromkeys(item for query in each for item in query.subset)) for task, each in queries.items()
        }
        super().__init__(index, listed, queries, {})

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocol of a task, or those of all tasks for `test`."""
        return [self._protocol(task) for task in self._queries if split in (task, "test", "val")]

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return an image, or a cut-out in a black square, [H, W, 3] fitted to `size` (H, W)."""
        if _MARK not in item:
            return load_item(self.images, item, size)
        from nsfse_runtime.images.decode import decode_image, fit_image

        return fit_image(cut_out(decode_image(self.images[item]), item.partition(_MARK)[2]), size)

    def _locate(self, names: Iterable[str]) -> dict[str, Path]:
        files: Mapping[str, Path] = self._index.locate(dict.fromkeys(name.partition(_MARK)[0] for name in names))
        return {name: files[file] for name in names if (file := name.partition(_MARK)[0]) in files}

    def _protocol(self, split: str) -> EvaluationProtocol:
        note = "each query has a gallery of its own: its R@K is R_subset@K"
        return replace(super()._protocol(split), remove_reference=False, ks=(), note=note)


def cut_out(pixels: Pixels, box: str) -> Pixels:
    """Cut a box "x,y,width,height" out of `pixels` [H, W, 3], widened, in the middle of a black square [S, S, 3]."""
    height, width = pixels.shape[:2]
    x, y, box_width, box_height = map(float, box.split(","))
    left, top = max(0.0, x - WIDENED * box_width), max(0.0, y - WIDENED * box_height)
    right = min(width, left + (1 + WIDENED) * box_width)
    bottom = min(height, top + (1 + WIDENED) * box_height)
    part = pixels[round(top) : round(bottom), round(left) : round(right)]
    side = max(part.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    at = [(side - length) // 2 for length in part.shape[:2]]
    square[at[0] : at[0] + part.shape[0], at[1] : at[1] + part.shape[1]] = part
    return square


def _read(path: Path) -> list[EvalQuery]:
    rows = read_json(path, list[_Query], "query")
    sizes = Counter(len(row.gallery) for row in rows)
    usual = min((size for size in sizes if sizes[size] == max(sizes.values())), default=0)
    return [
        EvalQuery(
            row.reference.name,
            (row.condition,),
            (row.target.name,),
            subset=tuple(image.name for image in (*row.gallery, row.target)),
        )
        for row in rows
        if len(row.gallery) == usual
    ]
