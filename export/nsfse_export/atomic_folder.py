"""A bundle's place: written beside it, moved there whole, and nothing left behind on an error."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nsfse_runtime.errors import NsfseError, OutputError
from nsfse_runtime.inference.manifest import CARD, FILES, MANIFEST, read_manifest


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """Give a folder to write a bundle in; it becomes `out` when the block ends well, and is removed when it does not.

    `out` may be absent, empty or a bundle, which is replaced. Raises OutputError for anything else.
    """
    out = out.absolute()
    _refuse_others(out)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        with _writing(out):
            draft.mkdir(parents=True)
        yield draft
        with _writing(out):
            _move(draft, out)
        made = []
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _refuse_others(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} is not a folder; choose another place with -o")
    with _writing(out):
        there = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if not there:
        return
    try:
        read_manifest(out)
    except NsfseError:
        raise OutputError(f"{out} is a folder of something else; choose another place with -o or remove it") from None
    if others := sorted(there - {*FILES, MANIFEST, CARD}):
        raise OutputError(f"{out} holds {others[0]!r}, which is no part of a bundle; move it away or choose another -o")


def _move(draft: Path, out: Path) -> None:
    if not out.exists():
        draft.rename(out)
        return
    old = draft.with_name(draft.name + ".old")
    out.rename(old)
    try:
        draft.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise OutputError(f"cannot write the bundle {out}: {reason}; choose another place with -o") from error
