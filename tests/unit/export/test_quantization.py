"""Graphs in less than float32: what is reduced, what is not, and that numbers come out as they should."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper

from nsfse_export import quantization
from nsfse_export.quantization import emulate_half, reduce_graph
from nsfse_runtime.inference.onnx_session import Session

RANDOM = np.random.default_rng(0)
DIM = 32
ROWS = RANDOM.normal(size=(3, 5, DIM)).astype(np.float32)
WEIGHTS = {
    name: (RANDOM.normal(size=(DIM, DIM)) / np.sqrt(DIM)).astype(np.float32) for name in ("into", "back", "last")
}
BIAS = RANDOM.normal(size=DIM).astype(np.float32)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def graph_of(nodes, constants):
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 5, DIM]) for name in ("x", "y")]
    made = helper.make_graph(nodes, "block", ends[:1], ends[1:], values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()


def block():
    """A layer of a transformer: norm, attention by one matrix, residual sum, product, softmax, product."""
    nodes = [
        node("LayerNormalization", "x one bias", "normed"),
        node("MatMul", "normed into", "inner"),
        node("Add", "inner bias", "biased"),
        node("Attention", "biased biased biased", "attended", q_num_heads=2, kv_num_heads=2),
        node("Add", "x attended", "summed"),
        node("MatMul", "summed back", "again"),
        node("Softmax", "again", "shares"),
        node("MatMul", "shares last", "y"),
    ]
    return graph_of(nodes, {"one": np.ones(DIM, np.float32), "bias": BIAS, **WEIGHTS})


def product():
    return graph_of([node("MatMul", "x into", "y")], {"into": WEIGHTS["into"]})


def convolved():
    """Mostly a kernel, and a matrix after it."""
    kernel = RANDOM.normal(size=(64, 5, 9)) * np.geomspace(0.01, 1, 64)[:, None, None]
    wide = {"kernel": kernel.astype(np.float32), "wide": WEIGHTS["into"][:24]}
    return graph_of([node("Conv", "x kernel", "found"), node("MatMul", "found wide", "y")], wide)


def types_of(data):
    """Return node name → the type of what it makes."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True)
    values = (*model.graph.value_info, *model.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return {made.name: kinds[made.output[0]] for made in model.graph.node if made.name}


def cosine(a, b):
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


@pytest.fixture
def small_is_enough(monkeypatch):
    monkeypatch.setattr(quantization, "MIN_DENSE_WEIGHTS", 1)


@pytest.mark.parametrize(("kind", "half"), list(quantization.HALF_TYPES.items()))
def test_products_are_half_and_norms_softmax_and_sums_of_both_kinds_are_not(kind, half):
    data = reduce_graph("image", block(), kind)
    types = types_of(data)
    assert {name for name, made in types.items() if made == half} == {"inner", "biased", "attended", "again", "y"}
    assert {types[name] for name in ("normed", "summed", "shares")} == {TensorProto.FLOAT}
    model = onnx.load_from_string(data)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {name for name, made in stored.items() if made == TensorProto.FLOAT} == {"one", "bias"}  # the norm's
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 2
    attention = next(made for made in model.graph.node if made.op_type == "Attention")
    assert "softmax_precision" not in {attribute.name for attribute in attention.attribute}  # TensorRT refuses it


@pytest.mark.parametrize(("kind", "least", "most"), [("fp16", 0.99999, 0.99999999), ("bf16", 0.999, 0.999999)])
def test_a_half_graph_says_nearly_what_float32_says(kind, least, most):
    whole = Session(block())(x=ROWS)[0].astype(np.float64)
    found = Session(emulate_half(reduce_graph("text", block(), kind)))(x=ROWS)[0].astype(np.float64)
    assert found.shape == whole.shape and least < cosine(found, whole) < most


def test_bfloat16_is_emulated_to_the_last_bit():
    def rounded(values):
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)

    found = Session(emulate_half(reduce_graph("image", product(), "bf16")))(x=ROWS)[0]
    np.testing.assert_array_equal(found, rounded(rounded(ROWS) @ rounded(WEIGHTS["into"])))
    assert np.abs(found - ROWS @ WEIGHTS["into"]).max() > 1e-3


