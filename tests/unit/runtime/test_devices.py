"""Execution devices: the one that is named runs, or one line says why not; a gallery on its scorer's device."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nsfse_runtime.errors import MissingExtraError, NotFoundError, UsageError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.inference import devices
from nsfse_runtime.inference.devices import (
    CPU,
    CUDA,
    TENSORRT,
    TENSORRT_RTX,
    ExecutionDevice,
    create_session,
    resolve_device,
)
from nsfse_runtime.inference.onnx_graphs import search_graph
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.onnx_session import Session
from nsfse_runtime.inference.open import open_model
from nsfse_runtime.inference.region_codec import pack, unpack
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.search.on_device import DeviceGallery
from nsfse_runtime.search.two_stage import exact_search
from tests.galleries import ColourScorer, save_images

onnxruntime = pytest.importorskip("onnxruntime")
BUNDLE = Path(__file__).parents[2] / "golden" / "bundle"
no_cuda = pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="ONNX Runtime has CUDA here")


@no_cuda
def test_without_cuda_auto_says_so_once_and_cuda_is_refused():
    assert resolve_device() == resolve_device("cpu") == ExecutionDevice()
    place = resolve_device("auto")
    assert place.provider == CPU and "\n" not in place.note
    assert "no CUDAExecutionProvider here" in place.note and place.note.endswith("running on the CPU")
    with pytest.raises(UsageError, match=r"no CUDAExecutionProvider here, only .*nsfse\[gpu\]"):
        resolve_device("cuda")


class Runtime(SimpleNamespace):
    """An onnxruntime that was built with CUDA and, like the real one, takes the CPU without a word where it fails."""

    def __init__(self, works: bool) -> None:
        super().__init__(
            __spec__="found", __file__="nowhere/__init__.py", works=works, seen=[], loaded=[], SessionOptions=object
        )

    def get_available_providers(self):
        return [TENSORRT, CUDA, CPU]

    def set_default_logger_severity(self, level):
        assert level in (4, 2)

    def preload_dlls(self):
        print("libraries of CUDA are missing")  # as the real one does, on stdout

    def InferenceSession(self, model, options, providers, **more):
        self.seen.append((providers, more))
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        return SimpleNamespace(get_providers=lambda: names if self.works else [CPU])


@pytest.mark.parametrize("device", [None, "auto"])
def test_a_provider_that_silently_took_the_cpu_is_noticed(monkeypatch, capsys, device):
    monkeypatch.setitem(sys.modules, "onnxruntime", fake := Runtime(works=False))
    place = resolve_device(device)
    assert place.provider == CPU and "CUDAExecutionProvider does not start here" in place.note
    with pytest.raises(UsageError, match=r"does not start here .*nsfse doctor"):
        resolve_device("cuda")
    with pytest.raises(UsageError, match="TensorrtExecutionProvider does not start here"):
        resolve_device(provider=TENSORRT)
    assert capsys.readouterr().out == ""
    assert all(more == {"enable_fallback": 0} for _, more in fake.seen)


def test_a_provider_that_works_is_taken_with_its_options_and_the_cpu_last(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", fake := Runtime(works=True))
    assert (
        resolve_device() == resolve_device("auto") == resolve_device("cuda") == ExecutionDevice(CUDA)
        and ExecutionDevice(CUDA).memory == "cuda"
    )
    assert resolve_device(provider=TENSORRT).memory == "cpu"
    assert [name for name, _ in fake.seen[-1][0]] == [TENSORRT, CUDA, CPU]
    assert dict(fake.seen[-1][0])[CUDA]["use_tf32"] == "0"


def test_options_are_the_providers_own_and_win(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", fake := Runtime(works=True))
    place = resolve_device(provider=CUDA, options={"use_tf32": "1", "device_id": "2"})
    assert place == ExecutionDevice(CUDA, options={"use_tf32": "1", "device_id": "2"}) and hash(place)
    given = {"use_tf32": "1", "device_id": "2", "arena_extend_strategy": "kSameAsRequested"}
    assert fake.seen[-1][0] == [(CUDA, given), (CPU, {})]
    resolve_device(provider=TENSORRT, options={"device_id": "2"})
    assert fake.seen[-1][0][0] == (TENSORRT, {"device_id": "2"}) and "device_id" not in fake.seen[-1][0][1][1]
    for device in (None, "cpu"):
        with pytest.raises(UsageError, match=r"--provider-option device_id goes with --provider NAME"):
            resolve_device(device, options={"device_id": "2"})


def test_float32_is_float32_where_tensorrt_has_no_option_for_it(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.setitem(sys.modules, "onnxruntime", Runtime(works=True))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    resolve_device(provider=CUDA)
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    resolve_device(provider=TENSORRT)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    resolve_device(provider=TENSORRT)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"


@pytest.mark.parametrize("code", ["", "raise ImportError('libnvinfer.so.10: cannot open')"])
def test_a_package_that_brings_a_providers_libraries_is_imported_first(monkeypatch, tmp_path, code):
    (tmp_path / "libraries_of_a_test.py").write_text(f"import sys\nsys.seen_by_a_test = True\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "seen_by_a_test", False, raising=False)
    monkeypatch.delitem(sys.modules, "libraries_of_a_test", raising=False)
    monkeypatch.setitem(devices.PROVIDER_PACKAGES, TENSORRT, "libraries_of_a_test")
    monkeypatch.setitem(sys.modules, "onnxruntime", Runtime(works=True))
    resolve_device(provider=CUDA)
    assert not sys.seen_by_a_test
    resolve_device(provider=TENSORRT)
    assert sys.seen_by_a_test
    sys.modules.pop("libraries_of_a_test", None)


def test_a_reason_is_without_places_in_the_source_of_onnx_runtime():
    """The messages are those of onnxruntime-gpu 1.31.1 and onnxruntime 1.32.0, their paths cut."""
    told = (
        "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:1220 "
        "std::shared_ptr<onnxruntime::IExecutionProviderFactory> "
        "onnxruntime::python::CreateExecutionProviderFactoryInstance(const onnxruntime::SessionOptions&, "
        "const std::string&, const onnxruntime::ProviderOptionsMap&) Invalid TensorRT EP option: bogus\n"
    )
    assert devices.reason_of(RuntimeError(told)) == "Invalid TensorRT EP option: bogus"
    told = (
        "[ONNXRuntimeError] : 1 : FAIL : Failed to load library a/libonnxruntime_providers_nv_tensorrt_rtx.so with "
        "error: libcuda.so.1: cannot open shared object file: No such file or directory"
    )
    reason = "libcuda.so.1: cannot open shared object file: No such file or directory"
    assert devices.reason_of(RuntimeError(told)) == reason
    assert devices.reason_of(RuntimeError("[ONNXRuntimeError] : 2 : ARG : a (b) c")).endswith("a (b) c")


def test_other_providers_are_named_one_way(tmp_path):
    with pytest.raises(UsageError, match="one of them"):
        resolve_device("cpu", "AnyProvider")
    with pytest.raises(UsageError, match="no AnyProvider here"):
        resolve_device(provider="AnyProvider")
    with pytest.raises(NotFoundError, match=r"no provider library or package .*NAME=FILE or NAME=PACKAGE"):
        resolve_device(provider=f"AnyProvider={tmp_path}/none.so")
    (tmp_path / "some.so").write_bytes(b"no library")
    with pytest.raises(UsageError, match=r"some\.so does not load as a provider \(.*; nsfse doctor shows") as caught:
        resolve_device(provider=f"AnyProvider={tmp_path}/some.so")
    assert "\n" not in str(caught.value)
    assert resolve_device(provider=CPU) == ExecutionDevice(CPU)


def test_a_plugin_is_registered_once_and_its_devices_are_used(monkeypatch, tmp_path):
    known, used = [], []

    class Options:
        def add_provider_for_devices(self, devices, options):
            used.append((devices, options))

    fake = SimpleNamespace(
        SessionOptions=Options,
        get_available_providers=lambda: [CPU],
        register_execution_provider_library=lambda name, path: known.extend(
            SimpleNamespace(ep_name=name, path=path) for _ in range(2)
        ),
        get_ep_devices=lambda: known,
        InferenceSession=lambda model, options: "a session",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    (library := tmp_path / "plug.so").touch()
    place = resolve_device(provider=f"PlugIn={library}")
    assert place == ExecutionDevice("PlugIn", str(library)) and create_session(b"", place) == "a session"
    assert [device.path for device in known] == [str(library)] * 2  # registered once, a machine of two GPUs
    assert used == [(known[:1], {})] * 2
    resolve_device(provider=f"PlugIn={library}", options={"cache": "folder"})
    assert used[2:] == [(known[:1], {"cache": "folder"})]


def test_a_plugin_is_found_in_its_package(monkeypatch, tmp_path):
    (library := tmp_path / "plug.so").write_bytes(b"no library")
    (tmp_path / "plugin_of_a_test.py").write_text(f"def get_library_path():\n    return {str(library)!r}\n")
    (tmp_path / "broken_plugin_of_a_test.py").write_text("raise OSError('libtensorrt_rtx.so.1:\\n cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"plug\.so does not load as a provider"):
        resolve_device(provider="PlugIn=plugin_of_a_test")
    for package, why in (("broken_plugin_of_a_test", "libtensorrt_rtx.so.1: cannot open"), ("json", "no attribute")):
        with pytest.raises(UsageError, match=rf"package {package} gives no provider library \(.*{why}") as caught:
            resolve_device(provider=f"PlugIn={package}")
        assert "\n" not in str(caught.value)
    with pytest.raises(NotFoundError, match="no provider library or package no_such_package"):
        resolve_device(provider="PlugIn=no_such_package")
    with pytest.raises(
        UsageError, match=rf"pip install onnxruntime-ep-nv-tensorrt-rtx, then --provider {TENSORRT_RTX}="
    ):
        resolve_device(provider=TENSORRT_RTX)


def test_a_missing_library_is_named(tmp_path):
    assert devices.missing_library(tmp_path / "none.so") == ""
    (tmp_path / "text.so").write_text("no library")
    assert "text.so" in devices.missing_library(tmp_path / "text.so")


def test_tensorrt_that_is_not_there_is_one_line_with_its_install(monkeypatch):
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'neither .* pip install "nsfse\[trt-rtx\]" for a PC .*"nsfse\[trt\]"'):
        resolve_device("tensorrt")


@pytest.mark.parametrize("regions", [False, True])
def test_the_search_graph_is_a_valid_onnx_model(regions):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(search_graph(regions=regions))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node][:3] == ["MatMul", "Where", "TopK"]


def test_the_search_graph_finds_what_exact_search_finds():
    random = np.random.default_rng(0)
    vectors = random.integers(-2, 3, (300, 4)).astype(np.float32)  # many ties
    codes, factors = pack(random.normal(size=(300, 3, 4)).astype(np.float32))
    session = Session(search_graph(regions=True), ExecutionDevice())
    for k, share in ((1, 0.5), (50, 0.5), (7, 0.03)):
        query, mask = random.integers(-2, 3, 4).astype(np.float32), random.random(300) < share
        k = min(k, int(mask.sum()))
        given = {"vectors": vectors, "query": query, "mask": mask, "k": np.array([k])}
        given |= {"codes": codes, "factors": factors}
        found = session.run_with_io_binding(given, on_device=("found_regions",))
        rows, scores = exact_search(vectors, query, k, mask)
        np.testing.assert_array_equal(found["rows"], rows)
        np.testing.assert_array_equal(found["scores"], scores)
        np.testing.assert_array_equal(found["found_vectors"], vectors[rows])
        np.testing.assert_array_equal(found["found_regions"].numpy(), unpack(codes[rows], factors[rows]))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    names = save_images(folder / "photos", 24)
    (folder / "table.csv").write_text("id,kind\n" + "".join(f"{n},{at % 2}\n" for at, n in enumerate(names)))
    model = open_model(BUNDLE, "cpu")
    with Gallery.open(folder / "g", model, create=True) as gallery:
        gallery.sync(folder / "photos", metadata=folder / "table.csv")
    return folder, names, model


@pytest.mark.parametrize("most", [0, 2**30], ids=["regions in the file", "regions on the device"])
def test_a_gallery_on_the_device_answers_as_the_one_in_its_file(shop, monkeypatch, most):
    """The CPU stands in for the GPU: the same graphs, bindings and order, in its memory."""
    folder, names, model = shop
    monkeypatch.setattr(DeviceGallery.__init__, "__defaults__", (most,))
    with Gallery.open(folder / "g", model) as gallery:
        scorer = OnnxScorer(model.bundle, threads=1)
        here, there = Retriever(scorer, gallery, resident=True), Retriever(scorer, gallery)
        assert there._device_cache is None and here._device_cache is not None
        for more in ({}, {"rerank": 5, "k": 3}, {"rerank": 0}, {"where": {"kind": "1"}}, {"where": {"kind": "7"}}):
            ours, theirs = (one.query(names[3], "make it red", **more) for one in (here, there))
            assert [hit.id for hit in ours.hits] == [hit.id for hit in theirs.hits]
            np.testing.assert_allclose([h.score for h in ours.hits], [h.score for h in theirs.hits], atol=1e-5)
            for a, b in zip(ours.hits, theirs.hits, strict=True):
                assert a.is_match == b.is_match and [w.matched for w in a.evidence] == [w.matched for w in b.evidence]
        kept = here._device_cache._cached
        assert ("codes" in kept._inputs) == (most > 0)
        here.query(names[0], "make it red")
        assert here._device_cache._cached is kept


def test_a_new_generation_takes_the_place_of_the_old_one(shop, tmp_path):
    _, _, model = shop
    save_images(tmp_path / "photos", 3)
    with Gallery.open(tmp_path / "g", model, create=True) as gallery:
        gallery.sync(tmp_path / "photos")
        retriever = Retriever(model, gallery, resident=True)
        assert len(retriever.query("item0000", "make it red").hits) == 2
        save_images(tmp_path / "photos", 5)
        gallery.sync(tmp_path / "photos")
        assert len(retriever.query("item0000", "make it red").hits) == 4


def test_what_is_no_bundle_keeps_no_gallery_on_a_device(tmp_path):
    save_images(tmp_path / "photos", 2)
    with Gallery.open(tmp_path / "g", scorer := ColourScorer(), create=True) as gallery:
        assert Retriever(scorer, gallery)._device_cache is None
        with pytest.raises(UsageError, match="leave resident out"):
            Retriever(scorer, gallery, resident=True)


@pytest.mark.gpu
@pytest.mark.skipif(bool(resolve_device("auto").note), reason=f"CUDA in ONNX Runtime: {resolve_device('auto').note}")
def test_cuda_answers_as_the_cpu(shop):
    folder, names, model = shop
    with Gallery.open(folder / "g", model) as gallery:
        gpu, cpu = Retriever(OnnxScorer(model.bundle, ExecutionDevice(CUDA)), gallery), Retriever(model, gallery)
        for name in names[:10]:
            ours, theirs = gpu.query(name, "make it red"), cpu.query(name, "make it red")
            assert [hit.id for hit in ours.hits] == [hit.id for hit in theirs.hits]
            np.testing.assert_allclose([h.score for h in ours.hits], [h.score for h in theirs.hits], atol=1e-3)
