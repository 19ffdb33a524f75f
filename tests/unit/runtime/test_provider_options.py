"""Options of ONNX Runtime's TensorRT providers: their documented names, shapes from the graphs, a private cache."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import CPU, CUDA, TENSORRT, TENSORRT_RTX, ExecutionDevice
from nsfse_runtime.inference.onnx_graphs import product_of_two, search_graph
from nsfse_runtime.inference.onnx_reader import input_shapes
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.open import load_scorer
from nsfse_runtime.inference.provider_options import OPTIONS, ProviderScorer, private_folder, shape_texts
from nsfse_runtime.inference.tensorrt.cache import profiles_of

onnxruntime = pytest.importorskip("onnxruntime")
BUNDLE = Bundle.open(Path(__file__).parents[2] / "golden" / "bundle")
GRAPHS = ("image", "text", "query", "pair")
# The shapes of the golden bundle: images of 32×48, d = 16, 7 regions, up to 16 words.
IMAGE = {"min": "pixels:1x32x48x3", "opt": "pixels:32x32x48x3", "max": "pixels:64x32x48x3"}
PAIR = {
    "min": "infused:1x16,probes:8x16,word_weights:1,probe_weights:8,vectors:1x16,regions:1x7x16",
    "opt": "infused:6x16,probes:13x16,word_weights:6,probe_weights:13,vectors:100x16,regions:100x7x16",
    "max": "infused:16x16,probes:23x16,word_weights:16,probe_weights:23,vectors:512x16,regions:512x7x16",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return tmp_path / "nsfse" / "engines"


@pytest.mark.parametrize("graph", [*(BUNDLE.read(f"{name}.onnx") for name in GRAPHS), search_graph(), product_of_two()])
def test_the_inputs_of_a_graph_are_those_that_onnx_runtime_reads(graph):
    session = onnxruntime.InferenceSession(graph, providers=[CPU])
    assert input_shapes(graph) == {one.name: tuple(one.shape) for one in session.get_inputs()}


@pytest.mark.parametrize(("graph", "texts"), [("image", IMAGE), ("pair", PAIR)])
def test_one_profile_spans_the_shapes_that_engines_are_built_for(graph, texts):
    inputs = input_shapes(BUNDLE.read(f"{graph}.onnx"))
    assert shape_texts(inputs, profiles_of(graph, BUNDLE.manifest)) == texts


def test_options_have_their_documented_names():
    assert OPTIONS[TENSORRT](IMAGE, "folder") == {
        "trt_profile_min_shapes": "pixels:1x32x48x3",
        "trt_profile_opt_shapes": "pixels:32x32x48x3",
        "trt_profile_max_shapes": "pixels:64x32x48x3",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "folder",
    }
    assert OPTIONS[TENSORRT_RTX](IMAGE, "folder") == {
        "nv_profile_min_shapes": "pixels:1x32x48x3",
        "nv_profile_opt_shapes": "pixels:32x32x48x3",
        "nv_profile_max_shapes": "pixels:64x32x48x3",
        "nv_runtime_cache_path": "folder",
    }


@pytest.fixture
def plugin(monkeypatch):
    """A plug-in in ONNX Runtime's place: the CPU runs the graphs, and `used` has what the plug-in would be given."""
    used = []

    class Options(onnxruntime.SessionOptions):
        def add_provider_for_devices(self, devices, options):
            used.append((devices, options))

    gpus = [SimpleNamespace(ep_name=TENSORRT_RTX, index=index) for index in range(2)]
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: gpus)
    return used


def test_a_plugin_gets_the_options_of_each_graph_and_the_users_win(plugin, cache):
    device = ExecutionDevice(TENSORRT_RTX, "plug.so", {"enable_cuda_graph": "1", "nv_profile_max_shapes": "mine"})
    scorer = load_scorer(BUNDLE, device)
    images = np.zeros((2, 32, 48, 3), np.uint8)
    found, expected = scorer.encode_images(images), OnnxScorer(BUNDLE).encode_images(images)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)
    [query] = scorer.compose(found.take([0]), ["red"])
    scorer.score_pairs(query, found)
    assert all([gpu.index for gpu in gpus] == [0] for gpus, _ in plugin)
    folders = [options.pop("nv_runtime_cache_path") for _, options in plugin]
    image, text, query, pair = (options for _, options in plugin)
    assert image == {
        "nv_profile_min_shapes": IMAGE["min"],
        "nv_profile_opt_shapes": IMAGE["opt"],
        "nv_profile_max_shapes": "mine",
        "enable_cuda_graph": "1",
    }
    assert pair["nv_profile_opt_shapes"] == PAIR["opt"]
    assert text["nv_profile_min_shapes"] == "ids:1x1,mask:1x1" and "words:1x1x16" in query["nv_profile_min_shapes"]
    assert len(set(folders)) == 4 and all(Path(folder).parent == cache for folder in folders)
    if hasattr(os, "getuid"):
        assert all(Path(folder).stat().st_mode & 0o777 == 0o700 for folder in folders)


