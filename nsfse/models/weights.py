"""Weights made elsewhere: read without running any code in them, checked against the part they go into."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from nsfse_runtime.errors import DataError, IntegrityError, NotFoundError
from nsfse_runtime.regular_files import open_regular


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a .pth that holds nothing but tensors. Raises NotFoundError or IntegrityError."""
    if not path.is_file():
        raise NotFoundError(f"model.weights: no file {path}; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise IntegrityError(f"model.weights: {path} is damaged ({error}); download it again") from None
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError and others
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"model.weights: {path} is no file of plain tensors ({reason}); use safetensors") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise IntegrityError(f"model.weights: {path} holds more than named tensors; save the state_dict alone")
    return tensors


def fit_tensors(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy `tensors` into `module`, every one of its own. Raises DataError for the first that is missing or misshapen.

    Others, such as a classifier's, are left where they are.
    """
    with torch.no_grad():
        for name, own in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name not in tensors:
                raise DataError(f"{origin} has no tensor {name}; it is of another model")
            if tensors[name].shape != own.shape:
                shapes = f"{list(tensors[name].shape)}, not {list(own.shape)}"
                raise DataError(f"{origin}: {name} has the shape {shapes}; it is of another model")
            own.copy_(tensors[name])


def read_glove(path: Path, words: dict[str, int], dim: int) -> tuple[list[int], Tensor]:
    """Return the ids of those `words` (word → id) that a GloVe text file knows, and their vectors [N, dim].

    Vectors of fewer numbers are filled with zeros, of more projected to their `dim` main directions: both keep cosines
    as far as possible. They are scaled to a mean square of 1, that of fresh embeddings.
    Raises NotFoundError or DataError.
    """
    by_id: dict[int, NDArray[np.float32]] = {}
    try:
        with io.TextIOWrapper(open_regular(path), "utf-8") as file:
            for number, line in enumerate(file, 1):
                word, _, numbers = line.rstrip("\n").partition(" ")
                if word in words:
                    by_id[words[word]] = _numbers(numbers, path, number)
    except FileNotFoundError:
        raise NotFoundError(f"model.glove: no file {path}; give a GloVe text file") from None
    except UnicodeDecodeError:
        raise DataError(f"model.glove: {path} is not text; give the unpacked .txt file") from None
    if not by_id:
        raise DataError(f"model.glove: {path} knows none of the training texts' words; is it of another language?")
    if len({len(vector) for vector in by_id.values()}) > 1:
        raise DataError(f"model.glove: the lines of {path} differ in length; it is damaged")
    vectors = torch.from_numpy(np.stack(list(by_id.values())))
    if vectors.shape[1] > dim:
        _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
        vectors = vectors @ directions[:dim].T
    filled = torch.nn.functional.pad(vectors, (0, dim - vectors.shape[1]))
    return list(by_id), filled / filled.square().mean().sqrt().clamp_min(1e-8)


def _numbers(text: str, path: Path, line: int) -> NDArray[np.float32]:
    try:
        return np.array(text.split(), np.float32)
    except ValueError:
        raise DataError(
            f"model.glove: line {line} of {path} is not a word and its numbers; is it a GloVe file?"
        ) from None
