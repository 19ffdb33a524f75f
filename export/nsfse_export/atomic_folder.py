"""Write a bundle's folder atomically: beside its path, then moved there; nothing is left behind on an error."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nsfse_runtime.atomic_write import replacing_folder
from nsfse_runtime.errors import NsfseError, OutputError
from nsfse_runtime.inference.manifest import CARD, FILES, MANIFEST, read_manifest


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """Yield a folder to write a bundle in; it becomes `out` when the block ends well, else it is removed.

    Args:
        out: The bundle's folder; absent, empty or a bundle, which is replaced.

    Raises:
        OutputError: `out` is something else, or cannot be written.
    """
    out = out.absolute()
    _refuse_others(out)
    with ExitStack() as stack:
        with _writing(out):
            draft = stack.enter_context(replacing_folder(out))
        yield draft
        with _writing(out):
            stack.close()


def _refuse_others(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} is not a folder; choose another place with -o")
    with _writing(out):
        names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if not names:
        return
    try:
        read_manifest(out)
    except NsfseError:
        raise OutputError(f"{out} is a folder of something else; choose another place with -o or remove it") from None
    if foreign := sorted(names - {*FILES, MANIFEST, CARD}):
        raise OutputError(
            f"{out} holds {foreign[0]!r}, which is no part of a bundle; move it away or choose another -o"
        )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise OutputError(f"cannot write the bundle {out}: {reason}; choose another place with -o") from error
