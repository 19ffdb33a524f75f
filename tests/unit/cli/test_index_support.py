"""What `nsfse index` refuses before it reads anything."""

from pathlib import Path

import pytest

from nsfse.cli.index_support import check_options, part_of, source_kind
from nsfse_runtime.errors import UsageError


def test_parts() -> None:
    assert part_of("0/1") == (0, 1) and part_of("3/4") == (3, 4)
    for wrong in ("4/4", "1", "-1/2", "a/b", "0/0", "1/2/3"):
        with pytest.raises(UsageError, match="no I/N"):
            part_of(wrong)


def test_a_folder_or_shards(tmp_path: Path) -> None:
    assert source_kind([tmp_path]) == "folder" and source_kind([Path("a.tar"), Path("b.parquet")]) == "shards"
    for wrong in ([tmp_path, tmp_path], [tmp_path, Path("a.tar")]):
        with pytest.raises(UsageError, match="one folder, or shards"):
            source_kind(wrong)


def test_options_that_would_do_nothing_are_refused() -> None:
    check_options("folder", (0, 1), {"--metadata": "t.csv"})
    check_options("shards", (1, 2), {"--metadata": None, "--allow-removals": False})
    with pytest.raises(UsageError, match="--shard parts shards"):
        check_options("folder", (0, 2), {})
    with pytest.raises(UsageError, match="--metadata is for folders"):
        check_options("shards", (0, 1), {"--metadata": "t.csv"})
