"""The graphs of stage 1 in ONNX, written byte by byte: the runtime needs no onnx for that.

The fields are those of onnx.proto; a message is its fields one after the other, each a key, a
length and a payload.
"""

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.inference.onnx_reader import BOOL, FLOAT, INT8, INT32, INT64, UINT8


def search_graph(*, regions: bool = False) -> bytes:
    """Return the graph that finds the k rows of `vectors` [N, d] with the largest inner product with `query` [d].

    It takes `vectors`, `query`, `mask` [N] (bool: which rows may be found) and `k` [1] (int64, at
    most the rows that may). It returns `scores` [k], `rows` [k] (int64) and `found_vectors` [k, d].

    Args:
        regions: Whether it also takes `codes` [N, R, d] (int8) and `factors` [N, R, 1] of regions,
            and returns `found_regions` [k, R, d] in float32.
    """
    nodes = [
        _node("MatMul", "vectors query", "products"),
        _node("Where", "mask products least", "allowed"),
        _node("TopK", "allowed k", "scores rows", axis=0),
        _node("Gather", "vectors rows", "found_vectors", axis=0),
    ]
    inputs = [
        _value("vectors", FLOAT, "N", "d"),
        _value("query", FLOAT, "d"),
        _value("mask", BOOL, "N"),
        _value("k", INT64, 1),
    ]
    outputs = [
        _value("scores", FLOAT, "k"),
        _value("rows", INT64, "k"),
        _value("found_vectors", FLOAT, "k", "d"),
    ]
    if regions:
        nodes += [
            _node("Gather", "codes rows", "found_codes", axis=0),
            _node("Gather", "factors rows", "found_factors", axis=0),
            _node("Cast", "found_codes", "numbers", to=FLOAT),
            _node("Mul", "numbers found_factors", "found_regions"),
        ]
        inputs += [_value("codes", INT8, "N", "R", "d"), _value("factors", FLOAT, "N", "R", 1)]
        outputs.append(_value("found_regions", FLOAT, "k", "R", "d"))
    least = _field(2, FLOAT) + _field(9, b"\x00\x00\x80\xff") + _field(8, "least")  # a scalar, -inf
    graph = b"".join(
        [
            *(_field(1, node) for node in nodes),
            _field(2, "search"),
            _field(5, least),
            *(_field(11, value) for value in inputs),
            *(_field(12, value) for value in outputs),
        ]
    )
    return _model(graph, ir_version=9, opset=18)


def product_graph(codes: NDArray[np.int8], zero: int) -> bytes:
    """Return the graph query [1, d] uint8 → sums [1, N] int32: MatMulInteger with `codes` [d, N] inside.

    `zero` is the number that stands for 0 in the query.
    """
    dim, count = codes.shape
    weights = _field(1, dim) + _field(1, count) + _field(2, INT8) + _field(8, "codes") + _field(9, codes.tobytes())
    zero_point = _field(2, UINT8) + _field(8, "zero") + _field(9, bytes([zero]))
    graph = b"".join(
        [
            _field(1, _node("MatMulInteger", "query codes zero", "sums")),
            _field(2, "stage1"),
            _field(5, weights),
            _field(5, zero_point),
            _field(11, _value("query", UINT8, 1, dim)),
            _field(12, _value("sums", INT32, 1, count)),
        ]
    )
    return _model(graph, ir_version=8, opset=17)


def product_of_two() -> bytes:
    """Return the graph a [2, 2], b [2, 2] → c [2, 2], their product: what any provider can do."""
    parts = [
        _field(1, _node("MatMul", "a b", "c")),
        _field(2, "product"),
        _field(11, _value("a", FLOAT, 2, 2)),
        _field(11, _value("b", FLOAT, 2, 2)),
        _field(12, _value("c", FLOAT, 2, 2)),
    ]
    return _model(b"".join(parts), ir_version=8, opset=17)


def _model(graph: bytes, ir_version: int, opset: int) -> bytes:
    return _field(1, ir_version) + _field(7, graph) + _field(8, _field(2, opset))


def _field(number: int, value: int | str | bytes) -> bytes:
    """Return one field of a protocol buffer: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _node(kind: str, inputs: str, outputs: str, **attributes: int) -> bytes:
    named = [_field(1, name) for name in inputs.split()] + [_field(2, name) for name in outputs.split()]
    integers = [_field(1, name) + _field(3, value) + _field(20, 2) for name, value in attributes.items()]
    return b"".join([*named, _field(4, kind), *(_field(5, attribute) for attribute in integers)])


def _value(name: str, kind: int, *shape: int | str) -> bytes:
    sizes = [_field(1, _field(1, size) if isinstance(size, int) else _field(2, size)) for size in shape]
    tensor = _field(1, kind) + _field(2, b"".join(sizes))
    return _field(1, name) + _field(2, _field(1, tensor))
