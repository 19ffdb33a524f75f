"""What a graph in ONNX says of itself: inputs, outputs and operators, read without the onnx package.

The fields are those of onnx.proto. Weights are passed over, not copied.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

FLOAT, UINT8, INT8, INT32, INT64, BOOL = 1, 2, 3, 6, 7, 9
Size = int | str
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 63
_MAX_DEPTH = 8  # of graphs in the branches of others


class TensorType(msgspec.Struct, frozen=True):
    """The element type of an input or output, and its shape: sizes, and the names of those that vary."""

    kind: int
    shape: tuple[Size, ...]


class GraphFacts(msgspec.Struct):
    """What a graph says of itself.

    `operators` are pairs (domain, name), those in its branches among them. `functions` counts operators that the file
    defines itself, `external` tensors whose weights are in another file.
    """

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]
    operators: set[tuple[str, str]]
    functions: int = 0
    external: int = 0


def read_graph(model: bytes) -> GraphFacts:
    """Read a whole ONNX model. Raises ValueError for what is none."""
    try:
        view = memoryview(model)
        [graph] = _payloads(view, 7)
        inputs, outputs = (dict(map(_value, _payloads(graph, number))) for number in (11, 12))
        facts = GraphFacts(inputs, outputs, set(), len(_payloads(view, 25)))
        _read_nodes(graph, facts, 0)
        return facts
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"no ONNX graph: {type(error).__name__}") from error


def input_shapes(model: bytes) -> dict[str, tuple[Size, ...]]:
    """Return the shape of each input of a whole ONNX `model`. Raises ValueError for what is none."""
    return {name: tensor.shape for name, tensor in read_graph(model).inputs.items()}


def _read_nodes(graph: memoryview, facts: GraphFacts, depth: int) -> None:
    """Note the operators and external weights of a graph and of those within it."""
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deeply")
    for number, payload in _fields(graph):
        if number == 1:
            _read_node(payload, facts, depth)
        elif number == 5:
            facts.external += _is_external(payload)
        elif number == 15:
            facts.external += _is_external_sparse(payload)


def _read_node(node: memoryview, facts: GraphFacts, depth: int) -> None:
    names = {4: "", 7: ""}
    for number, payload in _fields(node):
        if number in names:
            names[number] = bytes(payload).decode()
        elif number == 5:
            for kind, part in _fields(payload):
                if kind in (5, 10):
                    facts.external += _is_external(part)
                elif kind in (22, 23):
                    facts.external += _is_external_sparse(part)
                elif kind in (6, 11):
                    _read_nodes(part, facts, depth + 1)
    facts.operators.add((names[7], names[4]))


def _is_external(tensor: memoryview) -> bool:
    return any(number == 13 or (number == 14 and value != 0) for number, value in _fields(tensor))


def _is_external_sparse(tensor: memoryview) -> bool:
    return any(_is_external(part) for number, part in _fields(tensor) if number in (1, 2))


def _value(value: memoryview) -> tuple[str, TensorType]:
    """Return the name and the type in a ValueInfoProto."""
    [name] = _payloads(value, 1)
    [kind] = _payloads(value, 2)
    [tensor] = _payloads(kind, 1)
    fields = dict(_fields(tensor))
    dimensions = [dict(_fields(dimension)) for dimension in _payloads(fields[2], 1)]
    shape = tuple(size[1] if 1 in size else bytes(size[2]).decode() if 2 in size else "" for size in dimensions)
    return bytes(name).decode(), TensorType(fields[1], shape)


def _payloads(message: memoryview, number: int) -> list[memoryview]:
    return [payload for at, payload in _fields(message) if at == number]


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer, each its number and its varint or bytes; none is copied."""
    at, end = 0, len(message)
    while at < end:
        key, at = _read_varint(message, at)
        if key & 7 == _VARINT:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        size, at = _read_varint(message, at) if key & 7 == _BYTES else ({_FIXED_64: 8, _FIXED_32: 4}[key & 7], at)
        if size > end - at:
            raise ValueError("it is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the varint at `at`, and where it ends."""
    value = shift = 0
    while shift <= _MAX_VARINT_BITS:
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
