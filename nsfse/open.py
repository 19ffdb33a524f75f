"""What the command line names, opened: a gallery with its bundle, a reference image, conditions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nsfse
from nsfse.progress import print_status
from nsfse_runtime.errors import NotFoundError, NsfseError, OutputError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.extras import need
from nsfse_runtime.gallery import store
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.inference import devices
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import ON_CPU, DeviceName, ExecutionDevice
from nsfse_runtime.inference.manifest import MANIFEST
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.open import load_scorer
from nsfse_runtime.output_files import PAGE, SHEET, check_output
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.search.first_stage import SearchMode

if TYPE_CHECKING:
    from nsfse_runtime.gallery.report import SyncReport
    from nsfse_runtime.server.services import Services


def resolve_device(device: DeviceName | None, provider: str | None) -> ExecutionDevice:
    """Return where graphs run (see devices.resolve_device); a note on stderr says where "auto" takes the CPU."""
    found = devices.resolve_device(device, provider)
    if found.note:
        print_status(f"nsfse: {printable(found.note)}")
    return found


def open_gallery(
    path: Path, bundle: Path | None, device: ExecutionDevice = ON_CPU, *, create: bool = False
) -> tuple[OnnxScorer, Gallery]:
    """Open a gallery with `bundle`, or with the one that it remembers; `create` makes a new one, which needs `bundle`.

    The bundle is returned as its scorer on `device`.

    Raises NotFoundError, UsageError, VersionError (a gallery of another bundle) and IntegrityError.
    """
    if path.is_dir():
        raise _folder_instead(path)
    if bundle is None and path.exists():
        with Gallery.open(path) as gallery:
            bundle = gallery.bundle_path
        if bundle is None:
            raise UsageError(f"{path} does not remember a bundle; name it with -b BUNDLE")
        if not bundle.exists():
            raise NotFoundError(f"{path} remembers its bundle at {bundle}, which is gone; name it with -b BUNDLE")
    if bundle is None:
        if create:
            raise UsageError(f"{path} is a new gallery, which needs a bundle; name one with -b BUNDLE")
        raise NotFoundError(f"no gallery at {path}; make it with: nsfse index GALLERY FOLDER -b BUNDLE")
    opened = load_scorer(Bundle.open(bundle), device)
    return opened, Gallery.open(path, opened, create=create)


def _folder_instead(path: Path) -> UsageError:
    """Return the error for a folder that was named in place of a gallery file."""
    if (path / MANIFEST).exists():
        return UsageError(f"{path} is a bundle, not a gallery; name it with -b, and a gallery file in its place")
    kind = "a run" if (path / "config.json").exists() else "a folder"
    return UsageError(f"{path} is {kind}, not a gallery; the file comes first: nsfse index GALLERY FOLDER -b BUNDLE")


def open_retriever(
    path: Path, bundle: Path | None, device: ExecutionDevice = ON_CPU, search: SearchMode = "auto"
) -> Retriever:
    """Open a gallery for a query (see open_gallery), searched as `search` says (see nsfse_runtime.search.first_stage).

    It is not copied to a GPU, which pays for many queries alone.
    """
    return Retriever(*open_gallery(path, bundle, device), search=search, resident=False)


def open_services(
    galleries: Sequence[str], bundle: Path | None, device: ExecutionDevice, token: Path | None, settings: dict[str, Any]
) -> "Services":
    """Open the galleries that `nsfse serve` names, each [NAME=]GALLERY; those of one bundle share its graphs.

    Raises MissingExtraError, UsageError, and what open_gallery raises.
    """
    need_server()
    from nsfse_runtime.server.galleries import ServedGallery
    from nsfse_runtime.server.services import Services
    from nsfse_runtime.server.settings import Settings, named_galleries, read_token

    checked = Settings(token=read_token(token), **settings)
    checked.check()
    models: dict[str, OnnxScorer] = {}
    served = []
    for name, path in named_galleries(galleries).items():
        model, gallery = open_gallery(path, bundle, device)
        served.append(ServedGallery(name, models.setdefault(model.fingerprint, model), gallery))
    return Services(served, checked, nsfse.__version__)


def need_server() -> None:
    """Raise MissingExtraError where what serves is not installed."""
    for module in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        need(module, "serve")


def check_references(gallery: Gallery, references: Sequence[str], texts: Sequence[str], balance: float) -> None:
    """Raise UsageError for a reference that is a URL or stdin, and for a text in the place of the reference.

    `references` are the query's images, the first one first; `texts` its texts.
    """
    for each in references:
        if each == "-":
            raise UsageError("an image is not read from stdin; save it to a file and name that")
        if "://" in each or each.startswith("data:"):
            raise UsageError(f"{each[:80]!r} is a URL, and nothing is fetched; save the image and name its file")
    first = references[0]
    if not texts and balance > 0 and not (Path(first).exists() or _names_image(gallery, first)):
        raise UsageError(
            f"a query starts from an image, and {first[:80]!r} is neither a file nor an id of the gallery; "
            f'put the image first: nsfse query IMAGE "{first[:80]}" -g {gallery.path}'
        )


def _names_image(gallery: Gallery, name: str) -> bool:
    """Tell whether an image of the gallery, or several, are called `name`."""
    try:
        gallery.snapshot.row(name)
    except NotFoundError:
        return False
    except UsageError:
        pass
    return True


def image_file(gallery: Gallery, reference: str) -> Path:
    """Return the file of a query's reference: `reference` itself, or that of the gallery's image of that id.

    Raises NotFoundError where the gallery's folder is gone.
    """
    if Path(reference).is_file():
        return Path(reference)
    folder = Path(gallery.snapshot.folder)
    if not folder.is_dir():
        raise NotFoundError(
            f"the images of {gallery.path} were in {folder}, which is gone; if it was moved: "
            f"nsfse index {gallery.path} NEW_FOLDER"
        )
    return gallery.snapshot.path_of(gallery.snapshot.row(reference))


def folders(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse the NAME=DIR pairs of --data. Raises UsageError."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UsageError(f"--data takes NAME=DIR, not {pair!r}; for example --data products=photos")
    return {name: Path(folder) for name, folder in (pair.split("=", 1) for pair in pairs)}


def conditions(pairs: Sequence[str]) -> dict[str, str]:
    """Parse the COLUMN=VALUE pairs of --where. Raises UsageError, also for a column that is given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        column, equals, value = (part.strip() for part in pair.partition("="))
        compared = column[-1:] in ("<", ">", "!", "~") or value.startswith("=")
        if compared or (not equals and not {"<", ">", "!", "~"}.isdisjoint(pair)):
            raise UsageError(f"--where compares by = alone: COLUMN=VALUE[,VALUE], not {pair!r}")
        if not equals or not column:
            raise UsageError(f"--where takes COLUMN=VALUE, not {pair!r}; for example --where category=dress")
        if column in found:
            raise UsageError(
                f"--where names {column} twice; give its values together: --where {column}={found[column]},{value}"
            )
        found[column] = value
    return found


