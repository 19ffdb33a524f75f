"""The model and the images in the box: what `nsfse demo` unpacks and serves, without torch or network.

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

BOX = Path(__file__).with_name("assets")
BUNDLE, IMAGES_ZIP, INDEXED = BOX / "drawn-box", BOX / "images.zip", BOX / "images.gallery"
TABLE, IMAGES, GALLERY, LOG = "items.csv", "images", "demo.gallery", "server.log"
WRITTEN_NS = 1_767_225_600_000_000_000
"""When the images were changed last, as their files say it: 2026-01-01, so that the gallery knows them at once."""
_PORTS = range(8000, 8010)


@dataclass(frozen=True)
class Demo:
    """What is ready to be served."""

    service: "Services"
    listener: socket
    gallery: Path
    bundle: Path
    images: int


def open_demo(out: Path | None = None, port: int | None = None) -> Demo:
    """Unpack the images and their gallery into `out`, as far as they are not there, and listen on this machine.

    `out` is by default a folder in the user's cache, `port` the first free one from 8000 on. Raises MissingExtraError,
    OutputError (the folder cannot be written), UsageError (the port is taken) and what a gallery raises.
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
    """Return a socket of this machine alone; without a port it has the first that is free. Raises UsageError."""
    from nsfse_runtime.server.serve import listen
    from nsfse_runtime.server.settings import Settings

    for candidate in _PORTS if port is None else ():
        with suppress(UsageError):
            return listen(Settings(port=candidate))
    return listen(Settings(port=port or 0))


def open_browser(address: str) -> None:
    """Open a browser at `address` where somebody sees it: at a terminal, and on a desktop. Nothing waits for it."""
    desktop = os.name == "nt" or sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if desktop and sys.stdout.isatty():
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def demo_folder() -> Path:
    """Return where the demo's files are by default: a folder in the user's cache, named by what is in the box."""
    name = hashlib.sha256(IMAGES_ZIP.read_bytes() + INDEXED.read_bytes()).hexdigest()[:12]
    try:
        return cache_folder("demo", name)
    except OutputError as error:
        raise OutputError("there is no home folder to keep the demo's images in; name a folder with -o") from error


def open_gallery(folder: Path, model: OnnxScorer) -> Gallery:
    """Return the gallery of the box's images in `folder`, which are unpacked and made right first.

    Raises OutputError, and VersionError where a gallery of another model lies there.
    """
    changed = unpack(folder)
    if not store.exists(folder / GALLERY):
        _copy_gallery(folder)
    gallery = Gallery.open(folder / GALLERY, model)
    if gallery.bundle_path != BUNDLE:  # it was made by another installation, which may be gone
        _set_bundle(folder / GALLERY)
    if changed or gallery.snapshot.folder != str((folder / IMAGES).resolve()):
        # By their hashes: there is nothing to encode. Whatever is not there is not in the box, either.
        gallery.sync(folder / IMAGES, metadata=folder / TABLE, allow_removals=True)
    return gallery


def _copy_gallery(folder: Path) -> None:
    """Copy the box's gallery, whole or not at all, and record where its bundle is."""
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
    """Make the box's images and table lie in `folder`; return whether one was missing or not as it was packed.

    Raises OutputError, also for a file of such a name in a folder that no demo was unpacked to before.
    """
    changed, first = False, not (folder / GALLERY).exists()
    try:
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        if first and (folder / LOG).exists() and (folder / LOG).read_bytes()[:1] not in (b"", b"{"):
            raise OutputError(f"{folder / LOG} is not the demo's; name an empty folder with -o")
        with ZipFile(IMAGES_ZIP) as packed:
            for entry in packed.infolist():
                place = folder / entry.filename
                if not place.is_file() or zlib.crc32(place.read_bytes()) != entry.CRC:
                    changed = True
                    # One that was killed here left a file's beginning.
                    if first and place.exists() and not packed.read(entry).startswith(place.read_bytes()):
                        raise OutputError(f"{place} is not the demo's; name an empty folder with -o")
                    place.write_bytes(packed.read(entry))
                    os.utime(place, ns=(WRITTEN_NS, WRITTEN_NS))
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(folder, error) from error
    return changed


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write the demo's images to {folder}: {error.strerror}; name another folder with -o")
