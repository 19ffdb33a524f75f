"""Graphs as callables: lazily opened, whole in their bytes, batched by padding and cut to each text's own length."""

import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nsfse_runtime.errors import IntegrityError, MissingExtraError, TextError, UsageError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.hardware import cpu_threads
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import ON_CPU, ExecutionDevice
from nsfse_runtime.inference.manifest import TOKENIZER, Manifest, write_manifest
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.onnx_session import Session, session_options
from nsfse_runtime.inference.open import load_scorer
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.types import QueryFeatures, TargetFeatures
from tests.galleries import save_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT, BOOL, BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8
WORDS = {"[PAD]": 0, "[UNK]": 1, "make": 2, "it": 3, "red": 4, "longer": 5}
TABLE = np.random.default_rng(1).normal(size=(len(WORDS), 3)).astype(np.float32)


def model(nodes: list, inputs: dict, outputs: dict, **constants: np.ndarray) -> bytes:
    def values(described: dict) -> list:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in described.items()]

    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def node(kind: str, inputs: str, output: str, **attributes: object) -> object:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def image_graph() -> bytes:
    """Vectors are mean colours, regions the mean colours of each line of pixels."""
    nodes = [
        node("Cast", "pixels", "floats", to=FLOAT),
        node("ReduceMean", "floats across", "regions", keepdims=0),
        node("ReduceMean", "regions down", "vectors", keepdims=0),
    ]
    outputs = {"vectors": (FLOAT, ["B", 3]), "regions": (FLOAT, ["B", 6, 3])}
    return model(nodes, {"pixels": (BYTE, ["B", 6, 8, 3])}, outputs, across=np.array([2]), down=np.array([1]))


def text_graph() -> bytes:
    nodes = [
        node("Gather", "table ids", "words"),
        node("Cast", "mask", "valid", to=FLOAT),
        node("Unsqueeze", "valid last", "column"),
        node("Mul", "words column", "masked"),
        node("ReduceSum", "masked one", "sentence", keepdims=0),
    ]
    inputs = {"ids": (INT, ["B", "L"]), "mask": (BOOL, ["B", "L"])}
    outputs = {"words": (FLOAT, ["B", "L", 3]), "sentence": (FLOAT, ["B", 3])}
    return model(nodes, inputs, outputs, table=TABLE, last=np.array([2]), one=np.array([1]))


def query_graph() -> bytes:
    nodes = [
        node("Add", "vectors sentence", "query"),
        node("Identity", "words", "infused"),
        node("Unsqueeze", "vectors one", "keep"),
        node("Concat", "keep words", "probes", axis=1),
        node("Cast", "mask", "valid", to=FLOAT),
        node("ReduceSum", "valid one", "count", keepdims=1),
        node("Div", "valid count", "word_weights"),
        node("Div", "count count", "first"),
        node("Concat", "first valid", "probe_weights", axis=1),
    ]
    inputs = {
        "vectors": (FLOAT, ["B", 3]),
        "regions": (FLOAT, ["B", 6, 3]),
        "words": (FLOAT, ["B", "L", 3]),
        "sentence": (FLOAT, ["B", 3]),
        "mask": (BOOL, ["B", "L"]),
    }
    outputs = {
        "query": (FLOAT, ["B", 3]),
        "infused": (FLOAT, ["B", "L", 3]),
        "probes": (FLOAT, ["B", "P", 3]),
        "word_weights": (FLOAT, ["B", "L"]),
        "probe_weights": (FLOAT, ["B", "P"]),
    }
    return model(nodes, inputs, outputs, one=np.array([1]))


