"""Files and folders that appear whole or not at all: written beside their place, then moved there.

Readers see the former content or the new one. What an error interrupts leaves nothing behind.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nsfse_runtime.errors import OutputError
from nsfse_runtime.escaping import printable


@contextmanager
def replacing(path: Path, *, durable: bool = False, sole_writer: bool = False) -> Iterator[Path]:
    """Give a path to write to, which replaces `path` when the block ends well.

    Args:
        path: The file to make or replace; its folder exists.
        durable: Have the content on the disk before it replaces what was there: a power cut loses neither.
        sole_writer: No other process writes `path` now. A fixed name is used then, so that killed processes
            leave one file at most.

    Yields:
        The path beside `path`, which the block writes.

    Raises:
        OSError: It cannot be moved.
    """
    name = f"{path.name}.part" if sole_writer else f".{path.name}.{secrets.token_hex(4)}.part"
    part = path.with_name(name)
    try:
        yield part
        if durable:
            _flush(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: bytes, *, hint: str, durable: bool = False, sole_writer: bool = False) -> None:
    """Replace `path` by `data`, all or nothing.

    Args:
        path: The file to make or replace.
        data: Its whole content.
        hint: What to do where it cannot be written, for the error.
        durable: As for `replacing`.
        sole_writer: As for `replacing`.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with replacing(path, durable=durable, sole_writer=sole_writer) as part:
            part.write_bytes(data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"cannot write {printable(str(path))}: {reason}; {hint}") from error


def create_file(path: Path, data: bytes) -> None:
    """Write a new file whole, and on the disk; unlike a replacement it never takes the place of another file.

    Raises:
        FileExistsError: `path` is there, or came meanwhile.
        OSError: It cannot be written.
    """
    part = path.with_name(f".nsfse-{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        _flush(part)
        os.link(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write in, which replaces `folder` when the block ends well.

    Parents are made as needed, and removed again where the block fails.

    Raises:
        OSError: A folder cannot be made or moved.
    """
    folder = folder.absolute()
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        draft.mkdir(parents=True)
        yield draft
        _move_folder(draft, folder)
        made = []
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _move_folder(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(draft.name + ".old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
