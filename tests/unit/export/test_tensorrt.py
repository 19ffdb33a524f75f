"""Engines for this machine's GPU over a fake builder, and their refusals; on a GPU the real thing."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from nsfse_export import ExportOptions, engine_comparison, tensorrt
from nsfse_export.engine_builder import min_opt_max_shapes
from nsfse_export.tensorrt import build_engines, bundle_for_engines, engine_target
from nsfse_runtime.errors import IntegrityError, MissingExtraError, NotFoundError, NsfseError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.tensorrt.cache import EngineCache
from nsfse_runtime.inference.tensorrt_library import TensorRT
from nsfse_runtime.types import TargetFeatures

onnxruntime = pytest.importorskip("onnxruntime")
BUNDLE = Path(__file__).parents[2] / "golden" / "bundle"
GRAPHS = ("image", "text", "query", "pair")


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, min, opt, max):
        self.shapes[name] = (min, opt, max)


class Builder:
    """A tensorrt.Builder that reads a graph's inputs and outputs with ONNX Runtime and makes its bytes the engine."""

    made, flags, refuse, timings = (), None, "", ()

    def __init__(self, logger):
        pass

    def create_network(self, flags):
        Builder.flags = flags
        return SimpleNamespace(num_layers=0)

    def create_builder_config(self):
        config = SimpleNamespace(flags={"TF32"}, profiles=[])
        config.clear_flag = config.flags.remove
        config.create_timing_cache = lambda data: SimpleNamespace(serialize=lambda: data + b"+")
        config.set_timing_cache = lambda cache, ignore_mismatch: setattr(config, "cache", cache)
        config.get_timing_cache = lambda: config.cache
        config.add_optimization_profile = config.profiles.append
        return config

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        assert "TF32" not in config.flags
        Builder.made = (*Builder.made, (network.graph, [profile.shapes for profile in config.profiles]))
        return None if self.refuse == "build" else b"engine of " + network.graph


class Parser:
    num_errors = 1

    def __init__(self, network, logger):
        self._network = network

    def parse(self, graph, path):
        assert not Path(path).parent.exists()
        session = onnxruntime.InferenceSession(graph)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self._network.graph = graph[-64:]
        self._network.num_inputs, self._network.num_outputs = len(inputs), len(outputs)
        self._network.get_input = lambda at: tensor(inputs[at].name, inputs[at].shape)
        self._network.get_output = lambda at: SimpleNamespace(name=outputs[at].name)
        return Builder.refuse != "parse"

    def get_error(self, at):
        return SimpleNamespace(desc=lambda: "node 3\nis of\n no kind")


