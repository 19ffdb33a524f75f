"""The built-in model and images that `nsfse demo` unpacks and serves, without torch or network.

`assets/` is made by export/make_demo_assets.py: a bundle, drawn images with their table in a ZIP file, and a gallery.
"""

import hashlib
import os
import sys
import threading
import webbrowser
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING
from zipfile import ZipFile

import nsfse
from nsfse.open import need_server
from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.gallery import store
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.output_files import cache_folder

if TYPE_CHECKING:
    from nsfse_runtime.server.services import Services

ASSETS = Path(__file__).with_name("assets")
BUNDLE, IMAGES_ZIP, INDEXED = ASSETS / "drawn-box", ASSETS / "images.zip", ASSETS / "images.gallery"
TABLE, IMAGES, GALLERY, LOG = "items.csv", "images", "demo.gallery", "server.log"
WRITTEN_NS = 1_767_225_600_000_000_000
"""The images' modification time, 2026-01-01: with it the gallery knows the unpacked files at once."""
_PORTS = range(8000, 8010)


@dataclass(frozen=True)
class Demo:
    """A service that is ready, and the socket it will listen on."""

    service: "Services"
    listener: socket
    gallery: Path
    bundle: Path
    images: int


def open_demo(out: Path | None = None, port: int | None = None) -> Demo:
    """Unpack the images and their gallery, and listen on this machine alone.

    Args:
        out: Folder for the files; by default one in the user's cache.
        port: The port; by default the first free one from 8000 on.

    Returns:
        The service and its socket.

    Raises:
        MissingExtraError: The server is not installed.
        OutputError: The folder cannot be written.
        UsageError: The port is taken.
    """
    need_server()
    from nsfse_runtime.server.galleries import ServedGallery
    from nsfse_runtime.server.services import Services
    from nsfse_runtime.server.settings import Settings
    from nsfse_runtime.server.telemetry import Log

    folder = (out or demo_folder()).absolute()
    model = OnnxScorer(Bundle.open(BUNDLE))
    gallery = open_gallery(folder, model)
    log = Log((folder / LOG).open("w", encoding="utf-8"))
    service = Services([ServedGallery("drawn", model, gallery)], Settings(), nsfse.__version__, log)
    return Demo(service, listen_on(port), folder / GALLERY, BUNDLE, len(gallery))


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
    name = hashlib.sha256(IMAGES_ZIP.read_bytes() + INDEXED.read_bytes()).hexdigest()[:12]
    try:
        return cache_folder("demo", name)
    except OutputError as error:
        raise OutputError("there is no home folder for the demo's images; name a folder with -o") from error


def open_gallery(folder: Path, model: OnnxScorer) -> Gallery:
    """Unpack the demo's images as far as needed, and open their gallery.

    Args:
        folder: Where the files are.
        model: The demo's model.

    Returns:
        The gallery.

    Raises:
        OutputError: The folder cannot be written.
        VersionError: The folder has a gallery of another model.
    """
    changed = unpack(folder)
    if not store.exists(folder / GALLERY):
        _copy_gallery(folder)
    gallery = Gallery.open(folder / GALLERY, model)
    if gallery.bundle_path != BUNDLE:  # it was made by another installation, which may be gone
        _set_bundle(folder / GALLERY)
    if changed or gallery.snapshot.folder != str((folder / IMAGES).resolve()):
        # Files are known by their hashes, so nothing is encoded; files of other assets are removed.
        gallery.sync(folder / IMAGES, metadata=folder / TABLE, allow_removals=True)
    return gallery


def _copy_gallery(folder: Path) -> None:
    """Copy the gallery, whole or not at all, and write the path of its bundle into it."""
    try:
        with replacing(folder / GALLERY) as draft:
            draft.write_bytes(INDEXED.read_bytes())
            _set_bundle(draft)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _set_bundle(gallery: Path) -> None:
    with store.GalleryStore.open_writer(gallery) as opened:
        opened.write_meta({"bundle": str(BUNDLE)})


def unpack(folder: Path) -> bool:
    """Write the images and their table.

    Args:
        folder: Where to write them.

    Returns:
        Whether a file was missing or changed.

    Raises:
        OutputError: The folder cannot be written, or has a file of the same name that is not the demo's.
    """
    changed, first = False, not (folder / GALLERY).exists()
    try:
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        if first and (folder / LOG).exists() and (folder / LOG).read_bytes()[:1] not in (b"", b"{"):
            raise OutputError(f"{folder / LOG} is not the demo's; name an empty folder with -o")
        with ZipFile(IMAGES_ZIP) as packed:
            for entry in packed.infolist():
                file = folder / entry.filename
                if not file.is_file() or zlib.crc32(file.read_bytes()) != entry.CRC:
                    changed = True
                    # A process that was killed here left the beginning of a file.
                    if first and file.exists() and not packed.read(entry).startswith(file.read_bytes()):
                        raise OutputError(f"{file} is not the demo's; name an empty folder with -o")
                    file.write_bytes(packed.read(entry))
                    os.utime(file, ns=(WRITTEN_NS, WRITTEN_NS))
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(folder, error) from error
    return changed


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write the demo's images to {folder}: {error.strerror}; name another folder with -o")
