"""TensorRT engines without TensorRT: the cache and its seal, profiles, and a session over a fake engine and memory."""

import os
import stat
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from nsfse_runtime.errors import (
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    OutputError,
    UsageError,
    VersionError,
)
from nsfse_runtime.inference import cuda
from nsfse_runtime.inference.cuda import CudaMemory, Gpu, gpu
from nsfse_runtime.inference.manifest import FileEntry, Manifest
from nsfse_runtime.inference.tensorrt.cache import (
    PROFILES,
    EngineCache,
    EngineKey,
    StoredEngine,
    engine_key,
    profiles_of,
)
from nsfse_runtime.inference.tensorrt.engine import EngineSession
from nsfse_runtime.inference.tensorrt_library import TensorRT, available_libraries, load_library
from nsfse_runtime.output_files import cache_folder

H100 = Gpu("NVIDIA H100", "9.0")


def manifest(max_words: int = 20) -> Manifest:
    return Manifest(
        name="m",
        created_with="t",
        image_size=(6, 8),
        dim=3,
        regions=6,
        max_words=max_words,
        boundary={"t_c": 0.1},
        files={"pair.onnx": FileEntry("ab" * 32, 9)},
    )


def key(**changed: object) -> EngineKey:
    return msgspec.structs.replace(engine_key("pair", manifest(), library("tensorrt", "11.4.0"), H100), **changed)


def library(name: str, version: str) -> TensorRT:
    return TensorRT(name, SimpleNamespace(__version__=version))


def test_every_graph_has_profiles_whose_spans_rise():
    assert set(PROFILES) == {"image", "text", "query", "pair"}
    for graph in PROFILES:
        for longest in (1, 4, 77):
            for profile in profiles_of(graph, manifest(longest)):
                assert all(1 <= least <= usual <= most for least, usual, most in profile.values())
                assert profile.get("words", (1, 1, longest))[2] == longest
    batches = [profile["batch"] for profile in PROFILES["image"]]
    assert batches[0][0] == 1 and all(a[2] + 1 == b[0] for a, b in pairwise(batches))


def test_another_graph_library_gpu_precision_or_profile_is_another_engine():
    others = [
        key(graph="cd" * 32),
        key(version="10.13.0"),
        key(library="rtx"),
        key(gpu="NVIDIA A100"),
        key(capability="8.0"),
        key(precision="fp16"),
        key(profiles=profiles_of("text", manifest())),
    ]
    names = {one.name for one in [key(), *others]}
    assert len(names) == 1 + len(others) and key().name in names
    rtx = engine_key("pair", manifest(), library("rtx", "1.7.1"), H100)
    assert (rtx.gpu, rtx.capability) == ("", "9.0")  # its engines are for all GPUs of a capability


def test_an_engine_comes_back_as_it_was_stored_in_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("engines") == tmp_path / "cache" / "nsfse" / "engines"
    cache = EngineCache.open()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700 and cache.load(key()) is None
    cache.store(key(), StoredEngine(b"code", ("score", "word_scores")))
    cache.store_timings(key(), b"times")
    again = EngineCache.open()
    assert again.load(key()) == StoredEngine(b"code", ("score", "word_scores"))
    assert again.timings(key(precision="fp16")) == b"times" and again.timings(key(version="10.13")) == b""
    assert again.load(key(version="11.5.0")) is None
    assert stat.S_IMODE((cache.folder / "secret").stat().st_mode) == 0o600
    again.remove(key())
    assert again.load(key()) is None


def test_a_cache_that_cannot_be_written_is_read(tmp_path):
    cache = EngineCache.open(tmp_path / "engines")
    cache.store(key(), StoredEngine(b"code", ("score",)))
    cache.folder.chmod(0o500)
    tmp_path.chmod(0o500)
    try:
        assert EngineCache.open(cache.folder).load(key()) == StoredEngine(b"code", ("score",))
    finally:
        tmp_path.chmod(0o700)
        cache.folder.chmod(0o700)