def test_int8_weights_have_seven_bits_and_the_graph_no_operators_of_its_own(small_is_enough):
    data = reduce_graph("query", product(), "int8")
    model = onnx.load_from_string(data)
    (weights,) = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert np.abs(numpy_helper.to_array(weights)).max() == 64
    assert [opset.domain for opset in model.opset_import] == [""]
    found = Session(data)(x=ROWS)[0]
    assert 0.999 < cosine(found, ROWS @ WEIGHTS["into"]) < 0.999999


def test_int8_keeps_other_weights_in_eight_bits_and_computes_in_float32(monkeypatch):
    monkeypatch.setattr(quantization, "MIN_STORED_WEIGHTS", 1)
    monkeypatch.setattr(quantization, "MIN_TENSOR_WEIGHTS", 1000)
    whole = convolved()
    data = reduce_graph("image", whole, "int8")
    model = onnx.load_from_string(data)
    kept = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kept == {"wide": TensorProto.FLOAT, "kernel.int8": TensorProto.INT8, "kernel.scale": TensorProto.FLOAT}
    assert len(whole) - len(data) > 2 * 2880
    one, other = (Session(each)(x=ROWS)[0] for each in (whole, data))
    assert 0.9999 < cosine(one, other) < 1 - 1e-9  # one scale for all channels would lose the faint ones


def test_int8_stores_kernels_beside_matrices(small_is_enough, monkeypatch):
    monkeypatch.setattr(quantization, "MIN_TENSOR_WEIGHTS", 1000)
    kernel = RANDOM.normal(size=(DIM, 5, 9)).astype(np.float32)
    wide = {"kernel": kernel, "into": WEIGHTS["into"][:24]}
    whole = graph_of([node("Conv", "x kernel", "found"), node("MatMul", "found into", "y")], wide)
    monkeypatch.setattr(quantization, "_is_dense", lambda _: True)
    data = reduce_graph("query", whole, "int8")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(data).graph.initializer}
    assert kinds["kernel.int8"] == TensorProto.INT8 and "kernel" not in kinds
    assert 0.999 < cosine(*(Session(each)(x=ROWS)[0] for each in (whole, data))) < 1


def test_the_same_graph_becomes_the_same_bytes(small_is_enough):
    for kind in ("int8", "fp16", "bf16"):
        assert reduce_graph("image", block(), kind) == reduce_graph("image", block(), kind)


def test_what_int8_leaves_alone(small_is_enough, monkeypatch):
    assert reduce_graph("pair", product(), "int8") is None  # no weights, and steps where products cross a boundary
    assert reduce_graph("query", product(), "fp16") is None
    assert reduce_graph("image", convolved(), "int8") is None  # few weights
    monkeypatch.setattr(quantization, "MIN_DENSE_WEIGHTS", DIM * DIM + 1)
    assert reduce_graph("query", product(), "int8") is None


def test_a_table_of_words_is_kept_in_bytes_and_read_by_rows(small_is_enough):
    table = RANDOM.normal(size=(40, DIM)).astype(np.float32)
    ids = np.array([[3, 0, 39, 3, 7]])
    nodes = [
        node("Gather", "table ids", "looked"),
        node("Add", "x looked", "summed"),
        node("MatMul", "summed into", "y"),
    ]
    whole = graph_of(nodes, {"table": table, "ids": ids, "into": WEIGHTS["into"]})
    small = reduce_graph("text", whole, "int8")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(small).graph.initializer}
    assert kinds["table.codes"] == TensorProto.INT8 and "table" not in kinds
    found, exact = (Session(data)(x=ROWS)[0] for data in (small, whole))
    assert 0.9995 < cosine(found, exact) < 1
    # One that is read by columns stays whole.
    nodes = [
        node("Gather", "table ids", "looked", axis=1),
        node("Transpose", "looked", "turned"),
        node("Add", "x turned", "summed"),
        node("MatMul", "summed into", "y"),
    ]
    turned = {"table": np.ascontiguousarray(table.T), "ids": ids[0], "into": WEIGHTS["into"]}
    whole = graph_of(nodes, turned)
    assert "table" in {t.name for t in onnx.load_from_string(reduce_graph("text", whole, "int8")).graph.initializer}