def check_sheets(gallery: Gallery, images: Sequence[str], png: Path | None, html: Path | None) -> None:
    """Raise where a sheet or a page may not be written: over an image of the gallery, or anything not of nsfse.

    `images` are those of the query. Raises OutputError or UsageError.
    """
    for path, kind in ((png, SHEET), (html, PAGE)):
        if path is None:
            continue
        check_output(path, kind)
        folder, real = Path(gallery.snapshot.folder), Path(path).resolve()
        own = real.is_relative_to(folder) and gallery.snapshot.has(real.relative_to(folder).as_posix())
        if own or real in {Path(image).resolve() for image in images}:
            raise OutputError(f"{printable(str(path))} is an image of the gallery or the query; choose another name")


def why_empty(gallery: Gallery, where: Mapping[str, str]) -> str:
    """Return why a query without a confidence to reach has found nothing."""
    if not len(gallery):
        failed = gallery.failures()
        if not failed:
            return "the gallery is empty; index a folder of images: nsfse index GALLERY FOLDER"
        (reason, most), *rest = Counter(reason for _, reason in failed).most_common()
        more = f"; {len(rest)} other reasons: nsfse index lists them" if rest else ""
        return f"the gallery is empty: no file could be taken ({most} of {len(failed)}: {printable(reason)}{more})"
    if not where:
        return "the gallery has no image but those of the query"
    for column, value in where.items():
        if not gallery.snapshot.mask({column: value}).any():
            near = gallery.snapshot.nearest_value(column, value)
            hint = f"; did you mean {near}?" if near else ""
            return printable(f"no image in the gallery has {column}={value}{hint}")
    if gallery.snapshot.mask(where).any():
        return "no image but those of the query fits these conditions"
    return "no image in the gallery fits all of these conditions"


def index_folder(
    path: Path, folder: Path, bundle: Path | None, device: ExecutionDevice, **options: Any
) -> tuple["SyncReport", int]:
    """Make the gallery at `path` equal to `folder`; return what was done, and how many images it has then.

    A gallery that was not there before, and in which nothing is when this fails, is not left behind. Raises what
    open_gallery and Gallery.sync raise; UsageError where the two arguments have changed places.
    """
    if path.is_dir():
        turned = " and the folder second" if not folder.is_dir() else ""
        raise UsageError(f"{path} is a folder; the gallery, a file, comes first{turned}: nsfse index GALLERY FOLDER")
    new = not path.exists()
    try:
        model, opened = open_gallery(path, bundle, device, create=True)
        with closing(opened):
            return opened.sync(folder, model, **options), len(opened)
    except NsfseError:
        if new:
            store.discard_empty(path)
        raise


def numbers(text: str) -> list[int]:
    """Parse whole numbers between commas. Raises UsageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not a list of whole numbers; for example 10000,100000") from None
