"""A float32 graph → the same graph in int8, for CPUs, or in a half type, for GPUs. Inputs and outputs stay float32.

int8 is two things. Where matrices are most of a graph they are multiplied in 8 bits, which is quicker. Elsewhere
weights are kept in 8 bits and computed with in float32: a quarter of the bytes, and no change of speed.

What decides an answer by small differences stays float32: norms, LayerNorm, softmax, temperatures, and the whole pair
graph, which has no weights and whose boundaries are steps.
"""

import logging
import tempfile
from collections.abc import Callable, Set
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nsfse_runtime.inference.manifest import Precision

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
GRAPHS = {"int8": ("image", "text", "query"), "fp16": ("image", "text"), "bf16": ("image", "text")}
"""Which graphs are worth it. On a GPU the query graph costs nothing beside the encoders."""

DENSE, MATH = ("MatMul", "Gemm"), ("MatMul", "Gemm", "Conv")
FOLLOW = {
    *("Add", "Attention", "Clip", "Concat", "Expand", "Flatten", "Gelu", "MaxPool", "Mul", "Relu", "Reshape"),
    *("Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators that take the half type when all they read is in it; residual sums of a transformer, for one, do not."""

LEAST_DENSE = 1 << 20  # weights of a graph's matrices under which products in int8 gain nothing
LEAST_KEPT, LEAST_TENSOR = 1 << 18, 1 << 12  # weights of a graph, and of one tensor, worth keeping in 8 bits


def reduced(name: str, data: bytes, precision: Precision) -> bytes | None:
    """Return the graph `name` in `precision`; None where it stays float32."""
    if name not in GRAPHS.get(precision, ()):
        return None
    model = onnx.load_from_string(data)
    if precision in HALVES:
        return _serialized(_typed(model, HALVES[precision]))
    if _is_dense(model):
        return _serialized(_quantized(model))
    return _serialized(_kept_small(model)) if sum(map(_weights, _large(model))) >= LEAST_KEPT else None


def emulated(data: bytes) -> bytes:
    """Return a graph in a half type with each operator in float32 between casts.

    A CPU without the type can run it, and it rounds where a GPU does: products are summed in float32, results rounded.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True)
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    half = {name: kind for name, kind in kinds.items() if kind in HALVES.values()}
    nodes: list[onnx.NodeProto] = []
    cast = _caster(nodes, "emulated-")
    for node in list(graph.node):
        if node.op_type == "Cast":
            nodes.append(node)
            continue
        node.input[:] = [cast(name, TensorProto.FLOAT) if name in half else name for name in node.input]
        rounded = [name for name in node.output if name in half]
        node.output[:] = [f"{name}.sum" if name in half else name for name in node.output]
        nodes.append(node)
        nodes += [helper.make_node("Cast", [f"{name}.sum"], [name], to=half[name]) for name in rounded]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return _serialized(model)


def _typed(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Put matrix products, convolutions and what follows them into the type `kind`, with casts at the borders."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    floats = _floats(model)
    made = _made_in_half(model, floats, constants.keys())
    nodes: list[onnx.NodeProto] = []
    cast = _caster(nodes)
    copies: dict[str, onnx.TensorProto] = {}

    def in_half(name: str) -> str:
        if name in constants:
            copies.setdefault(name, _converted(constants[name], kind))
            return copies[name].name
        return name if name in made else cast(name, kind)

    for node in list(graph.node):
        if node.output[0] in made:
            node.input[:] = [in_half(name) if name in floats else name for name in node.input]
            if node.op_type == "Attention":
                node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
        else:
            node.input[:] = [cast(name, TensorProto.FLOAT) if name in made else name for name in node.input]
        nodes.append(node)
    for output in graph.output:  # an output keeps its name and its type
        if output.name in made:
            _rename(nodes, output.name, f"{output.name}.half")
            nodes.append(helper.make_node("Cast", [f"{output.name}.half"], [output.name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(copies.values())
    _drop_unread(graph)
    return model


def _made_in_half(model: onnx.ModelProto, floats: Set[str], constants: Set[str]) -> set[str]:
    """Return the names of what is computed in the half type."""
    made: set[str] = set()
    for node in model.graph.node:
        read = floats & set(node.input)
        follows = node.op_type in FOLLOW and read & made and read <= made | constants
        if (node.op_type in MATH and read) or follows:
            made.update(node.output)
    return made


def _floats(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of all float32 tensors."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    named = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    named |= {value.name: value.type.tensor_type.elem_type for value in inferred.input}
    named |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return frozenset(name for name, kind in named.items() if kind == TensorProto.FLOAT)


def _caster(nodes: list[onnx.NodeProto], mark: str = "") -> Callable[[str, int], str]:
    """Return a function that names a tensor in another type; the cast is added to `nodes` when first asked for."""
    known: dict[tuple[str, int], str] = {}

    def cast(name: str, kind: int) -> str:
        if (name, kind) not in known:
            known[name, kind] = f"{name}.{mark}{TensorProto.DataType.Name(kind).lower()}"
            nodes.append(helper.make_node("Cast", [name], [known[name, kind]], to=kind))
        return known[name, kind]

    return cast


def _converted(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(np.ascontiguousarray(values), f"{tensor.name}.half")


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _is_dense(model: onnx.ModelProto) -> bool:
    """Tell whether most weights that a graph computes with are matrices, and enough of them for int8 to pay.

    Convolutions stay float32: quantized with calibration images they were 0.9 to 1.2 times as fast on a CPU without
    VNNI, at a cosine of 0.99 and less.
    """
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    dense = other = 0
    for node in model.graph.node:
        size = sum(sizes.get(name, 0) for name in node.input)
        dense += size if node.op_type in DENSE else 0
        other += size if node.op_type in ("Conv", "GRU") else 0
    return dense >= LEAST_DENSE and dense >= other


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize matrices to 7 bits a column, and what they are multiplied with to 8 bits as it comes.

    With 8 bits, CPUs without VNNI saturate sums of two products: 7 bits give the same answer on every CPU.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # advice to run steps that the exporter has run
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            quantize_dynamic(
                model,
                path,
                op_types_to_quantize=list(DENSE),
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            found = onnx.load(path)
    finally:
        logging.root.setLevel(level)
    used = {node.domain for node in found.graph.node}
    kept = [opset for opset in found.opset_import if opset.domain in used]
    del found.opset_import[:], found.metadata_props[:], found.graph.value_info[:]
    found.opset_import.extend(kept)
    _shrink_tables(found.graph)
    return found


def _shrink_tables(graph: onnx.GraphProto) -> None:
    """Keep large tables that are only looked up in, such as a CLIP's words, in one byte a number and a scale a row."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for tensor in list(graph.initializer):
        table, lookups = tensor.name, readers.get(tensor.name, [])
        large = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and np.prod(tensor.dims) >= LEAST_DENSE
        if not large or not lookups or not all(_looks_up(node, table) for node in lookups):
            continue
        found = _scaled(numpy_helper.to_array(tensor), (1,))
        graph.initializer.remove(tensor)
        graph.initializer.extend(map(numpy_helper.from_array, found, (f"{table}.codes", f"{table}.scales")))
        for node in lookups:
            at = list(graph.node).index(node)
            ids, out = node.input[1], node.output[0]
            graph.node.remove(node)
            for made in reversed(
                [
                    helper.make_node("Gather", [f"{table}.codes", ids], [f"{out}.codes"]),
                    helper.make_node("Gather", [f"{table}.scales", ids], [f"{out}.scales"]),
                    helper.make_node("Cast", [f"{out}.codes"], [f"{out}.whole"], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [f"{out}.whole", f"{out}.scales"], [out]),
                ]
            ):
                graph.node.insert(at, made)


def _looks_up(node: onnx.NodeProto, table: str) -> bool:
    """Tell whether a node takes rows of `table` and does nothing else with it."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == table and axis == 0 and node.input[1] != table


def _weights(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims))


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the weights that are worth keeping in 8 bits: matrices, kernels, embeddings."""
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and _weights(tensor) >= LEAST_TENSOR
    ]


def _kept_small(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep large weights in 8 bits. Cast and Mul make float32 of them once, when a session folds constants."""
    graph, nodes = model.graph, []
    for tensor in _large(model):
        name, codes, scale = tensor.name, f"{tensor.name}.int8", f"{tensor.name}.scale"
        found = _codes(numpy_helper.to_array(tensor))
        graph.initializer.remove(tensor)
        graph.initializer.extend(map(numpy_helper.from_array, found, (codes, scale)))
        nodes.append(helper.make_node("Cast", [codes], [f"{codes}.float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{codes}.float", scale], [name]))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` as codes of -127 to 127 and their scales, with which they are off by the least.

    A kernel has a scale for each output channel, a recurrent unit for each row of each direction, a matrix for each
    row or column.
    """
    axes = {2: ((0,), (1,)), 3: ((1, 2), (2,))}.get(values.ndim, (tuple(range(1, values.ndim)),))
    found = []
    for over in axes:
        codes, scale = _scaled(values, over)
        found.append((float(np.square(codes * scale - values).sum()), codes, scale))
    _, codes, scale = min(found, key=lambda each: each[0])
    return codes, scale


def _scaled(values: np.ndarray, over: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` as codes of -127 to 127 and a scale for all that lie along the axes `over`."""
    scale = np.maximum(np.abs(values).max(over, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale


def _serialized(model: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