def test_an_engine_edited_renamed_or_copied_from_another_user_is_not_opened(tmp_path):
    cache = EngineCache.open(tmp_path / "mine")
    cache.store(key(), StoredEngine(b"code", ("score",)))
    plan, sidecar = cache._files(key())
    text = sidecar.read_bytes()

    plan.write_bytes(b"c0de")
    with pytest.raises(IntegrityError, match=r"not as it was built here; .*nsfse export BUNDLE --trt"):
        cache.load(key())
    plan.write_bytes(b"code")
    assert cache.load(key()) is not None

    for broken in (
        b"",
        b"{",
        text.replace(b"score", b"other"),
        text.replace(b'"seal": "', b'"seal": "0'),
        text.replace(b'"seal": "', '"seal": "é'.encode()),
    ):
        sidecar.write_bytes(broken)
        with pytest.raises(IntegrityError, match="not as it was built"):
            cache.load(key())
    sidecar.write_bytes(text)

    other = key(version="10.13.0")
    for file, name in zip((plan, sidecar), cache._files(other), strict=True):
        name.write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError, match="not as it was built"):
        cache.load(other)

    theirs = EngineCache.open(tmp_path / "theirs")
    for file in (plan, sidecar):
        (theirs.folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError, match="not as it was built"):
        theirs.load(key())


