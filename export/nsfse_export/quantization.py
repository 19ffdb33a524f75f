"""Float32 graphs in int8, for CPUs, or in a half type, for GPUs. Inputs and outputs stay float32.

int8 means one of two things. Where most weights of a graph are matrices, they are multiplied in 8 bits, which is
faster. Elsewhere weights are stored in 8 bits and computed with in float32: a quarter of the bytes, the same speed.

What is sensitive to small differences stays float32: norms, LayerNorm, softmax and temperatures. So does the whole
pair graph, which has no weights and whose boundaries are steps. A softmax inside an Attention operator is the
kernel's affair: TensorRT refuses a graph that sets its precision.
"""

import logging
import tempfile
from collections.abc import Callable, Set
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nsfse_runtime.inference.manifest import Precision

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
GRAPHS = {"int8": ("image", "text", "query"), "fp16": ("image", "text"), "bf16": ("image", "text")}
"""The graphs that gain. On a GPU the query graph costs nothing beside the encoders."""

DENSE_OPS, HALF_OPS = ("MatMul", "Gemm"), ("MatMul", "Gemm", "Conv")
FOLLOWING_OPS = {
    *("Add", "Attention", "Clip", "Concat", "Expand", "Flatten", "Gelu", "MaxPool", "Mul", "Relu", "Reshape"),
    *("Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators that take the half type when all their inputs have it; residual sums of a transformer do not."""

_MATRIX = 2
"""Dimensions of a matrix; a kernel has more."""
MIN_DENSE_WEIGHTS = 1 << 20  # weights of a graph's matrices under which products in int8 gain nothing
MIN_STORED_WEIGHTS, MIN_TENSOR_WEIGHTS = (
    1 << 18,
    1 << 12,
)  # weights of a graph, and of one tensor, worth storing in 8 bits


def reduce_graph(name: str, data: bytes, precision: Precision) -> bytes | None:
    """Return the graph `name` in `precision`; None where it stays float32."""
    if name not in GRAPHS.get(precision, ()):
        return None
    model = onnx.load_from_string(data)
    if precision in HALF_TYPES:
        return _serialize(_to_half(model, HALF_TYPES[precision]))
    if _is_dense(model):
        return _serialize(_quantize_matrices(model))
    large = _large(model)
    return _serialize(_store_int8(model, large)) if sum(map(_weights, large)) >= MIN_STORED_WEIGHTS else None


def emulate_half(data: bytes) -> bytes:
    """Return a graph in a half type with each operator in float32 between casts.

    A CPU without the type can run it, and it rounds where a GPU does: products are summed in float32, results rounded.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True)
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    half = {name: kind for name, kind in kinds.items() if kind in HALF_TYPES.values()}
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
    return _serialize(model)


def _to_half(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Put matrix products, convolutions and what follows them into the type `kind`, with casts at the borders."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    floats = _floats(model)
    halves = _computed_in_half(model, floats, constants.keys())
    nodes: list[onnx.NodeProto] = []
    cast = _caster(nodes)
    copies: dict[str, onnx.TensorProto] = {}

    def in_half(name: str) -> str:
        if name in constants:
            copies.setdefault(name, _converted(constants[name], kind))
            return copies[name].name
        return name if name in halves else cast(name, kind)

    for node in list(graph.node):
        if node.output[0] in halves:
            node.input[:] = [in_half(name) if name in floats else name for name in node.input]
        else:
            node.input[:] = [cast(name, TensorProto.FLOAT) if name in halves else name for name in node.input]
        nodes.append(node)
    for output in graph.output:  # an output keeps its name and its type
        if output.name in halves:
            _rename(nodes, output.name, f"{output.name}.half")
            nodes.append(helper.make_node("Cast", [f"{output.name}.half"], [output.name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(copies.values())
    _drop_unused(graph)
    return model


def _computed_in_half(model: onnx.ModelProto, floats: Set[str], constants: Set[str]) -> set[str]:
    """Return the names of what is computed in the half type."""
    halves: set[str] = set()
    for node in model.graph.node:
        inputs = floats & set(node.input)
        follows = node.op_type in FOLLOWING_OPS and inputs & halves and inputs <= halves | constants
        if (node.op_type in HALF_OPS and inputs) or follows:
            halves.update(node.output)
    return halves


def _floats(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of all float32 tensors."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    types |= {value.name: value.type.tensor_type.elem_type for value in inferred.input}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return frozenset(name for name, kind in types.items() if kind == TensorProto.FLOAT)


def _caster(nodes: list[onnx.NodeProto], prefix: str = "") -> Callable[[str, int], str]:
    """Return a function that names a tensor in another type; its first call for one adds the cast to `nodes`."""
    casts: dict[tuple[str, int], str] = {}

    def cast(name: str, kind: int) -> str:
        if (name, kind) not in casts:
            casts[name, kind] = f"{name}.{prefix}{TensorProto.DataType.Name(kind).lower()}"
            nodes.append(helper.make_node("Cast", [name], [casts[name, kind]], to=kind))
        return casts[name, kind]

    return cast


def _converted(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(np.ascontiguousarray(values), f"{tensor.name}.half")


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _is_dense(model: onnx.ModelProto) -> bool:
    """Return whether most weights of a graph are matrices, and enough of them for int8 to be faster.

    Convolutions stay float32. Quantized with calibration images they were 0.9 to 1.2 times as fast on a CPU without
    VNNI, at a cosine of 0.99 and less.
    """
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    dense = remaining = 0
    for node in model.graph.node:
        size = sum(sizes.get(name, 0) for name in node.input)
        dense += size if node.op_type in DENSE_OPS else 0
        remaining += size if node.op_type in ("Conv", "GRU") else 0
    return dense >= MIN_DENSE_WEIGHTS and dense >= remaining


def _quantize_matrices(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize matrices to 7 bits, with a scale for each column, and activations dynamically to 8 bits.

    With 8 bits for both, CPUs without VNNI saturate sums of two products. 7 bits give the same result on every CPU.
    Large kernels are stored in int8.
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
                op_types_to_quantize=list(DENSE_OPS),
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            quantized = onnx.load(path)
    finally:
        logging.root.setLevel(level)
    used = {node.domain for node in quantized.graph.node}
    opsets = [opset for opset in quantized.opset_import if opset.domain in used]
    del quantized.opset_import[:], quantized.metadata_props[:], quantized.graph.value_info[:]
    quantized.opset_import.extend(opsets)
    _shrink_tables(quantized.graph)
    return _store_int8(quantized, [tensor for tensor in _large(quantized) if len(tensor.dims) > _MATRIX])


def _shrink_tables(graph: onnx.GraphProto) -> None:
    """Store large lookup tables, such as a CLIP's word embeddings, in int8 with a scale for each row."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for tensor in list(graph.initializer):
        table, lookups = tensor.name, readers.get(tensor.name, [])
        large = (
            tensor.data_type == TensorProto.FLOAT
            and len(tensor.dims) == 2
            and np.prod(tensor.dims) >= MIN_DENSE_WEIGHTS
        )
        if not large or not lookups or not all(_looks_up(node, table) for node in lookups):
            continue
        codes_and_scales = _to_int8(numpy_helper.to_array(tensor), (1,))
        graph.initializer.remove(tensor)
        graph.initializer.extend(map(numpy_helper.from_array, codes_and_scales, (f"{table}.codes", f"{table}.scales")))
        for node in lookups:
            position = list(graph.node).index(node)
            ids, out = node.input[1], node.output[0]
            graph.node.remove(node)
            for replacement in reversed(
                [
                    helper.make_node("Gather", [f"{table}.codes", ids], [f"{out}.codes"]),
                    helper.make_node("Gather", [f"{table}.scales", ids], [f"{out}.scales"]),
                    helper.make_node("Cast", [f"{out}.codes"], [f"{out}.whole"], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [f"{out}.whole", f"{out}.scales"], [out]),
                ]
            ):
                graph.node.insert(position, replacement)


def _looks_up(node: onnx.NodeProto, table: str) -> bool:
    """Return whether a node takes rows of `table` and does nothing else with it."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == table and axis == 0 and node.input[1] != table


def _weights(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims))


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the weights that are worth storing in 8 bits: matrices, kernels, embeddings."""
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and _weights(tensor) >= MIN_TENSOR_WEIGHTS
    ]


def _store_int8(model: onnx.ModelProto, tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    """Store these weights in int8. A session folds the Cast and Mul to float32 once, when it starts."""
    graph, nodes = model.graph, []
    for tensor in tensors:
        name, codes, scale = tensor.name, f"{tensor.name}.int8", f"{tensor.name}.scale"
        codes_and_scale = _best_int8(numpy_helper.to_array(tensor))
        graph.initializer.remove(tensor)
        graph.initializer.extend(map(numpy_helper.from_array, codes_and_scale, (codes, scale)))
        nodes.append(helper.make_node("Cast", [codes], [f"{codes}.float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{codes}.float", scale], [name]))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _best_int8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` as codes of -127 to 127 and scales, along the axes with the least squared error.

    A kernel has a scale for each output channel, a recurrent unit for each row of each direction, a matrix for each
    row or column.
    """
    axes = {2: ((0,), (1,)), 3: ((1, 2), (2,))}.get(values.ndim, (tuple(range(1, values.ndim)),))
    candidates = []
    for reduced_axes in axes:
        codes, scale = _to_int8(values, reduced_axes)
        candidates.append((float(np.square(codes * scale - values).sum()), codes, scale))
    _, codes, scale = min(candidates, key=lambda candidate: candidate[0])
    return codes, scale


def _to_int8(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` as codes of -127 to 127, with one scale for all values along `axes`."""
    scale = np.maximum(np.abs(values).max(axes, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale


def _serialize(model: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
