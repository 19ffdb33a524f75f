"""Where results may be written: a new file, or one that nsfse wrote before; never over anything else."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.escaping import printable

_LOOKED_AT = 4096


@dataclass(frozen=True, slots=True)
class Output:
    """A kind of file: what it is called, its suffixes, and the bytes near its beginning by which it is known."""

    name: str
    suffixes: tuple[str, ...]
    mark: bytes


SHEET = Output("contact sheet", (".png",), b"Software\0nsfse")
PAGE = Output("page", (".html", ".htm"), b'<meta name="generator" content="nsfse">')


def check_output(path: str | os.PathLike[str], kind: Output) -> None:
    """Raise where a file of `kind` may not be written at `path`.

    UsageError for another suffix, OutputError for a file that is there and is not one of `kind` by nsfse.
    """
    target = Path(path)
    if target.suffix.lower() not in ("", *kind.suffixes):
        wanted = " or ".join(kind.suffixes)
        raise UsageError(f"a {kind.name} is written as {wanted}, not {printable(target.suffix)}; name it so")
    try:
        if not target.exists() or target.is_dir():  # writing reports a folder
            return
        head = b"a pipe or a device"
        if target.is_file():
            with target.open("rb") as file:
                head = file.read(_LOOKED_AT)
    except OSError as error:
        raise OutputError(f"cannot write {printable(str(target))}: {error.strerror}; choose another place") from error
    if head and kind.mark not in head:
        raise OutputError(
            f"{printable(str(target))} is there and is no {kind.name} by nsfse; choose another name, or delete it first"
        )


def write_output(path: str | os.PathLike[str], kind: Output, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path` and move it there whole. Raises OutputError, and as `check_output`."""
    check_output(path, kind)
    target = Path(path)
    try:
        with replacing(target) as part:
            save(part)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"cannot write {printable(str(target))}: {reason}; choose another place") from error


def cache_folder(*parts: str) -> Path:
    """Return nsfse's folder in the user's cache, or one in it: ~/.cache/nsfse on Linux, by XDG_CACHE_HOME if set.

    Raises OutputError where the user has no home folder.
    """
    import platformdirs  # not at the top: most commands need no cache

    try:
        return platformdirs.user_cache_path("nsfse", appauthor=False).joinpath(*parts)
    except RuntimeError as error:
        raise OutputError("there is no home folder for a cache; set XDG_CACHE_HOME") from error


def data_folder(*parts: str) -> Path:
    """Return nsfse's folder of the user's data, or one in it: ~/.local/share/nsfse on Linux, by XDG_DATA_HOME if set.

    Raises OutputError where the user has no home folder.
    """
    import platformdirs

    try:
        return platformdirs.user_data_path("nsfse", appauthor=False).joinpath(*parts)
    except RuntimeError as error:
        raise OutputError("there is no home folder for models; set XDG_DATA_HOME") from error


def check_folder(path: Path, ours: Collection[str], marks: Collection[str]) -> None:
    """Raise OutputError where results may not be written into the folder `path`.

    An absent or empty folder passes. Hidden files do not count.

    Args:
        path: The folder.
        ours: Names that results have; a folder of nothing but these passes, as one that was begun.
        marks: Names of which one suffices to know a folder of ours.
    """
    try:
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} if path.exists() else set()
    except NotADirectoryError:
        raise OutputError(f"{path} is a file, not a folder; choose another place") from None
    except OSError as error:
        raise OutputError(f"cannot write into {path}: {error.strerror}; choose another place") from error
    if names & set(marks) or names <= set(ours):
        return
    other = min(names - set(ours))
    raise OutputError(f"{path} holds other files, such as {printable(other)}; choose an empty folder or a new one")
