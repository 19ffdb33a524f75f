"""PinPoint: several right answers, explicit negatives, two reference images, paraphrases (arXiv 2603.04598).

Every row is a query; rows of the same images are phrasings, over which P@10 may vary. Nothing is removed from the
gallery, as in the authors' code.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from nsfse.data import EvalQuery, EvaluationProtocol, FolderOptions
from nsfse.data.datasets.file_index import image_id, scan
from nsfse.data.datasets.scored_only import ScoredOnly
from nsfse.data.text_files import FormError, Name, convert, read_json_line, read_lines
from nsfse_runtime.errors import DataError
from nsfse_runtime.extras import need

KS = (1, 5, 10, 50)
GALLERY = "index_signatures.txt"
QUERIES = ("pinpoint_licensed.parquet", "pinpoint_metadata.parquet", "pinpoint.jsonl")
"""The tables of queries that are read, the first that is there; the last has the same columns, a JSON object a line."""


class _Query(msgspec.Struct, frozen=True):
    """A row of the table."""

    query_id: int | Name
    query_image_signature: Name
    instruction: Name
    positive_candidates: tuple[Name, ...]
    negative_candidates: tuple[Name, ...] | None = None
    query_image_signature2: str | None = None


class PinPoint(ScoredOnly):
    """PinPoint; an id is an image's signature, the name of its file.

    `folder` holds `index_signatures.txt` and a table of QUERIES in any depth; images are anywhere under it or under
    `images`. Raises NotFoundError without one of them, DataError for one that is not in its form, MissingExtraError
    for a parquet table without pyarrow.
    """

    name = "pinpoint"

    def __init__(self, folder: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        index = scan(folder, *([options.images] if options.images else []))
        listed = [image_id(line.strip()) for _, line in read_lines(index.file(GALLERY))]
        table = next((name for name in QUERIES if name in index.files), QUERIES[-1])
        rows = _read(index.file(table))
        super().__init__(index, {"test": list(dict.fromkeys(listed))}, {"test": [_query(row) for row in rows]}, {})

    def _protocol(self, split: str) -> EvaluationProtocol:
        return replace(
            super()._protocol(split),
            remove_reference=False,
            ks=KS,
            map_ks=KS,
            note="every phrasing is a query of its own; the reference is kept",
        )


def _query(row: _Query) -> EvalQuery:
    images = [image_id(name) for name in (row.query_image_signature, row.query_image_signature2) if name]
    return EvalQuery(
        images[0],
        (row.instruction,),
        tuple(dict.fromkeys(map(image_id, row.positive_candidates))),
        hard_negatives=tuple(dict.fromkeys(map(image_id, row.negative_candidates or ()))),
        more_references=tuple(images[1:]),
        pairid=str(row.query_id),
        edit=" ".join(images),
    )


def _read(path: Path) -> list[_Query]:
    if path.suffix == ".parquet":
        return [_of_table(row, f"{path} row {number}") for number, row in enumerate(_parquet_rows(path))]
    needs = "query_id, query_image_signature, instruction and positive_candidates"
    return [read_json_line(line, _Query, f"{path}:{number}", needs) for number, line in read_lines(path)]


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    need("pyarrow", "parquet")
    from pyarrow import ArrowException, parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a parquet table ({reason}); fetch it again") from None
    return rows


def _of_table(row: dict[str, Any], where: str) -> _Query:
    try:
        return convert(row, _Query)
    except FormError as error:
        raise DataError(f"{where}: {error}; fix or fetch it again") from None