def test_the_provider_of_onnx_runtime_gets_its_options_and_cuda_its_own(monkeypatch, cache):
    seen, real = [], onnxruntime.InferenceSession

    def start(model, options, providers, enable_fallback):
        seen.append(providers)
        session = real(model, options, providers=[CPU])
        monkeypatch.setattr(session, "get_providers", lambda: [TENSORRT, CUDA, CPU])
        return session

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    load_scorer(BUNDLE, ExecutionDevice(TENSORRT, options={"device_id": "1"})).encode_images(
        np.zeros((1, 32, 48, 3), np.uint8)
    )
    [providers] = seen
    folder = providers[0][1].pop("trt_engine_cache_path")
    assert Path(folder).parent == cache
    assert providers[0] == (
        TENSORRT,
        {
            "trt_profile_min_shapes": IMAGE["min"],
            "trt_profile_opt_shapes": IMAGE["opt"],
            "trt_profile_max_shapes": IMAGE["max"],
            "trt_engine_cache_enable": "True",
            "device_id": "1",
        },
    )
    assert providers[1][0] == CUDA and providers[1][1]["use_tf32"] == "0" and providers[2] == (CPU, {})


def test_a_folder_belongs_to_one_graph_its_shapes_and_options(monkeypatch, cache):
    def folder(graph="image", **options):
        scorer = ProviderScorer(BUNDLE, ExecutionDevice(TENSORRT_RTX, "plug.so", options))
        return scorer._options(graph, BUNDLE.read(f"{graph}.onnx"))["nv_runtime_cache_path"]

    assert folder() == folder()
    assert len({folder(), folder("text"), folder(enable_cuda_graph="1")}) == 3
    first = folder()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert folder() != first
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    # Weights alone differ, as after training again: the providers would not notice.
    entry, data = BUNDLE.manifest.files["image.onnx"], BUNDLE.read("image.onnx")
    monkeypatch.setitem(BUNDLE.manifest.files, "image.onnx", type(entry)("0" * 64, entry.size))
    monkeypatch.setattr(Bundle, "read", lambda bundle, name: data)
    assert folder() != first


def test_a_folder_that_others_can_enter_is_refused(cache):
    if not hasattr(os, "getuid"):
        pytest.skip("no modes of files here")
    private_folder({"a": "b"})
    cache.chmod(0o755)
    with pytest.raises(OutputError, match="chmod 700"):
        private_folder({"a": "b"})


def test_a_bundle_for_cpus_is_refused():
    bundle = SimpleNamespace(manifest=SimpleNamespace(precision="int8"), path="bundle")
    with pytest.raises(UsageError, match="int8 is for CPUs"):
        load_scorer(bundle, ExecutionDevice(TENSORRT))


def test_a_graph_that_does_not_start_is_one_line(plugin, monkeypatch):
    def fail(*model):
        raise Exception("[ONNXRuntimeError] : 11 : EP_FAIL : Failed to create\n engine")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(
        UsageError, match=r"does not take .*image\.onnx \(.*EP_FAIL : Failed to create engine\)"
    ) as caught:
        load_scorer(BUNDLE, ExecutionDevice(TENSORRT_RTX, "plug.so")).encode_images(np.zeros((1, 32, 48, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_a_shape_that_does_not_run_is_one_line(plugin):
    scorer = load_scorer(BUNDLE, ExecutionDevice(TENSORRT_RTX, "plug.so"))
    with pytest.raises(UsageError, match=r"does not run pixels \[1, 8, 8, 3\] \(.*--device cuda") as caught:
        scorer.encode_images(np.zeros((1, 8, 8, 3), np.uint8))
    assert "\n" not in str(caught.value)
