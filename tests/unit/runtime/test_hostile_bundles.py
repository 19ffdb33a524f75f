"""A bundle of a stranger: refused in one line, and soon, whatever it holds."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import IntegrityError, TextError
from nsfse_runtime.inference import onnx_session
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import MANIFEST, TOKENIZER, checksum_of, file_entry
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.onnx_session import Session
from nsfse_runtime.types import TargetFeatures
from tests.serving import BUNDLE

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

GRAPHS = ("image", "text", "query", "pair")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def seal(folder, **changes):
    """Write the manifest that fits the folder's files, with `changes`."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw.pop("sha256")
    for name in raw["files"]:
        entry = file_entry(folder / name)
        raw["files"][name] = {"sha256": entry.sha256, "size": entry.size}
    raw |= changes
    (folder / MANIFEST).write_text(json.dumps({**raw, "sha256": checksum_of(raw)}))
    return folder


def change_graph(folder, name, change):
    graph = onnx.load(folder / f"{name}.onnx")
    change(graph)
    (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())
    return seal(folder)


def use(folder):
    """Run all four graphs."""
    scorer = OnnxScorer(Bundle.open(folder), threads=1)
    features = scorer.encode_images(np.full((2, *scorer.image_size, 3), 7, np.uint8))
    (query, _) = scorer.compose(features, ["make it red", "make it red"])
    return scorer.score_pairs(query, features)


def test_the_bundle_itself_is_taken(folder):
    assert np.isfinite(use(seal(folder)).score).all()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices in a folder are of POSIX")
@pytest.mark.parametrize("name", [MANIFEST, TOKENIZER, "image.onnx"])
def test_only_regular_files_of_its_own_are_read(folder, name, tmp_path):
    path, elsewhere = folder / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(elsewhere)):
        make(path)
        with pytest.raises(IntegrityError, match=r"not a regular file|link out of the bundle"):
            Bundle.open(folder)
        path.unlink()
    elsewhere.rename(folder / "own")
    path.symlink_to("own")
    assert Bundle.open(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError):
        Bundle.open(folder)


@pytest.mark.parametrize("name", [MANIFEST, TOKENIZER])
def test_a_file_that_is_too_large_is_not_read(folder, name):
    os.truncate(folder / name, 70_000_000)
    with pytest.raises(IntegrityError, match="it is over"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"format_version":1,"x":' + '{"a":' * 100_000,
        '{"format_version":1,"x":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"format_version":1,"x":' + "9" * 5000 + "}",
        '{"format_version":' + "9" * 30 + "}",
        '{"format_version":1,"a":"\\ud800"}',
        '{"format_version":1e300}',
        "[]",
        "\0",
    ],
)
def test_a_manifest_that_is_none_is_one_line(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(Exception) as caught:
        Bundle.open(folder)
    assert caught.type.__name__ in ("IntegrityError", "VersionError") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"image_size": [side, 32]} for side in (0, -1, 10**6, 2**40)),
        *({"dim": dim} for dim in (0, -1, 10**12)),
        *({"max_words": words} for words in (0, -5, 10**15)),
        *({"regions": regions} for regions in (0, -1, 10**9)),
        {"format_version": 0},
    ],
)
def test_sizes_are_bounded(folder, changes):
    with pytest.raises(IntegrityError):
        Bundle.open(seal(folder, **changes))


def loop(model):
    body = [helper.make_node("Identity", ["c"], ["co"])]
    ends = [[helper.make_tensor_value_info(n, k, []) for n, k in one] for one in BODY_ENDS]
    graph = helper.make_graph(body, "body", *ends)
    model.graph.node.append(helper.make_node("Loop", ["n", "t"], [], body=graph))


BODY_ENDS = ([("i", TensorProto.INT64), ("c", TensorProto.BOOL)], [("co", TensorProto.BOOL)])


def loop_in_a_branch(model):
    inner = onnx.ModelProto()
    loop(inner)
    branch = helper.make_graph(list(inner.graph.node), "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"


def external_in_an_attribute(model):
    tensor = numpy_helper.from_array(np.zeros(2, np.float32))
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))


def custom_operator(model):
    model.graph.node.append(helper.make_node("Evil", ["ids"], ["more"], domain="evil"))


def own_function(model):
    model.functions.append(helper.make_function("own", "f", [], [], [], [helper.make_opsetid("", 18)]))


def another_name(model):
    model.graph.input[0].name = "other"


