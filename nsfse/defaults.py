"""What a command takes where nothing is named: the gallery beside a folder, and the model that `nsfse use` set.

Nothing here opens a network connection but `use_model` with a name that begins with `hub:`.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from nsfse_runtime.atomic_write import atomic_write
from nsfse_runtime.errors import IntegrityError, NotFoundError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.output_files import data_folder

SUFFIX = ".gallery"
BOX = Path(__file__).parent / "demo" / "assets" / "photo-box"
"""The model in the package, which knows photos of clothes."""


@dataclass(frozen=True)
class DefaultModel:
    """The bundle that is taken where none is named, and how it is called."""

    bundle: Path
    name: str
    fingerprint: str = ""


def gallery_beside(folder: Path) -> Path:
    """Return the gallery of a folder of which no other is named: FOLDER.gallery beside it. Raises UsageError."""
    real = folder.resolve()
    if not real.name:
        raise UsageError(f"{folder} has no name; name its gallery: nsfse index GALLERY {folder}")
    beside = real.with_name(real.name + SUFFIX)
    return Path(beside.name) if beside.parent == Path.cwd() else beside


def nearest_gallery() -> Path:
    """Return the one gallery of the current folder: in it, or beside it. Raises NotFoundError or UsageError."""
    here = Path.cwd()
    found = [Path(path.name) for path in sorted(here.glob(f"*{SUFFIX}")) if path.is_file()]
    beside = here.with_name(here.name + SUFFIX) if here.name else None
    if not found and beside and beside.is_file():
        found = [beside]
    if not found:
        raise NotFoundError("no gallery here; make one with: nsfse index FOLDER, or name one with -g GALLERY")
    if len(found) > 1:
        raise UsageError(f"there are {len(found)} galleries here; name one with -g: {', '.join(map(str, found[:5]))}")
    return found[0]


def default_model() -> DefaultModel:
    """Return the model that `nsfse use` set, or the one in the package.

    Raises:
        NotFoundError: The model that was set is gone.
        IntegrityError: It is not the one that was set.
    """
    try:
        known = msgspec.json.decode(_record().read_bytes(), type=dict[str, str])
        model = DefaultModel(Path(known["bundle"]), known["name"], known["fingerprint"])
    except FileNotFoundError:
        return DefaultModel(BOX, "the package's own model of photos of clothes")
    except (msgspec.DecodeError, KeyError, OSError):
        raise IntegrityError(f"{_record()} is damaged; set the model again: nsfse use NAME, or nsfse use box") from None
    if not model.bundle.is_dir():
        raise NotFoundError(f"the model {model.name} is gone from {model.bundle}; run: nsfse use {model.name}")
    if Bundle.open(model.bundle).fingerprint != model.fingerprint:
        raise IntegrityError(f"{model.bundle} is not the model that was set; run: nsfse use {model.name}")
    return model


def use_model(name: str) -> DefaultModel:
    """Set the model that is taken where none is named.

    Args:
        name: `hub:OWNER/NAME[@REVISION]`, fetched once into the user's data folder; a bundle's folder; or `box`, the
            model in the package.

    Returns:
        The model, with its commit in its name where it is from a hub.

    Raises:
        NsfseError: What hub.pull and Bundle.open raise; it is no bundle.
    """
    if name == "box":
        _record().unlink(missing_ok=True)
        return default_model()
    path = _fetch(name) if name.startswith("hub:") else Path(name).absolute()
    bundle = Bundle.open(path)
    named = f"hub:{path.parent.name.replace('--', '/', 1)}@{path.name}" if name.startswith("hub:") else str(path)
    record = {"bundle": str(path), "name": named, "fingerprint": bundle.fingerprint}
    _record().parent.mkdir(parents=True, exist_ok=True)
    atomic_write(_record(), msgspec.json.encode(record), durable=True, sole_writer=False, hint="check the rights")
    return DefaultModel(path, named, bundle.fingerprint)


def _fetch(name: str) -> Path:
    """Pull a bundle into the folder of its commit, unless it is there, and return that folder."""
    from nsfse.hub import parse_name, pull, revision_of

    commit = revision_of(name)
    path = data_folder("models", parse_name(name)[0].replace("/", "--"), commit)
    if not path.exists() and pull(f"hub:{parse_name(name)[0]}@{commit}", path).kind != "bundle":
        raise UsageError(f"{name} is a run; make a bundle of it: nsfse pull {name} -o run, nsfse export run -o DIR")
    return path


def _record() -> Path:
    return data_folder("model.json")
