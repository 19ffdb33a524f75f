"""What is parsed or written by hand holds for any input: a value, or one of the project's own errors."""

import json

import msgspec
import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsfse.cli.arguments import conditions
from nsfse_runtime.errors import NsfseError, UsageError
from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.gallery.filters import select
from nsfse_runtime.inference.manifest import Manifest, read_manifest, write_manifest
from nsfse_runtime.inference.onnx_graphs import product_graph
from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.parsing import convert_fields
from nsfse_runtime.server.schemas import QueryForm

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("repeatable")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*QueryForm.__struct_fields__, "nonsense", ""])


@settings(max_examples=30)
@given(dim=st.integers(1, 300), count=st.integers(1, 300), zero=st.integers(0, 255), seed=st.integers(0, 2**32 - 1))
def test_onnx_reads_the_graph_that_is_written_by_hand(dim, count, zero, seed):
    onnx = pytest.importorskip("onnx")
    codes = np.random.default_rng(seed).integers(-128, 128, (dim, count), dtype=np.int8)
    model = onnx.load_from_string(product_graph(codes, zero))
    onnx.checker.check_model(model)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(stored["codes"], codes)
    assert int(stored["zero"]) == zero
    (shape,) = (value.type.tensor_type.shape for value in model.graph.output)
    assert [size.dim_value for size in shape.dim] == [1, count]


@given(data=st.binary(max_size=200) | JSON.map(lambda tree: json.dumps(tree).encode()))
def test_a_manifest_of_any_bytes_is_read_or_refused(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(NsfseError):
        read_manifest(tmp_path)


@given(name=st.text(max_size=30), size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)), words=st.integers(1, 99))
def test_a_manifest_is_read_as_it_was_written(tmp_path, name, size, words):
    for file in ("image.onnx", "text.onnx", "query.onnx", "pair.onnx", "tokenizer.json", "README.md"):
        (tmp_path / file).write_bytes(file.encode())
    made = Manifest(
        name=name, created_with="0", image_size=size, dim=4, regions=2, max_words=words, boundary={"t_c": 0.5}
    )
    written = write_manifest(tmp_path, made)
    assert read_manifest(tmp_path) == written
    assert msgspec.structs.replace(written, files={}) == made


@given(
    pairs=st.lists(st.text(max_size=20) | st.from_regex(r"\A[a-z]+[<>!]?=?[^\n]*\Z") | JSON.map(json.dumps), max_size=4)
)
def test_conditions_of_any_text_are_read_or_refused(pairs):
    try:
        columns = conditions(pairs)
    except UsageError:
        return
    try:
        select(columns, 0, lambda name: Column(name, []))
    except UsageError as error:  # a comparison with neither a number nor a date
        assert "\n" not in str(error)


@given(pairs=st.lists(st.tuples(FIELDS, st.text(max_size=30) | JSON.map(json.dumps)), max_size=6))
def test_a_form_of_any_fields_is_read_or_refused(pairs):
    try:
        form = convert_fields(pairs, QueryForm)
    except HTTPError as error:
        assert error.status == 400
        return
    assert 1 <= form.k <= 100 and 0 <= form.balance <= 1
