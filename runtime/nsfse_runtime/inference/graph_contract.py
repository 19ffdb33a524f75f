"""What the four graphs of a bundle take and give, and the check that a file is such a graph and nothing more.

A bundle may come from a stranger. ONNX Runtime runs what a graph says, so a graph may use the standard operators
alone, without loops, and its weights must be in its own file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.manifest import Manifest
from nsfse_runtime.inference.onnx_reader import BOOL, FLOAT, INT64, UINT8, GraphFacts, Size, TensorType, read_graph
from nsfse_runtime.types import RankingMode

_DOMAINS = ("", "ai.onnx")
_LOOPS = {"Loop", "Scan", "SequenceMap"}
_ORT_FORMAT = b"ORTM"
_TYPES = {"pixels": UINT8, "ids": INT64, "mask": BOOL}
Shapes = dict[str, tuple[Size, ...]]


class Contract(NamedTuple):
    """The shapes of a graph's inputs and outputs in order; a name is a size that varies."""

    inputs: Shapes
    outputs: Shapes


def contract_of(name: str, manifest: Manifest) -> Contract:
    """Return the contract of the graph `name`: "image", "text", "query" or "pair"."""
    d, regions, (height, width) = manifest.dim, manifest.regions, manifest.image_size
    images: Shapes = {"vectors": ("B", d), "regions": ("B", regions, d)}
    texts: Shapes = {"words": ("B", "L", d), "sentence": ("B", d)}
    if name == "image":
        return Contract({"pixels": ("B", height, width, 3)}, images)
    if name == "text":
        return Contract({"ids": ("B", "L"), "mask": ("B", "L")}, texts)
    if manifest.mode is RankingMode.ONE_STAGE:
        return Contract({"vectors": ("B", d), "sentence": ("B", d)}, {"query": ("B", d)})
    queries: Shapes = {
        "query": ("B", d),
        "infused": ("B", "L", d),
        "probes": ("B", "P", d),
        "word_weights": ("B", "L"),
        "probe_weights": ("B", "P"),
    }
    if name == "query":
        return Contract(images | texts | {"mask": ("B", "L")}, queries)
    one: Shapes = {each: shape[1:] for each, shape in queries.items()}
    candidates: Shapes = {each: ("K", *shape[1:]) for each, shape in images.items()}
    return Contract(one | candidates, {"score": ("K",), "word_scores": ("K", "L")})


def check_graph(data: bytes, contract: Contract, origin: str) -> None:
    """Raise IntegrityError where `data` is not a graph of this contract, or does what no graph of a bundle needs."""
    if data[4:8] == _ORT_FORMAT:
        raise _refused(origin, "it is in ONNX Runtime's own format")
    try:
        facts = read_graph(data)
    except ValueError as error:
        raise IntegrityError(f"{origin} is not a whole ONNX graph ({error}); export the bundle again") from error
    if reason := _reason_against(facts):
        raise _refused(origin, reason)
    for found, expected in ((facts.inputs, contract.inputs), (facts.outputs, contract.outputs)):
        if list(found) != list(expected):
            raise _refused(origin, f"it has {_names(found)} in the place of {_names(expected)}")
        for name, tensor in found.items():
            if not _fits(tensor, TensorType(_TYPES.get(name, FLOAT), expected[name])):
                raise _refused(origin, f"{name} has another type or shape than the manifest says")


def _reason_against(facts: GraphFacts) -> str:
    if facts.external:
        return "its weights are in another file"
    if facts.functions or any(domain not in _DOMAINS for domain, _ in facts.operators):
        return "it has operators that are not of ONNX"
    if loops := _LOOPS & {operator for _, operator in facts.operators}:
        return f"it has a {min(loops)}, which may never end"
    return ""


def _names(tensors: Mapping[str, object]) -> str:
    return ", ".join(name[:40] for name in list(tensors)[:8]) or "nothing"


def _fits(found: TensorType, expected: TensorType) -> bool:
    sizes = zip(found.shape, expected.shape, strict=False)
    return (
        found.kind == expected.kind
        and len(found.shape) == len(expected.shape)
        and all(size == wanted or isinstance(size, str) for size, wanted in sizes if isinstance(wanted, int))
    )


def check_outputs(inputs: Mapping[str, Any], outputs: Sequence[NDArray[Any]], contract: Contract, origin: str) -> None:
    """Raise IntegrityError where `outputs` have other shapes than `inputs` lead to, or hold NaN or infinity.

    Inputs that are on a device are passed over.
    """
    sizes: dict[Size, int] = {}
    for name, shape in contract.inputs.items():
        if isinstance(inputs[name], np.ndarray):
            sizes.update(zip(shape, inputs[name].shape, strict=True))
    for (name, shape), output in zip(contract.outputs.items(), outputs, strict=True):
        expected = [size if isinstance(size, int) else sizes.get(size) for size in shape]
        if len(output.shape) != len(shape) or any(map(_differ, output.shape, expected)):
            raise _refused(origin, f"it gives {name} in the shape {list(output.shape)[:8]}")
        if not np.isfinite(output).all():
            raise _refused(origin, f"it gives {name} that are not finite numbers")


def _differ(size: int, expected: int | None) -> bool:
    return expected is not None and size != expected


def _refused(origin: str, reason: str) -> IntegrityError:
    return IntegrityError(f"{origin} is no graph of a bundle ({reason}); export the bundle again")
