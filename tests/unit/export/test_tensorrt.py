"""`nsfse export --trt` over a fake builder, its refusals, and a real builder if there is one."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from nsfse_export import ExportOptions, tensorrt
from nsfse_export.tensorrt import build_engine, build_engines, bundle_for_engines, min_opt_max_shapes
from nsfse_runtime.errors import IntegrityError, MissingExtraError, NsfseError, UsageError
from nsfse_runtime.extras import installed
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.tensorrt.cache import EngineCache, profiles_of
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
        return SimpleNamespace()

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
    module = SimpleNamespace(
        __version__="11.4.0",
        Builder=Builder,
        OnnxParser=Parser,
        Logger=type("Logger", (), {"__init__": lambda self, level: None, "ERROR": 1, "INTERNAL_ERROR": 0}),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )
    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda: module)
    monkeypatch.setattr(tensorrt, "gpu", lambda: Gpu("NVIDIA H100", "9.0"))
    monkeypatch.setattr(tensorrt, "EngineScorer", lambda bundle: OnnxScorer(bundle, threads=1))
    return module


def test_engines_are_built_once_and_again_when_changed(trt, monkeypatch):
    first = build_engines(BUNDLE)
    assert first.engines == dict.fromkeys(GRAPHS, "built") and first.gpu == "NVIDIA H100 (9.0)"
    assert min(first.least_cosine.values()) > 0.9999 and Builder.flags == 2 and len(Builder.made) == 4
    assert not any(BUNDLE in file.parents for file in first.folder.iterdir())
    monkeypatch.setattr(tensorrt, "compare", lambda *_: {"vectors": 1.0})  # it takes its time
    cache = EngineCache.open()
    sidecars = sorted(cache.folder.glob("*.json"))
    assert len(sidecars) == 4 and build_engines(BUNDLE).engines == dict.fromkeys(GRAPHS, "kept")
    (cache.folder / f"{sidecars[0].stem}.engine").write_bytes(b"other code")
    assert sorted(build_engines(BUNDLE).engines.values()) == ["built", "kept", "kept", "kept"]
    trt.__version__ = "11.5.0"
    assert build_engines(BUNDLE).engines == dict.fromkeys(GRAPHS, "built")
    assert len(sorted(cache.folder.glob("*.json"))) == 8


def test_profiles_have_every_dynamic_input(trt, monkeypatch):
    monkeypatch.setattr(tensorrt, "compare", lambda *_: {"vectors": 1.0})
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
        def encode_images(self, pixels):
            right = super().encode_images(pixels)
            return TargetFeatures(right.vectors + np.float32(0.1), right.regions)

    monkeypatch.setattr(tensorrt, "EngineScorer", Wrong)
    with pytest.raises(IntegrityError, match=r"do not agree with ONNX Runtime .*vectors 0\..*they were removed"):
        build_engines(BUNDLE)
    assert list(EngineCache.open().folder.glob("*.engine")) == []


@pytest.mark.parametrize("refuse", ["parse", "build"])
def test_a_refused_graph_is_one_line(trt, monkeypatch, refuse):
    monkeypatch.setattr(Builder, "refuse", refuse)
    with pytest.raises(IntegrityError, match=r"TensorRT does not take .*image\.onnx") as caught:
        build_engines(BUNDLE)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 5
    assert ("node 3 is of no kind" in str(caught.value)) == (refuse == "parse")
    assert list(EngineCache.open().folder.glob("*.engine")) == []


def test_a_run_needs_a_bundle_folder_and_a_bundle_none(trt, tmp_path):
    assert bundle_for_engines(BUNDLE, None) == BUNDLE
    with pytest.raises(UsageError, match="is a bundle already"):
        bundle_for_engines(BUNDLE, tmp_path / "out")
    with pytest.raises(UsageError, match="name its folder with -o"):
        bundle_for_engines(tmp_path, None)
    with pytest.raises(UsageError, match="export its run in another"):
        bundle_for_engines(BUNDLE, None, ExportOptions(precision="fp16"))
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


@pytest.mark.skipif(installed("tensorrt"), reason="TensorRT is here")
def test_without_tensorrt_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for given in ((BUNDLE, None), (tmp_path / "run", tmp_path / "out")):
        with pytest.raises(
            MissingExtraError, match=r'tensorrt is not installed; run: pip install "nsfse\[trt\]"'
        ) as caught:
            bundle_for_engines(*given)
        assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_building_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from nsfse_export import build_engines, bundle_for_engines"
    )
    path = [entry for entry in sys.path if entry]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], check=True)


def real_builder():
    """Return TensorRT, or TensorRT for RTX, which builds without a GPU; None where there is neither."""
    for name in ("tensorrt", "tensorrt_rtx"):
        if installed(name):
            try:
                return __import__(name)
            except ImportError:
                continue
    return None


@pytest.mark.gpu
@pytest.mark.skipif(real_builder() is None, reason="neither TensorRT nor TensorRT for RTX is installed")
@pytest.mark.parametrize("graph", GRAPHS[1:])  # the golden bundle's image graph turns its uint8 before it casts
def test_a_real_builder_takes_the_graphs(graph):
    bundle = Bundle.open(BUNDLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT for RTX has no timing cache
        data, profiles = bundle.read(f"{graph}.onnx"), profiles_of(graph, bundle.manifest)
        stored, _ = build_engine(real_builder(), data, profiles, b"", graph)
    names = [output.name for output in onnxruntime.InferenceSession(data).get_outputs()]
    assert len(stored.plan) > 1000 and list(stored.outputs) == names


@pytest.mark.gpu
def test_engines_on_a_gpu_agree_with_onnx_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pytest.importorskip("torch")
    try:
        bundle_for_engines(BUNDLE, None)
    except NsfseError as error:
        pytest.skip(str(error))
    from nsfse.config import ModelConfig
    from tests.random_run import write_random_run  # a bundle of now, whose image graph TensorRT takes

    run = write_random_run(tmp_path / "run", ModelConfig(image_size=(32, 48), dim=16))
    bundle = bundle_for_engines(run, tmp_path / "bundle")
    assert set(build_engines(bundle).engines.values()) == {"built"}
