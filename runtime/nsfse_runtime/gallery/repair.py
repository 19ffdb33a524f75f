"""Check a gallery's file whole, and make a damaged one whole again: keep what checks, encode the rest again."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import InputError, NotFoundError, OutputError, UsageError
from nsfse_runtime.gallery.salvage import Found, Salvage
from nsfse_runtime.gallery.sqlite_file import sole_writer
from nsfse_runtime.gallery.store import GalleryTables
from nsfse_runtime.gallery.sync import sync
from nsfse_runtime.inference import region_codec
from nsfse_runtime.types import Scorer


@dataclass(slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        faults: What was wrong and where, a line each; where there was nothing, nothing was done.
        kept: Images that were kept as they were.
        encoded: Images that were encoded again.
        gone: Ids of images that were in the gallery and are no more.
        without_metadata: Ids of images of which nothing was read, so that any metadata are gone.
        set_aside: Where the damaged file is now.
        problem: Why images were not encoded again, "" where they were.
    """

    faults: list[str] = field(default_factory=list)
    kept: int = 0
    encoded: int = 0
    gone: list[str] = field(default_factory=list)
    without_metadata: list[str] = field(default_factory=list)
    set_aside: str = ""
    problem: str = ""


def verify(path: Path) -> Found:
    """Read and check all that a gallery's file holds.

    Raises:
        NotFoundError: There is no file.
        OutputError: It cannot be opened.
        IntegrityError: It is another kind of file.
        VersionError: It is a gallery of a newer format.
    """
    if not path.is_file():
        raise NotFoundError(f"no gallery at {path}; check the path")
    with Salvage(path) as salvage:
        return salvage.look()


def repair(path: Path, folder: Path | None, scorer: Scorer | None, bundle: Path | None = None) -> RepairReport:
    """Make a damaged gallery whole: keep all that checks, and encode the rest again from the folder.

    The damaged file is kept beside it as FILE.damaged.

    Args:
        path: The gallery's file.
        folder: The folder of its images; by default the one that it remembers.
        scorer: The model of its features; without one, nothing is encoded again.
        bundle: The folder of `scorer`, which the gallery is to remember.

    Raises:
        NotFoundError: There is no file.
        UsageError: It does not know its model any more, and there is no `scorer`; or that is another model.
        OutputError: Another process writes it, or it cannot be written.
        IntegrityError: It is another kind of file.
        VersionError: It is a gallery of a newer format.
    """
    if not path.is_file():
        raise NotFoundError(f"no gallery at {path}; check the path")
    path = Path(os.path.realpath(path))
    with sole_writer(path), Salvage(path) as salvage:
        found = salvage.look()
        if not found.faults:
            return RepairReport(kept=len(found.entries))
        fingerprint = _fingerprint(path, found, scorer)
        try:
            with replacing(path) as draft:  # SQLite has synced it when it is closed
                kept = _write(draft, salvage, found, fingerprint, str(bundle or found.facts.get("bundle", "")))
                aside = _move_aside(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be repaired: {error.strerror or error}; free some disk space") from error
    report = RepairReport(found.faults, len(kept), set_aside=str(aside))
    lost = [name for name in found.entries if name not in kept]
    folder = folder or Path(found.facts.get("folder") or "")
    if scorer is None or not folder.name:
        report.problem = "without the bundle and the folder nothing was encoded again; index the folder"
    else:
        _encode(path, folder, scorer, {name: found.entries[name].metadata for name in lost}, report)
    with GalleryTables.open_reader(path) as store:
        ids = {name for name, *_ in store.read_items()}
    report.gone = sorted({*lost, *found.damaged_ids} - ids)
    report.without_metadata = sorted(ids - found.entries.keys())
    return report


def _fingerprint(path: Path, found: Found, scorer: Scorer | None) -> str:
    """Return the fingerprint of the model whose features were found; drop them where it is not known."""
    known = found.facts.get("fingerprint")
    if known is None and scorer is None:
        raise UsageError(f"{path} does not know its bundle and folder any more; name both: GALLERY FOLDER -b BUNDLE")
    if scorer is None:
        return str(known)
    if known not in (None, scorer.fingerprint):
        raise UsageError(f"{path} holds features of another bundle; name its own with -b BUNDLE")
    if known is None and found.facts_as_read.get("fingerprint") != scorer.fingerprint:
        found.contents.clear()
    return scorer.fingerprint


def _write(draft: Path, salvage: Salvage, found: Found, fingerprint: str, bundle: str) -> set[str]:
    """Write all that checks into a new gallery, and return the ids of its images."""
    kept = {name: entry for name, entry in found.entries.items() if entry.content in found.contents}
    dim = found.facts.get("dim") or found.facts_as_read.get("dim", 0)
    with GalleryTables.open_writer(draft) as store, store.writing():
        store.initialise(fingerprint, bundle)
        for key, vector in salvage.vectors():
            store.put_salvaged_vector(key, found.contents[key], vector)
        for key, regions in salvage.regions():
            if found.format_version == 1:
                regions = store.encode_regions(region_codec.from_bytes([regions], dim, 1)[0])
            store.put_salvaged_regions(key, regions)
        for name, entry in kept.items():
            store.put_item(name, entry.content, entry.stamp, entry.metadata)
        store.delete_unused_contents()
        counted = ("fingerprint", "bundle", "items", "contents", "failures")
        store.write_meta({key: value for key, value in found.facts.items() if key not in counted})
        if kept and not found.facts:
            store.write_meta({"dim": dim, "regions": int(found.facts_as_read.get("regions", 0))})
        store.advance()
    return set(kept)


def _move_aside(path: Path) -> Path:
    """Give a damaged gallery, with its log, the name FILE.damaged, and return that."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in ("-wal", "-shm", "-journal", ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def _encode(path: Path, folder: Path, scorer: Scorer, metadata: dict[str, str], report: RepairReport) -> None:
    try:
        report.encoded = sync(path, folder, scorer, remembered=metadata).encoded
    except (InputError, UsageError) as error:
        report.problem = f"nothing was encoded again: {error}"