def test_a_folder_that_others_can_enter_is_refused(tmp_path, monkeypatch):
    EngineCache.open(tmp_path / "open")
    os.chmod(tmp_path / "open", 0o755)
    with pytest.raises(OutputError, match="chmod 700"):
        EngineCache.open(tmp_path / "open")
    monkeypatch.setattr(os, "getuid", lambda: 4711, raising=False)
    with pytest.raises(OutputError, match="belongs to another user"):
        EngineCache.open(tmp_path / "open")
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with pytest.raises(OutputError, match="not a folder"):
        EngineCache.open(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        EngineCache.open(tmp_path / "file")


class HostMemory:
    """The device's memory, played by arrays at made-up addresses; copies wait for `wait`, as on a stream."""

    stream = 7

    def __init__(self) -> None:
        self.at, self._next, self._queue, self._rooms = {}, 1000, [], {}

    def buffer(self, name, size):
        address, there = self._rooms.get(name, (0, 0))
        if there < size:
            self._next += 1000
            address = self._next
            self._rooms[name] = (address, size)
        return address

    def upload(self, address, array):
        assert array.flags.c_contiguous
        self._queue.append(lambda: self.at.__setitem__(address, array.copy()))

    def download(self, array, address):
        self._queue.append(lambda: np.copyto(array, self.at[address]))

    def synchronize(self):
        while self._queue:
            self._queue.pop(0)()


class FakeContext:
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses = engine, {}, {}

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle == HostMemory.stream
        self.profile = profile_index
        return not self._engine.full

    def set_input_shape(self, name, shape):
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        batch = self._shapes["pixels"][0]
        return {"vectors": (batch, 2), "regions": (batch, 1, 2)}[name]

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        self._engine.ran.append((self.profile, self._shapes["pixels"]))
        memory, addresses = self._engine.memory, dict(self._addresses)

        def work():
            means = memory.at[addresses["pixels"]].astype(np.float32).mean((1, 2))
            memory.at[addresses["vectors"]] = means
            memory.at[addresses["regions"]] = means[:, None] + 1

        memory._queue.append(work)
        return not self._engine.broken


class FakeEngine:
    """Means of images [B, 2, 2, 2] uint8, in the two profiles of the image graph; outputs in another order."""

    num_io_tensors, num_optimization_profiles = 3, 2
    full = broken = False

    def __init__(self, memory):
        self.memory, self.ran = memory, []

    def create_execution_context(self):
        return FakeContext(self)

    def get_tensor_name(self, index):
        return ("pixels", "regions", "vectors")[index]

    def get_tensor_dtype(self, name):
        return "UINT8" if name == "pixels" else "FLOAT"

    def get_tensor_shape(self, name):
        return (-1, 2, 2, 2)

    def get_tensor_profile_shape(self, name, profile_index):
        return [(size, 2, 2, 2) for size in PROFILES["image"][profile_index]["batch"]]


def session(engine: FakeEngine) -> EngineSession:
    types = {"UINT8": np.uint8, "FLOAT": np.float32}
    return EngineSession(engine, engine.memory, ("vectors", "regions"), types.__getitem__, "image.onnx")


def test_an_engine_answers_in_the_graphs_order_by_the_profile_that_holds_the_batch():
    engine = FakeEngine(HostMemory())
    run, random = session(engine), np.random.default_rng(0)
    for batch, profile in ((1, 0), (64, 1), (3, 1), (1, 0)):
        pixels = random.integers(0, 256, (2, 2, 2, batch), np.uint8).T  # not contiguous
        vectors, regions = run(pixels=pixels, unread=np.zeros(3))
        np.testing.assert_array_equal(vectors, pixels.astype(np.float32).mean((1, 2)))
        np.testing.assert_array_equal(regions, vectors[:, None] + 1)
        assert engine.ran[-1] == (profile, (batch, 2, 2, 2))
    assert run.outputs == ("vectors", "regions")


@pytest.mark.parametrize("shape", [(65, 2, 2, 2), (0, 2, 2, 2), (1, 2, 3, 2), (1, 2, 2)])
def test_shapes_that_no_profile_holds_are_refused_before_the_engine_runs(shape):
    engine = FakeEngine(HostMemory())
    with pytest.raises(UsageError, match=r"image\.onnx is not built for pixels"):
        session(engine)(pixels=np.zeros(shape, np.uint8))
    assert engine.ran == []


def test_an_engine_that_does_not_fit_or_fails_is_one_line():
    engine = FakeEngine(HostMemory())
    engine.full = True
    with pytest.raises(UsageError, match="does not fit the GPU's memory"):
        session(engine)
    engine.full, engine.broken = False, True
    with pytest.raises(IntegrityError, match="failed; build it again"):
        session(engine)(pixels=np.zeros((1, 2, 2, 2), np.uint8))


def bindings(code: int) -> SimpleNamespace:
    """cuda.bindings.runtime: each call answers with its error and its value."""

    class Error(int):
        name = "cudaErrorNoDevice" if code else "cudaSuccess"

    calls, heap = [], iter(range(4096, 10**6, 4096))

    def call(name, value=None):
        def done(*given):
            calls.append((name, given))
            return (Error(code), *(() if value is None else (value() if callable(value) else value,)))

        return done

    properties = SimpleNamespace(name=b"NVIDIA H100\0\0", major=9, minor=0)
    return SimpleNamespace(
        calls=calls,
        cudaGetDeviceProperties=call("properties", properties),
        cudaSetDevice=call("set"),
        cudaStreamCreate=call("stream", 5),
        cudaMalloc=call("malloc", lambda: next(heap)),
        cudaFree=call("free"),
        cudaStreamSynchronize=call("wait"),
        cudaStreamDestroy=call("destroy"),
        cudaMemcpyAsync=call("copy"),
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
    )


def test_memory_grows_by_name_copies_both_ways_and_is_freed(monkeypatch):
    fake = bindings(0)
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    assert gpu() == H100
    memory, array = CudaMemory(), np.arange(6, dtype=np.float32)
    first = memory.buffer("a", 10)
    assert memory.buffer("a", 8) == first != memory.buffer("b", 8)
    assert memory.buffer("a", 20) != first and ("free", (first,)) in fake.calls
    memory.upload(first, array)
    memory.download(array, first)
    assert [given for name, given in fake.calls if name == "copy"] == [
        (first, array.ctypes.data, 24, 1, 5),
        (array.ctypes.data, first, 24, 2, 5),
    ]
    taken = sum(name == "malloc" for name, _ in fake.calls)
    del memory
    assert sum(name == "free" for name, _ in fake.calls) == taken and fake.calls[-1] == ("destroy", (5,))


def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(cuda, "_runtime", lambda: bindings(100))
    for make in (gpu, CudaMemory):
        with pytest.raises(UsageError, match=r"no NVIDIA GPU works here \(CUDA says cudaErrorNoDevice\)"):
            make()


def test_a_library_needs_its_shared_objects_and_a_known_version(monkeypatch):
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: object() if name == "tensorrt" else None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it raises ImportError, as without its libraries
    with pytest.raises(MissingExtraError, match=r"tensorrt does not load .*--force-reinstall .*; if pip does not"):
        load_library()
    for version, ok in (("10.12.0.36", False), ("10.13.0", True), ("11.4.0.106", True), ("12.0.0", False)):
        monkeypatch.setitem(sys.modules, "tensorrt", module := SimpleNamespace(__version__=version))
        if ok:
            assert load_library().module is module and load_library("tensorrt").title == f"TensorRT {version}"
        else:
            with pytest.raises(VersionError, match=r"TensorRT 1\d\S+ is not from 10\.13 up to 12; run: pip install -U"):
                load_library()
    with pytest.raises(MissingExtraError, match=r'tensorrt_rtx is not installed; run: pip install "nsfse\[trt-rtx\]"'):
        load_library("rtx")


def test_of_two_libraries_the_one_that_loads_is_taken_and_tensorrt_first(monkeypatch):
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1.116"))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    assert [found.name for found in available_libraries()] == ["tensorrt", "rtx"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert [found.title for found in available_libraries()] == ["TensorRT for RTX 1.7.1.116"]
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'neither TensorRT nor .*"nsfse\[trt-rtx\]" for a PC .*"nsfse\[trt\]"'):
        load_library()


