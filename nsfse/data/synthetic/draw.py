"""`nsfse data draw`: a test split of the drawn catalogue, written as a query set."""

from contextlib import suppress
from pathlib import Path

from PIL import Image

from nsfse.data.datasets.query_set import write_query_set
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse_runtime.errors import OutputError
from nsfse_runtime.output_files import check_folder
from nsfse_runtime.regular_files import open_regular


def draw_query_set(
    folder: Path, items: int = 4000, seed: int = 0, size: int = 128, level: str = "standard"
) -> dict[str, int]:
    """Write a test split as a query set; the same folder may be written again.

    The queries are those of a DrawnSource with the same level, `gallery=items` and `test_seed=seed`.

    Args:
        folder: Where to write.
        items: Images in the gallery.
        seed: Seed of the images and queries.
        size: Height and width of the images in pixels.
        level: `standard` or `easy`.

    Returns:
        Counts of `items` and `queries`, with `seed` and `size`.

    Raises:
        UsageError: There are fewer than 16 items, or no such level.
        OutputError: The folder cannot be written, or holds something else.
    """
    source = DrawnSource(DrawnOptions(level, test_seed=seed, gallery=items))
    ids = source.items("test")
    protocols = [*source.protocols("test"), *source.compound_protocols()]
    queries = [(protocol.name, "test", query) for protocol in protocols for query in protocol.queries]
    rows = {item: {"file": f"images/{item}.png", "split": "test", **source.describe(item)} for item in ids}
    _refuse_others(folder, protocols[0].name)
    write_query_set(folder, rows, queries)
    try:
        (folder / "images").mkdir(exist_ok=True)
        for item in ids:
            Image.fromarray(source.load(item, (size, size))).save(folder / rows[item]["file"], compress_level=4)
    except OSError as error:
        raise OutputError(f"cannot write images to {folder}: {error.strerror}; choose another folder") from error
    return {"items": len(ids), "queries": len(protocols[0].queries), "seed": seed, "size": size}


def _refuse_others(folder: Path, protocol: str) -> None:
    """Raise OutputError where `folder` holds something else than a drawn query set."""
    check_folder(folder, ("items.csv", "images"), ("queries.jsonl",))
    first = b""
    with suppress(FileNotFoundError), open_regular(folder / "queries.jsonl") as file:
        first = file.readline()
    if first and f'"protocol": "{protocol}"'.encode() not in first:
        raise OutputError(f"{folder} holds another query set; choose an empty folder or a new one")
