"""What `nsfse index` checks before it reads anything."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from nsfse_runtime.errors import UsageError
from nsfse_runtime.stores.shards import is_shard

_PART = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


def source_kind(sources: Sequence[Path]) -> Literal["folder", "shards"]:
    """Tell whether `sources` are one folder or shards. Raises UsageError."""
    shards = [path for path in sources if is_shard(path)]
    if shards and len(shards) == len(sources):
        return "shards"
    if shards or len(sources) > 1:
        raise UsageError("name one folder, or shards that end in .tar, .tar.gz, .tgz or .parquet, not both")
    return "folder"


def check_options(kind: str, part: tuple[int, int], of_folders: Mapping[str, object]) -> None:
    """Raise UsageError for options that do not go with what is indexed; `of_folders` are options by their names."""
    if kind == "folder" and part != (0, 1):
        raise UsageError("--shard parts shards; a folder is indexed whole")
    if kind == "shards" and (given := [name for name, value in of_folders.items() if value]):
        raise UsageError(f"{given[0]} is for folders; shards bring their own metadata and images")


def part_of(text: str) -> tuple[int, int]:
    """Return the (i, n) of `--shard i/n`. Raises UsageError."""
    found = _PART.fullmatch(text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UsageError(f"--shard {text!r} is no I/N with I from 0 to N - 1; the first of four is 0/4")
    return int(found[1]), int(found[2])


def check_ray(kind: str, part: tuple[int, int]) -> None:
    """Raise UsageError for what does not go with `--ray`."""
    if kind != "shards":
        raise UsageError("--ray indexes shards: .tar, .tar.gz, .tgz or .parquet; a folder is indexed without it")
    if part != (0, 1):
        raise UsageError("--ray shares the shards out itself; leave --shard out")