def another_type(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def another_shape(model):
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 17


def one_output_less(model):
    del model.graph.output[-1]


CHANGES = {
    "a Loop, which may never end": (loop, loop_in_a_branch),
    "weights are in another file": (external, external_in_an_attribute),
    "not of ONNX": (custom_operator, own_function),
    "another type or shape": (another_type, another_shape),
    "in the place of": (another_name, one_output_less),
}


@pytest.mark.parametrize(("reason", "change"), [(reason, change) for reason in CHANGES for change in CHANGES[reason]])
def test_what_no_graph_of_a_bundle_needs_is_refused(folder, reason, change):
    with pytest.raises(IntegrityError, match=rf"text\.onnx is no graph of a bundle .*{reason}"):
        use(change_graph(folder, "text", change))


@pytest.mark.parametrize("data", [b"", b"noise" * 99, bytes(4000), b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"])
def test_what_is_no_graph_is_refused(folder, data):
    (folder / "text.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match="whole ONNX graph"):
        use(seal(folder))


def test_onnx_runtimes_own_format_is_refused(folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "text.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(folder / "text.onnx"), options, providers=["CPUExecutionProvider"])
    (folder / "text.ort").replace(folder / "text.onnx")
    with pytest.raises(IntegrityError, match="ONNX Runtime's own format"):
        use(seal(folder))


def add_to_outputs(value):
    def change(model):
        for output in model.graph.output:
            for node in model.graph.node:
                node.output[:] = [f"{name}.before" if name == output.name else name for name in node.output]
                node.input[:] = [f"{name}.before" if name == output.name else name for name in node.input]
            model.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{output.name}.added"))
            both = [f"{output.name}.before", f"{output.name}.added"]
            model.graph.node.append(helper.make_node("Add", both, [output.name]))

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", GRAPHS)
def test_numbers_that_are_not_finite_are_an_error(folder, name, value):
    with pytest.raises(IntegrityError, match=rf"{name}\.onnx .*not finite"):
        use(change_graph(folder, name, add_to_outputs(value)))


def test_outputs_of_another_size_than_declared_are_an_error(folder):
    def widen(model):
        for node in model.graph.node:
            node.output[:] = ["narrow" if name == "sentence" else name for name in node.output]
            node.input[:] = ["narrow" if name == "sentence" else name for name in node.input]
        model.graph.node.append(helper.make_node("Concat", ["narrow", "narrow"], ["sentence"], axis=1))
        model.graph.output[1].type.tensor_type.shape.dim[1].dim_param = "any"

    with pytest.raises(IntegrityError, match=r"text\.onnx .*gives sentence in the shape \[2, 32\]"):
        use(change_graph(folder, "text", widen))


def test_ids_beyond_the_graphs_table_are_an_error(folder):
    words = json.loads((folder / TOKENIZER).read_text())
    words["model"]["vocab"]["red"] = 99_999
    (folder / TOKENIZER).write_text(json.dumps(words))
    with pytest.raises(IntegrityError, match=r"text\.onnx cannot be run"):
        use(seal(folder))


def test_a_first_run_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(onnx_session, "FIRST_RUN_SECONDS", 0.01)
    nodes = [helper.make_node("MatMul", [f"x{at}", "x0"], [f"x{at + 1}"]) for at in range(4000)]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [512, 512])] for name in ("x0", "x4000")]
    model = helper.make_model(helper.make_graph(nodes, "long", *ends), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    session = Session(model.SerializeToString(), threads=1)
    with pytest.raises(Exception, match="terminate"):
        session(x0=np.zeros((512, 512), np.float32))


def change_tokenizer(folder, **parts):
    tree = json.loads((folder / TOKENIZER).read_text()) | parts
    (folder / TOKENIZER).write_text(json.dumps(tree))
    return seal(folder)


def splitting_by(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Removed", "invert": True}


def test_a_panic_of_the_tokenizer_is_an_error_of_that_text(folder):
    change_tokenizer(folder, pre_tokenizer=splitting_by(r"(?:(?:x+x+)+y)|\p{L}+"))
    tokenizer = OnnxScorer(Bundle.open(folder)).tokenizer
    with pytest.raises(TextError, match="cannot read 'xxx"):
        tokenizer.encode(["x" * 60])
    assert tokenizer.encode(["red"])[0].shape == (1, 1)


def test_a_tokenizer_that_pads_or_cuts_does_neither(folder):
    before = OnnxScorer(Bundle.open(folder)).tokenizer.encode(["make it red"])[0]
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    cutting = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    change_tokenizer(folder, padding=padding, truncation=cutting)
    np.testing.assert_array_equal(OnnxScorer(Bundle.open(folder)).tokenizer.encode(["make it red"])[0], before)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "y" * 1000},
        {"type": "Prepend", "prepend": "x" * 100},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaa"}] * 4},
    ],
)
def test_a_normalizer_that_makes_a_text_much_longer_is_refused(folder, normalizer):
    change_tokenizer(folder, normalizer=normalizer)
    with pytest.raises(IntegrityError, match="much longer"):
        _ = OnnxScorer(Bundle.open(folder)).tokenizer


@pytest.mark.parametrize("data", [b"[" * 300_000, b"{}", b"\0"])
def test_what_is_no_tokenizer_is_one_line(folder, data):
    (folder / TOKENIZER).write_bytes(data)
    with pytest.raises(IntegrityError, match="not a tokenizer"):
        _ = OnnxScorer(Bundle.open(seal(folder))).tokenizer


def test_features_of_a_gallery_that_are_not_finite_fail_a_query(folder):
    scorer = OnnxScorer(Bundle.open(folder), threads=1)
    features = scorer.encode_images(np.zeros((1, *scorer.image_size, 3), np.uint8))
    spoilt = TargetFeatures(features.vectors, features.regions * np.nan)
    (query,) = scorer.compose(features, ["make it red"])
    with pytest.raises(IntegrityError, match=r"pair\.onnx"):
        scorer.score_pairs(query, spoilt)