def test_capabilities_are_those_of_the_library():
    members = dict.fromkeys(("NONE", "CURRENT", "SM120", "SM75", "SM89"))
    module = SimpleNamespace(__version__="1.7.1", ComputeCapability=SimpleNamespace(__members__=members))
    rtx = TensorRT("rtx", module)
    assert rtx.capabilities == ("7.5", "8.9", "12.0")
    rtx.check_capability("8.9")
    for wrong in ("9.0", "89", "", "sm_89"):
        with pytest.raises(UsageError, match=r"builds for compute capability 7\.5, 8\.9, 12\.0, not for"):
            rtx.check_capability(wrong)
    with pytest.raises(UsageError, match="builds for the GPU of the machine it runs on"):
        library("tensorrt", "11.4.0").check_capability("8.9")


def test_a_scorer_takes_the_library_that_has_every_engine(monkeypatch, tmp_path):
    from nsfse_runtime.inference.bundle import Bundle
    from nsfse_runtime.inference.tensorrt import engine
    from nsfse_runtime.inference.tensorrt.cache import engine_graphs

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, plan):
            return None

    def with_runtime(name, version):
        class Module:
            __version__ = version

            class ILogger:
                ERROR = 1

        Module.Runtime = Runtime
        return TensorRT(name, Module)

    libraries = [with_runtime("tensorrt", "11.4.0"), with_runtime("rtx", "1.7.1")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "available_libraries", lambda: libraries)
    monkeypatch.setattr(engine, "gpu", lambda: Gpu("RTX 4090", "8.9"))
    bundle = Bundle.open(Path(__file__).parents[2] / "golden" / "bundle")
    pixels = np.zeros((1, *bundle.manifest.image_size, 3), np.uint8)
    with pytest.raises(NotFoundError, match=r"for RTX 4090 \(8\.9\) and TensorRT 11\.4\.0; .*nsfse engines add PACK"):
        engine.EngineScorer(bundle).encode_images(pixels)
    cache = EngineCache.open()
    for graph in engine_graphs(bundle.manifest):
        cache.store(engine_key(graph, bundle.manifest, libraries[1], Gpu("", "8.9")), StoredEngine(b"code", ("a",)))
    with pytest.raises(IntegrityError, match=r"TensorRT for RTX 1\.7\.1 does not open the engine of .*image\.onnx"):
        engine.EngineScorer(bundle).encode_images(pixels)
