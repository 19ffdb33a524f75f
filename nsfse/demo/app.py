"""The built-in models and images that `nsfse demo` unpacks, indexes once and serves, without torch or network.

`assets/` is made by export/make_demo_assets.py: for each collection a bundle, and images with their table in a ZIP
file.
"""

import hashlib
import os
import sys
import threading
import webbrowser
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import nsfse
from nsfse.open import need_server
from nsfse.progress import indexing_bar, print_status
from nsfse_runtime.errors import MissingExtraError, OutputError, UsageError
from nsfse_runtime.gallery import store
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.images.formats import missing_formats
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import MANIFEST
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.output_files import cache_folder

if TYPE_CHECKING:
    from nsfse_runtime.gallery.report import SyncProgress
    from nsfse_runtime.server.services import Services

ASSETS = Path(__file__).with_name("assets")
TABLE, IMAGES, LOG = "items.csv", "images", "server.log"
NOTE = (
    "The model has seen none of these photos: it was trained on 3,391 others, of clothes alone. "
    "The gallery “drawn” has a model of its own."
)
_PORTS = range(8000, 8010)


@dataclass(frozen=True)
class Collection:
    """Images of one kind in a ZIP file, and the model that knows this kind."""

    name: str
    bundle: Path
    archive: Path

    def gallery(self, folder: Path) -> Path:
        """Return the file of its gallery in the demo's folder; its images are in a folder beside it."""
        return folder / f"{self.name}.gallery"


PHOTOS = Collection("photos", ASSETS / "photo-box", ASSETS / "photos.zip")
DRAWN = Collection("drawn", ASSETS / "drawn-box", ASSETS / "drawn.zip")


@dataclass(frozen=True)
class Demo:
    """A service that is ready, and the socket it will listen on.

    `galleries` has for each gallery its `name`, its number of `images`, its file `gallery` and its `bundle`.
    """

    service: "Services"
    listener: socket
    galleries: list[dict[str, Any]]


def open_demo(out: Path | None = None, port: int | None = None) -> Demo:
    """Unpack the images, index those that are new, and listen on this machine alone.

    Args:
        out: Folder for the files; by default one in the user's cache.
        port: The port; by default the first free one from 8000 on.

    Returns:
        The service and its socket.

    Raises:
        MissingExtraError: The server is not installed, or Pillow reads no AVIF.
        OutputError: The folder cannot be written.
        UsageError: The port is taken.
        VersionError: The folder has a gallery of another model.
    """
    need_server()
    if "AVIF" in missing_formats():
        raise MissingExtraError("this Pillow does not read AVIF, the demo's photos; pip install -U pillow")
    from nsfse_runtime.server.galleries import ServedFile
    from nsfse_runtime.server.services import Services
    from nsfse_runtime.server.settings import Settings
    from nsfse_runtime.server.telemetry import Log

    folder = (out or demo_folder()).absolute()
    listener = listen_on(port)
    _check_log(folder)
    served = []
    for collection in (PHOTOS, DRAWN):
        model = OnnxScorer(Bundle.open(collection.bundle))
        with indexing_bar() as follow:
            gallery = open_gallery(collection, folder, model, follow)
        served.append(ServedFile(collection.name, model, gallery, note=NOTE))
    log = Log((folder / LOG).open("w", encoding="utf-8"))
    galleries = [
        {
            "name": each.name,
            "images": len(each.gallery),
            "gallery": each.gallery.path,
            "bundle": each.gallery.bundle_path,
        }
        for each in served
    ]
    return Demo(Services(served, Settings(), nsfse.__version__, log), listener, galleries)


def listen_on(port: int | None) -> socket:
    """Return a socket on loopback, without a port on the first free one from 8000 on. Raises UsageError."""
    from nsfse_runtime.server.serve import listen
    from nsfse_runtime.server.settings import Settings

    for candidate in _PORTS if port is None else ():
        with suppress(UsageError):
            return listen(Settings(port=candidate))
    return listen(Settings(port=port or 0))


def open_browser(url: str) -> None:
    """Open a browser at `url` where there is a terminal and a desktop, without waiting for it."""
    desktop = os.name == "nt" or sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if desktop and sys.stdout.isatty():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def demo_folder() -> Path:
    """Return where the demo's files are by default: a folder in the user's cache, named by the digest of the assets."""
    assets = [file for collection in (PHOTOS, DRAWN) for file in (collection.archive, collection.bundle / MANIFEST)]
    name = hashlib.sha256(b"".join(file.read_bytes() for file in assets)).hexdigest()[:12]
    try:
        return cache_folder("demo", name)
    except OutputError as error:
        raise OutputError("there is no home folder for the demo's images; name a folder with -o") from error


def open_gallery(
    collection: Collection,
    folder: Path,
    model: OnnxScorer,
    progress: "Callable[[SyncProgress], None] | None" = None,
) -> Gallery:
    """Unpack a collection as far as needed, index what is new, and open its gallery.

    Args:
        collection: The images and their model.
        folder: The demo's folder.
        model: The collection's model, opened.
        progress: Called after each batch that is indexed.

    Returns:
        The gallery.

    Raises:
        OutputError: The folder cannot be written.
        VersionError: The folder has a gallery of another model.
    """
    path, images = collection.gallery(folder), folder / collection.name
    unpack(collection, folder)
    if not store.exists(path):
        print_status(f"indexing the demo's images once: {collection.name}")
    gallery = Gallery.open(path, model, create=True)
    if gallery.bundle_path != collection.bundle:  # it was made by another installation, which may be gone
        with store.GalleryTables.open_writer(path) as opened:
            opened.write_meta({"bundle": str(collection.bundle)})
    gallery.sync(images / IMAGES, metadata=images / TABLE, progress=progress, allow_removals=True)
    return gallery


def unpack(collection: Collection, folder: Path) -> None:
    """Write a collection's images and their table, where they are missing or changed.

    Args:
        collection: What to write.
        folder: The demo's folder; the collection gets a folder of its name in it.

    Raises:
        OutputError: The folder cannot be written, or has a file of the same name that is not the demo's.
    """
    first, images = not store.exists(collection.gallery(folder)), folder / collection.name
    try:
        (images / IMAGES).mkdir(parents=True, exist_ok=True)
        with ZipFile(collection.archive) as packed:
            for entry in packed.infolist():
                file = images / entry.filename
                if not file.is_file() or zlib.crc32(file.read_bytes()) != entry.CRC:
                    # A process that was killed here left the beginning of a file.
                    if first and file.exists() and not packed.read(entry).startswith(file.read_bytes()):
                        raise OutputError(f"{file} is not the demo's; name an empty folder with -o")
                    file.write_bytes(packed.read(entry))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write the demo's images to {folder}: {error.strerror}; name another folder with -o"
        ) from error


def _check_log(folder: Path) -> None:
    """Raise OutputError where the folder has a log of somebody else."""
    log = folder / LOG
    if log.exists() and log.read_bytes()[:1] not in (b"", b"{"):
        raise OutputError(f"{log} is not the demo's; name an empty folder with -o")
