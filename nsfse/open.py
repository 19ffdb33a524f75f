"""Scorers, galleries, retrievers and services, opened by path: the one place that does."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nsfse
from nsfse.defaults import default_model
from nsfse.progress import print_status
from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.extras import need
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.inference import devices
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import ON_CPU, DeviceName, ExecutionDevice
from nsfse_runtime.inference.manifest import MANIFEST
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.open import load_scorer
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.retrieval.views import View
from nsfse_runtime.search.first_stage import SearchMode
from nsfse_runtime.stores.open import is_store_url, open_store

if TYPE_CHECKING:
    from nsfse.models.torch_scorer import TorchScorer
    from nsfse_runtime.server.services import Services
    from nsfse_runtime.server.settings import Settings
    from nsfse_runtime.stores.protocol import GalleryStore

RUN = "config.json"
"""The file by which a folder is a run, as MANIFEST is for a bundle."""


def resolve_device(
    device: DeviceName | None, provider: str | None, provider_options: Mapping[str, str] | None = None
) -> ExecutionDevice:
    """Return where graphs run (see devices.resolve_device); a note on stderr where "auto" takes the CPU."""
    resolved = devices.resolve_device(device, provider, provider_options)
    if resolved.note:
        print_status(f"nsfse: {printable(resolved.note)}")
    return resolved


def open_scorer(
    model: str | os.PathLike[str],
    device: DeviceName | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> "TorchScorer | OnnxScorer":
    """Open a run in torch, or a bundle in ONNX Runtime or TensorRT.

    Args:
        model: Folder of the run or the bundle.
        device: Where it computes: auto, cpu or cuda, and tensorrt for a bundle.
        provider: Another provider of ONNX Runtime, for a bundle.
        provider_options: Options of that provider, as its documentation names them.

    Returns:
        The model behind the one interface of `nsfse_runtime.types.Scorer`.

    Raises:
        NotFoundError: `model` is neither a run nor a bundle.
        UsageError: The device or provider is not there.
    """
    path = Path(model)
    if (path / MANIFEST).exists():
        return load_scorer(Bundle.open(path), resolve_device(device, provider, provider_options))
    if (path / RUN).exists():
        if provider or provider_options or device == "tensorrt":
            raise UsageError(f"{path} is a run, which torch runs; export it first, or give --device auto, cpu or cuda")
        return open_run(path, device or "auto")
    raise NotFoundError(f"{path} is neither a checkpoint nor a bundle; train with `nsfse train` or export one")


def open_run(run: Path, device: str = "auto") -> "TorchScorer":
    """Open a run's last weights in torch.

    Args:
        run: Folder of the run.
        device: auto, cpu or cuda.

    Returns:
        The model as a scorer.

    Raises:
        NsfseError: What load_checkpoint raises; torch or the device is not there.
    """
    need("torch", "train")
    from nsfse.models.checkpoint import load_checkpoint
    from nsfse.models.device import pick_device
    from nsfse.models.torch_scorer import TorchScorer

    checkpoint = load_checkpoint(run)
    return TorchScorer(checkpoint.model.to(pick_device(device)), checkpoint.tokenizer, checkpoint.decision)


def open_gallery(
    path: Path, bundle: Path | None, device: ExecutionDevice = ON_CPU, *, create: bool = False
) -> tuple[OnnxScorer, Gallery]:
    """Open a gallery with its bundle.

    Args:
        path: The gallery file.
        bundle: The bundle; by default the one that the gallery remembers.
        device: Where the bundle computes.
        create: Whether to make a new gallery where there is none, without `bundle` by the default model.

    Returns:
        The bundle's scorer and the gallery.

    Raises:
        NotFoundError: There is no gallery, or its bundle is gone.
        UsageError: `path` is a folder, or no bundle is known.
        VersionError: The gallery is of another bundle.
        IntegrityError: A file is damaged.
    """
    if path.is_dir():
        raise UsageError(_folder_instead(path))
    if bundle is None:
        bundle = _remembered_bundle(path, create)
    scorer = load_scorer(Bundle.open(bundle), device)
    return scorer, Gallery.open(path, scorer, create=create)


def _remembered_bundle(path: Path, create: bool) -> Path:
    if not path.exists():
        if create:
            return new_model()
        raise NotFoundError(f"no gallery at {path}; make it with: nsfse index GALLERY FOLDER -b BUNDLE")
    with Gallery.open(path) as gallery:
        bundle = gallery.bundle_path
    if bundle is None:
        raise UsageError(f"{path} does not remember a bundle; name it with -b BUNDLE")
    if not bundle.exists():
        raise NotFoundError(f"{path} remembers its bundle at {bundle}, which is gone; name it with -b BUNDLE")
    return bundle


def new_model() -> Path:
    """Return the bundle of the default model, and say on stderr which it is."""
    model = default_model()
    print_status(printable(f"nsfse: new galleries use {model.name}; for another: -b BUNDLE or nsfse use"))
    return model.bundle


def _folder_instead(path: Path) -> str:
    """Return the error for a folder that was named in place of a gallery file."""
    if (path / MANIFEST).exists():
        return f"{path} is a bundle, not a gallery; name it with -b, and a gallery file in its place"
    kind = "a run" if (path / RUN).exists() else "a folder"
    return f"{path} is {kind}, not a gallery; the gallery file comes first: nsfse index GALLERY FOLDER -b BUNDLE"


def open_store_with_model(
    url: str, bundle: Path | None, device: ExecutionDevice = ON_CPU
) -> tuple[OnnxScorer, "GalleryStore"]:
    """Open a gallery in a database with its bundle.

    Args:
        url: The gallery (see nsfse_runtime.stores.open.open_store).
        bundle: The bundle; by default the one that the gallery remembers.
        device: Where the bundle computes.

    Returns:
        The bundle's scorer and the gallery.

    Raises:
        NotFoundError: There is no gallery, or its bundle is not on this machine.
        NsfseError: What open_store and Bundle.open raise.
    """
    store = open_store(url)
    return load_scorer(Bundle.open(bundle or bundle_of(store)), device), store


def bundle_of(store: "GalleryStore") -> Path:
    """Return the bundle that a gallery in a database remembers. Raises NotFoundError: it is not on this machine."""
    facts = store.info().facts
    if not (facts.bundle and Path(facts.bundle).exists()):
        raise NotFoundError(
            f"{store.url} has its bundle at {facts.bundle}, not on this machine; name it with -b BUNDLE"
        )
    return Path(facts.bundle)


def open_retriever(
    path: str | Path, bundle: Path | None, device: ExecutionDevice = ON_CPU, search: SearchMode = "auto"
) -> Retriever:
    """Open a gallery with its bundle, for queries.

    The gallery is not copied to a GPU: that pays off only for many queries.

    Args:
        path: The gallery file, or the URL of one in a database.
        bundle: The bundle; by default the one that the gallery remembers.
        device: Where the bundle computes.
        search: How stage 1 searches a file (see nsfse_runtime.search.first_stage).

    Returns:
        The retriever.

    Raises:
        NsfseError: What open_gallery raises.
    """
    if is_store_url(str(path)):
        return Retriever(*open_store_with_model(str(path), bundle, device))
    return Retriever(*open_gallery(Path(path), bundle, device), search=search, resident=False)


def open_services(
    galleries: Sequence[str], bundle: Path | None, device: ExecutionDevice, settings: "Settings"
) -> "Services":
    """Open the galleries that `nsfse serve` names; those of one bundle share its graphs.

    Args:
        galleries: Each [NAME=]GALLERY, a file or a URL.
        bundle: The bundle of all; by default the one that each gallery remembers.
        device: Where bundles compute.
        settings: The server's settings.

    Returns:
        The service, not yet listening.

    Raises:
        MissingExtraError: The server is not installed.
        UsageError: The settings or the names do not go together; and what open_gallery raises.
    """
    need_server()
    from nsfse_runtime.server.galleries import ServedFile, ServedGallery
    from nsfse_runtime.server.services import Services
    from nsfse_runtime.server.settings import named_galleries
    from nsfse_runtime.server.stores import ServedStore

    settings.check()
    scorers: dict[str, OnnxScorer] = {}
    served: list[ServedGallery] = []
    for name, path in named_galleries(galleries).items():
        if is_store_url(path):
            scorer, store = open_store_with_model(path, bundle, device)
            served.append(ServedStore(name, scorers.setdefault(scorer.fingerprint, scorer), store))
        else:
            scorer, gallery = open_gallery(Path(path), bundle, device)
            served.append(ServedFile(name, scorers.setdefault(scorer.fingerprint, scorer), gallery))
    return Services(served, settings, nsfse.__version__)


def need_server() -> None:
    """Raise MissingExtraError where the server is not installed."""
    for module in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        need(module, "serve")


def image_file(view: View, reference: str) -> Path:
    """Return the file of a query's reference image.

    Args:
        view: The gallery that is searched.
        reference: A file, or the id of an image of the gallery.

    Returns:
        The path of the file.

    Raises:
        NotFoundError: The gallery's folder is gone, or the gallery has no such image.
        UsageError: Several images have that name.
    """
    if Path(reference).is_file():
        return Path(reference)
    if not view.folder:
        raise NotFoundError(f"{view.url} knows no folder of its images; name a file in the place of {reference}")
    if not Path(view.folder).is_dir():
        raise NotFoundError(
            f"the images of {view.url} were in {view.folder}, which is gone; if it was moved: "
            f"nsfse index {view.url} NEW_FOLDER"
        )
    return view.path_of(view.find(reference))
