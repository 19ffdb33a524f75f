"""Runs and bundles on a model hub, through `huggingface_hub`: push and pull, named `hub:OWNER/NAME[@REVISION]`.

Nothing here runs unless it is requested by that name. A model is a few files of known names: JSON, safetensors, ONNX
and its card. No other file of a repository is fetched.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nsfse
from nsfse_runtime.atomic_write import replacing_folder
from nsfse_runtime.errors import DataError, NotFoundError, NsfseError, OutputError, UsageError
from nsfse_runtime.extras import need
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import CARD, FILES, MANIFEST

HUB = "hub:"
RUN_FILES = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "best.safetensors",
    "decision.json",
    "metrics.jsonl",
)
_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubModel:
    """A run or a bundle that was pushed or pulled. `revision` is the commit, `path` its folder on this machine."""

    kind: str
    name: str
    revision: str
    path: Path
    files: tuple[str, ...]


def parse_name(name: str) -> tuple[str, str | None]:
    """Return OWNER/NAME and the revision, None for the newest, of a name with `hub:`. Raises UsageError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is no name of a model on a hub; give hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    return match[1], match[2]


def revision_of(name: str) -> str:
    """Return the commit that a name means now. Raises as `pull`."""
    return str(_find(name).sha)


def push(folder: Path, name: str, *, public: bool = False) -> HubModel:
    """Upload a run or a bundle with its card, after every byte of a bundle was checked.

    Args:
        folder: Folder of the run or the bundle. A run's state for resuming stays here.
        name: `hub:OWNER/NAME`; the repository is made when absent.
        public: Whether everybody may see a new repository.

    Returns:
        What was pushed, with its commit.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        UsageError: The name is not of its form.
        NotFoundError: `folder` is neither a run nor a bundle; and what Bundle.open and load_checkpoint raise.
        OutputError: The hub did not take it.
    """
    repository, revision = parse_name(name)
    need("huggingface_hub", "hub")
    kind = _kind(list(path.name for path in folder.iterdir()) if folder.is_dir() else [])
    if kind is None:
        raise NotFoundError(f"{folder} is neither a run nor a bundle; give the folder of one")
    _check(folder, kind)
    names = [file for file in _files(kind) if (folder / file).is_file()]
    from huggingface_hub import CommitOperationAdd

    contents: dict[str, Any] = {file: str(folder / file) for file in names}
    if kind == "run":
        contents[CARD] = _run_card(folder, name).encode()
    operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=data) for file, data in contents.items()]
    with _explained(f"cannot push to {name}", "log in with: hf auth login", OutputError):
        api = _client()
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.create_commit(
            repository, operations, commit_message=f"Push a {kind} of nsfse {nsfse.__version__}", revision=revision
        )
    return HubModel(kind, name, str(commit.oid), folder, tuple(contents))


def pull(name: str, out: Path) -> HubModel:
    """Fetch a run or a bundle into a new folder; it is there whole and checked, or not at all.

    Args:
        name: `hub:OWNER/NAME`, with `@REVISION` for another than the newest.
        out: The folder; absent or empty.

    Returns:
        What was pulled, with the commit it is of.

    Raises:
        MissingExtraError: huggingface_hub, or torch for a run, is not installed.
        UsageError: The name is not of its form.
        NotFoundError: There is no such model or revision.
        DataError: It is no model of nsfse, or the hub cannot be reached.
        IntegrityError: A file is not what was exported.
        OutputError: `out` has something in it, or cannot be written.
    """
    repository, _ = parse_name(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} has something in it; name a new folder with -o")
    found = _find(name)
    there = [file.rfilename for file in found.siblings or ()]
    kind = _kind(there)
    if kind is None:
        raise DataError(
            f"{name} is neither a run nor a bundle of nsfse; of a CLIP, nsfse import-clip --weights {name} makes one"
        )
    names = tuple(file for file in _files(kind) if file in there)
    with tempfile.TemporaryDirectory() as cache, replacing_folder(out.absolute()) as draft:
        for file in names:
            with _explained(f"cannot pull {file} of {name}", "check the network", DataError):
                fetched = _client().hf_hub_download(repository, file, revision=found.sha, cache_dir=cache)
            shutil.copyfile(fetched, draft / file)
        _check(draft, kind)
    return HubModel(kind, f"{HUB}{repository}", str(found.sha), out, names)


def _client() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="nsfse", library_version=nsfse.__version__)


def _find(name: str) -> Any:
    """Return the facts of a repository at a revision. Raises as `pull`."""
    repository, revision = parse_name(name)
    need("huggingface_hub", "hub")
    with _explained(f"cannot pull {name}", "check the name and the network", DataError):
        return _client().model_info(repository, revision=revision)


def _kind(names: list[str]) -> str | None:
    """Return what a folder or repository with these files is: a bundle, a run or None."""
    if MANIFEST in names:
        return "bundle"
    return "run" if {"config.json", "tokenizer.json", "model.safetensors", "metrics.jsonl"} <= set(names) else None


def _files(kind: str) -> tuple[str, ...]:
    return (*FILES, MANIFEST, CARD) if kind == "bundle" else (*RUN_FILES, CARD)


def _check(folder: Path, kind: str) -> None:
    """Open a bundle, which hashes its files, or load a run's weights. Raises what these do."""
    if kind == "bundle":
        Bundle.open(folder)
        return
    need("torch", "train")
    from nsfse.models.checkpoint import load_checkpoint

    load_checkpoint(folder)


def _run_card(run: Path, name: str) -> str:
    """Return the card of a run: what it was trained on, and its last scores."""
    from nsfse.models.checkpoint import checkpoint_info

    info = checkpoint_info(run)
    facts = {"method": info["config"]["model"]["method"], **info["trained_on"], **info.get("last_metrics", {})}
    plain = [f"- {key}: {value}" for key, value in facts.items() if isinstance(value, str | int | float)]
    head = f"---\nlibrary_name: nsfse\n---\n\n# {name.rpartition('/')[2]}\n\nA run of nsfse {nsfse.__version__}.\n\n"
    return head + "\n".join(plain) + f"\n\n```sh\nnsfse pull {name} -o run\nnsfse export run -o bundle\n```\n"


@contextmanager
def _explained(what: str, then: str, kind: type[NsfseError]) -> Iterator[None]:
    """Turn an error of the client, whose errors share no base, into one line."""
    try:
        yield
    except NsfseError:
        raise
    except Exception as error:
        absent = type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise (NotFoundError if absent and kind is DataError else kind)(f"{what} ({reason}); {then}") from None
