"""Change what a gallery knows of one image, without its folder being looked at."""

import json
from collections.abc import Mapping
from pathlib import Path

from nsfse_runtime.errors import NotFoundError, OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.metadata import merge
from nsfse_runtime.gallery.sqlite_file import sole_writer
from nsfse_runtime.gallery.store import GalleryTables


def patch_metadata(path: Path, name: str, changes: Mapping[str, str] | None) -> tuple[bool, dict[str, str]]:
    """Set columns of the image `name` and leave the others.

    Args:
        path: The gallery's file.
        name: The image's id.
        changes: The value of each column, "" to remove it; None removes all.

    Returns:
        Whether anything changed, and the image's metadata.

    Raises:
        NotFoundError: There is no such image.
        OutputError: Another process writes into the gallery.
        IntegrityError: The gallery is damaged.
    """
    with sole_writer(path), GalleryTables.open_writer(path) as store:
        found = store.read_entry(name)
        if found is None:
            raise NotFoundError(f"the gallery has no image {printable(name[:200])}")
        content, stamp, before = found
        after = "{}" if changes is None else merge(before, changes)
        if after != before:
            with store.writing():
                store.put_item(name, content, stamp, after)
                store.advance()
        return after != before, json.loads(after)


def delete_file(path: Path, folder: Path, name: str) -> None:
    """Delete the file `name` under `folder` and what the gallery knows of it.

    Args:
        path: The gallery's file.
        folder: The folder that the gallery follows.
        name: The image's path relative to `folder`.

    Raises:
        OutputError: Another process writes into the gallery, or the file cannot be deleted.
        IntegrityError: The gallery is damaged.
    """
    with sole_writer(path), GalleryTables.open_writer(path) as store:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{printable(name)} cannot be deleted: {error.strerror}; check the rights") from error
        with store.writing():
            store.delete_items([name])
            store.delete_unused_contents()
            store.advance()