def pair_graph() -> bytes:
    nodes = [
        node("MatMul", "vectors query", "score"),
        node("Transpose", "infused", "turned", perm=[1, 0]),
        node("MatMul", "regions turned", "correspondences"),
        node("ReduceMax", "correspondences one", "word_scores", keepdims=0),
    ]
    inputs = {
        "query": (FLOAT, [3]),
        "infused": (FLOAT, ["L", 3]),
        "probes": (FLOAT, ["P", 3]),
        "word_weights": (FLOAT, ["L"]),
        "probe_weights": (FLOAT, ["P"]),
        "vectors": (FLOAT, ["K", 3]),
        "regions": (FLOAT, ["K", 6, 3]),
    }
    outputs = {"score": (FLOAT, ["K"]), "word_scores": (FLOAT, ["K", "L"])}
    return model(nodes, inputs, outputs, one=np.array([1]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    for name, graph in (("image", image_graph), ("text", text_graph), ("query", query_graph), ("pair", pair_graph)):
        (folder / f"{name}.onnx").write_bytes(graph())
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / TOKENIZER).write_text(tokenizer.to_str())
    manifest = Manifest(
        name="tiny",
        created_with="test",
        image_size=(6, 8),
        dim=3,
        regions=6,
        max_words=8,
        boundary={"t_c": 0.2, "t_v": 0.1},
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def references(count: int) -> TargetFeatures:
    random = np.random.default_rng(2)
    return TargetFeatures(
        random.normal(size=(count, 3)).astype(np.float32), random.normal(size=(count, 6, 3)).astype(np.float32)
    )


def test_a_session_does_not_keep_the_graphs_bytes():
    data = model([node("Identity", "x", "y")], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})
    before = sys.getrefcount(data)
    session = Session(data)
    assert sys.getrefcount(data) == before
    np.testing.assert_array_equal(session(x=np.ones(1, np.float32))[0], [1])


def test_images_are_encoded(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), np.uint8)
    features = OnnxScorer(bundle).encode_images(pixels)
    np.testing.assert_allclose(features.vectors, pixels.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(features.regions, pixels.mean(2), rtol=1e-4)


def test_a_batch_is_cut_to_each_texts_own_words(bundle: Bundle) -> None:
    scorer, given, texts = OnnxScorer(bundle), references(3), ["red", "make it longer", "make it"]
    queries = scorer.compose(given, texts)
    assert [query.tokens for query in queries] == [("red",), ("make", "it", "longer"), ("make", "it")]
    for at, (query, text) in enumerate(zip(queries, texts, strict=True)):
        length = len(text.split())
        assert query.words.shape == (length, 3) and query.probes.shape == (length + 1, 3)
        assert query.word_weights.shape == (length,) and query.probe_weights.shape == (length + 1,)
        assert query.word_weights.sum() == pytest.approx(1)
        ids = [WORDS.get(word, 1) for word in text.split()]
        np.testing.assert_allclose(query.vector, given.vectors[at] + TABLE[ids].sum(0), atol=1e-5)
        np.testing.assert_allclose(query.words, TABLE[ids], atol=1e-6)
        np.testing.assert_allclose(query.probes[0], given.vectors[at], atol=1e-6)
        alone = scorer.compose(given.take([at]), [text])[0]
        np.testing.assert_allclose(alone.vector, query.vector, atol=1e-6)
    np.testing.assert_allclose(scorer.sentence(["red"])[0], TABLE[4], atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16])
def test_pairs_are_scored_with_the_bundles_boundary(bundle: Bundle, count: int) -> None:
    scorer, targets = OnnxScorer(bundle), references(count)
    query: QueryFeatures = scorer.compose(references(1), ["make it red"])[0]
    pair = scorer.score_pairs(query, targets)
    assert pair.score.shape == (count,) and pair.word_scores.shape == (count, 3) and pair.boundary == 0.2
    np.testing.assert_allclose(pair.score, targets.vectors @ query.vector, atol=1e-5)
    np.testing.assert_allclose(pair.word_scores, (targets.regions @ query.words.T).max(1).reshape(count, 3), atol=1e-5)


def test_a_query_by_gallery_id_never_opens_the_image_graph(bundle: Bundle, tmp_path: Path) -> None:
    names = save_images(tmp_path / "photos", 12)
    with Gallery.open(tmp_path / "g", first := OnnxScorer(bundle), create=True) as gallery:
        gallery.sync(tmp_path / "photos")
        assert gallery.bundle_path == bundle.path and gallery.fingerprint == bundle.fingerprint
        assert first.opened == {"image"}
        scorer = OnnxScorer(bundle)
        result = Retriever(scorer, gallery).query(names[0], "make it red", k=3)
        assert scorer.opened == {"text", "query", "pair"} and len(result.hits) == 3
        assert [word.word for word in result.hits[0].evidence] == ["make", "it", "red"]
        for text in ("", "zebra lion", "x" * 100_000):
            with pytest.raises(TextError):
                Retriever(scorer, gallery).query(names[0], text)


def test_weights_outside_the_graph_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime, given bytes, would take them from a file in the current folder."""
    whole = onnx.load_from_string(text_graph())
    onnx.save(whole, tmp_path / "text.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IntegrityError, match="not a whole ONNX graph"):
        Session((tmp_path / "text.onnx").read_bytes())


@pytest.mark.parametrize("data", [b"", b"no graph", text_graph()[:-40]])
def test_what_is_no_graph_is_one_line(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"mine is not a whole ONNX graph .*export the bundle again") as caught:
        Session(data, origin="mine")
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_there_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no NoSuchProvider here, only .*CPUExecutionProvider"):
        Session(text_graph(), ExecutionDevice("NoSuchProvider"))
    assert Session(text_graph(), threads=1).outputs == ("words", "sentence")
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "nsfse\[cpu\]"'):
        Session(text_graph())


def test_threads_are_as_many_as_may_be_used_and_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session_options(None).intra_op_num_threads == cpu_threads() and session_options(3).intra_op_num_threads == 3
    assert session_options(None).get_session_config_entry("session.intra_op.allow_spinning") == "0"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert 1 <= cpu_threads() <= (os.cpu_count() or 1)


def test_bfloat16_is_refused_on_a_cpu_in_one_line(bundle: Bundle) -> None:
    half = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, precision="bf16", graphs={"image": "bf16"}))
    with pytest.raises(UsageError, match=r"is in bfloat16.*on GPUs alone.*--precision int8 or fp32") as refusal:
        load_scorer(half, ON_CPU)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match="bfloat16"):
        OnnxScorer(half, ExecutionDevice("CPUExecutionProvider"))
    assert OnnxScorer(half, ExecutionDevice("CUDAExecutionProvider")).bundle is half


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys, nsfse_runtime; print([m for m in ('numpy', 'PIL', 'onnxruntime', 'msgspec') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