def tensor(name, dimensions):
    sizes = [size if isinstance(size, int) else -1 for size in dimensions]
    return SimpleNamespace(name=name, shape=sizes, get_dimension_name=lambda at: dimensions[at])


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """TensorRT and a GPU that are not here, up to the engines themselves: those are played by ONNX Runtime."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Builder, "made", ())
    monkeypatch.setattr(Builder, "refuse", "")

    class Module:
        __version__ = "11.4.0"
        Builder, OnnxParser = Builder, Parser
        ILogger = type("ILogger", (), {"ERROR": 1})
        BuilderFlag = SimpleNamespace(TF32="TF32")
        LayerType = SimpleNamespace()
        NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    monkeypatch.setattr(tensorrt, "load_library", lambda name: TensorRT(name or "tensorrt", Module))
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: Gpu("NVIDIA H100", "9.0"))
    monkeypatch.setattr(engine_comparison, "EngineScorer", lambda bundle, library: OnnxScorer(bundle, threads=1))
    return Module


def states(report):
    return {graph: engine.state for graph, engine in report.engines["9.0"].items()}


def test_engines_are_built_once_and_again_when_changed(trt, monkeypatch):
    first = build_engines(BUNDLE)
    assert states(first) == dict.fromkeys(GRAPHS, "built") and first.gpu == "NVIDIA H100 (9.0)"
    assert min(first.least_cosine.values()) > 0.9999 and Builder.flags == 2 and len(Builder.made) == 4
    assert not any(BUNDLE in file.parents for file in first.folder.iterdir())
    monkeypatch.setattr(engine_comparison, "compare", lambda *_: {"vectors": 1.0})  # it takes its time
    cache = EngineCache.open()
    sidecars = sorted(cache.folder.glob("*.json"))
    assert len(sidecars) == 4 and states(build_engines(BUNDLE)) == dict.fromkeys(GRAPHS, "kept")
    (cache.folder / f"{sidecars[0].stem}.engine").write_bytes(b"other code")
    assert sorted(states(build_engines(BUNDLE)).values()) == ["built", "kept", "kept", "kept"]
    trt.__version__ = "11.5.0"
    assert states(build_engines(BUNDLE)) == dict.fromkeys(GRAPHS, "built")
    assert len(sorted(cache.folder.glob("*.json"))) == 8


def test_profiles_have_every_dynamic_input(trt, monkeypatch):
    monkeypatch.setattr(engine_comparison, "compare", lambda *_: {"vectors": 1.0})
    build_engines(BUNDLE)
    manifest = Bundle.open(BUNDLE).manifest
    height, width = manifest.image_size
    image, pair = Builder.made[0][1], Builder.made[3][1]
    assert [profile["pixels"][2] for profile in image] == [(1, height, width, 3), (64, height, width, 3)]
    longest, kept = manifest.max_words, pair[0]["probes"][0][0] - 1
    assert pair[0]["probes"] == tuple((words + kept, manifest.dim) for words in (1, 6, longest)) and kept > 0
    assert pair[0]["regions"][2] == (512, manifest.regions, manifest.dim) and "query" not in pair[0]


def test_a_dimension_may_be_a_name_plus_a_number():
    sizes = {"words": (1, 6, 20)}
    assert min_opt_max_shapes(tensor("probes", ["words + 16", 4]), sizes) == [(17, 4), (22, 4), (36, 4)]


def test_engines_that_differ_are_removed(trt, monkeypatch):
    class Wrong(OnnxScorer):
        def __init__(self, bundle, library):
            super().__init__(bundle)

        def encode_images(self, pixels):
            right = super().encode_images(pixels)
            return TargetFeatures(right.vectors + np.float32(0.1), right.regions)

    monkeypatch.setattr(engine_comparison, "EngineScorer", Wrong)
    with pytest.raises(IntegrityError, match=r"do not agree with ONNX Runtime .*vectors 0\..*they were removed"):
        build_engines(BUNDLE)
    assert list(EngineCache.open().folder.glob("*.engine")) == []


@pytest.mark.parametrize("refuse", ["parse", "build"])
def test_a_refused_graph_is_one_line(trt, monkeypatch, refuse):
    monkeypatch.setattr(Builder, "refuse", refuse)
    with pytest.raises(IntegrityError, match=r"TensorRT 11\.4\.0 does not take .*image\.onnx") as caught:
        build_engines(BUNDLE)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 5
    assert ("node 3 is of no kind" in str(caught.value)) == (refuse == "parse")
    assert list(EngineCache.open().folder.glob("*.engine")) == []


def test_a_run_needs_a_bundle_folder_and_a_bundle_none(trt, tmp_path):
    assert bundle_for_engines(BUNDLE, None) == BUNDLE
    with pytest.raises(UsageError, match="is a bundle already"):
        bundle_for_engines(BUNDLE, tmp_path / "out")
    with pytest.raises(UsageError, match="not a bundle; if it is a run, name the folder of its bundle with -o"):
        bundle_for_engines(tmp_path, None)
    with pytest.raises(UsageError, match="export its run in another"):
        bundle_for_engines(BUNDLE, None, ExportOptions(precision="fp16"))
    with pytest.raises(NotFoundError, match="there is nothing at"):
        bundle_for_engines(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UsageError, match="int8 is for CPUs"):
        bundle_for_engines(tmp_path, tmp_path / "out", ExportOptions(precision="int8"))


def test_unsupported_precisions_are_refused_before_building(trt, monkeypatch):
    """ONNX Runtime's CPU has no bfloat16, and TensorRT none of the matrices of int8."""
    for precision, reason in (("int8", "int8 is for CPUs"), ("bf16", "CUDAExecutionProvider")):
        if precision == "bf16" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            continue
        bundle = Bundle.open(BUNDLE)
        bundle.manifest = msgspec.structs.replace(bundle.manifest, precision=precision)
        monkeypatch.setattr(tensorrt.Bundle, "open", lambda path, bundle=bundle: bundle)
        with pytest.raises(UsageError, match=reason):
            build_engines(BUNDLE)
    assert Builder.made == ()


def test_what_is_missing_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: None)
    for name, wanted in ((None, "neither TensorRT nor"), ("rtx", "tensorrt_rtx is not"), ("tensorrt", "tensorrt is")):
        with pytest.raises(MissingExtraError, match=rf"^{wanted}.* installed; run: pip install ") as caught:
            engine_target(name, ["8.9"])
        assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_building_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from nsfse_export import build_engines, bundle_for_engines, engine_target"
    )
    path = [entry for entry in sys.path if entry]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], check=True)


@pytest.mark.gpu
def test_engines_on_a_gpu_agree_with_onnx_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pytest.importorskip("torch")
    try:
        target = engine_target()
    except NsfseError as error:
        pytest.skip(str(error))
    from nsfse.config import ModelConfig
    from tests.random_run import write_random_run  # a bundle of now, whose image graph TensorRT takes

    run = write_random_run(tmp_path / "run", ModelConfig(image_size=(32, 48), dim=16))
    bundle = bundle_for_engines(run, tmp_path / "bundle")
    report = build_engines(bundle, target)
    assert {engine.state for graphs in report.engines.values() for engine in graphs.values()} == {"built"}
