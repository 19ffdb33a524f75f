"""Files of weights made elsewhere: a folder, or `hub:OWNER/NAME` to fetch one.

Only that prefix lets anything reach for the network.
"""

import json
import re
from pathlib import Path
from typing import Any

from nsfse_runtime.errors import DataError, IntegrityError, NotFoundError

HUB = "hub:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def hub_source(weights: str) -> tuple[str, bool]:
    """Return its name for `transformers`, and whether only this machine is searched."""
    return (weights.removeprefix(HUB), False) if weights.startswith(HUB) else (weights, True)


def find_file(weights: str, *names: str) -> Path:
    """Return the path of the first of `names` that the weights have.

    Raises NotFoundError (they have none of them) or DataError (no name was given, no network).
    """
    for name in names[:-1]:
        try:
            return _find(weights, name)
        except NotFoundError:
            continue
    return _find(weights, names[-1])


def has_file(weights: str, name: str) -> bool:
    """Return whether the weights have a file of this name. Raises as `find_file`."""
    try:
        find_file(weights, name)
    except NotFoundError:
        return False
    return True


def read_json(weights: str, name: str, needed: bool = True) -> dict[str, Any]:
    """Return a JSON file of the weights; {} where it is absent and not `needed`. Raises as `find_file`."""
    try:
        path = find_file(weights, name)
    except NotFoundError:
        if needed:
            raise
        return {}
    try:
        tree = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise IntegrityError(f"model.weights: {path} is damaged: {first_line(error)}") from None
    if not isinstance(tree, dict):
        raise IntegrityError(f"model.weights: {path} is damaged: it is not a JSON object")
    return tree


def _find(weights: str, name: str) -> Path:
    if not weights:
        raise DataError("model.weights: the clip backbone needs a folder saved by transformers, or hub:OWNER/NAME")
    source, local = hub_source(weights)
    if local:
        if not Path(source).exists():
            fetch = f", or {HUB}{source} to fetch it" if _HUB_NAME.fullmatch(source) else ""
            raise NotFoundError(f"model.weights: no folder {source}; give a folder saved by transformers{fetch}")
        if not (Path(source) / name).is_file():
            raise NotFoundError(f"model.weights: no {name} in {source}; give a folder saved by transformers")
        return Path(source) / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # the client's errors share no base but Exception
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        kind = NotFoundError if absent else DataError
        raise kind(f"model.weights: no {name} to be had from {weights} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
