"""Engine packs by the real builder of TensorRT for RTX, which needs no GPU: built, kept, added, refused."""

import json
import os
import shutil
import warnings
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from nsfse.cli.app import app
from nsfse_export import ExportOptions, engine_builder, engine_comparison, engine_pack, tensorrt
from nsfse_export.engine_builder import build_engine
from nsfse_export.tensorrt import build_engines, bundle_for_engines, engine_target
from nsfse_runtime.errors import IntegrityError, NotFoundError, OutputError, UsageError, VersionError
from nsfse_runtime.inference import cuda
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.manifest import read_manifest
from nsfse_runtime.inference.manifest import write_manifest as write_bundle_manifest
from nsfse_runtime.inference.tensorrt import pack as packs
from nsfse_runtime.inference.tensorrt.cache import EngineCache, profiles_of
from nsfse_runtime.inference.tensorrt.pack import EnginePack, add_pack, pack_folder, read_key, write_manifest
from nsfse_runtime.inference.tensorrt_library import TensorRT, load_library

rtx = pytest.importorskip("tensorrt_rtx", reason='TensorRT for RTX is not installed: pip install "nsfse[trt-rtx]"')
pytest.importorskip("torch")
GRAPHS = ["image", "text", "query", "pair"]
BUILT: dict[tuple[bytes, str], object] = {}


def built_once(library, graph, profiles, capability, timings, origin):
    """Each engine is really built, once for all tests."""
    if (graph, capability) not in BUILT:
        BUILT[graph, capability] = build_engine(library, graph, profiles, capability, timings, origin)
    return BUILT[graph, capability]


@pytest.fixture(scope="module", autouse=True)
def engines_are_built_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_builder, "build_engine", built_once)
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of now, and its pack for 8.9, sealed by the user of `cache`."""
    from nsfse.config import ModelConfig
    from nsfse_export import export_bundle
    from tests.random_run import write_random_run

    folder = tmp_path_factory.mktemp("pack")
    run = write_random_run(folder / "run", ModelConfig(image_size=(32, 48), dim=16))
    export_bundle(run, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        report = build_engines(folder / "bundle", engine_target(None, ["8.9"]))
    assert {graph: engine.state for graph, engine in report.engines["8.9"].items()} == dict.fromkeys(GRAPHS, "built")
    assert report.note == "built for 8.9, not run here: no NVIDIA GPU works" and not report.least_cosine
    return folder / "bundle"


@pytest.fixture
def place(bundle, tmp_path, monkeypatch):
    """A copy of the bundle and its pack, and the cache of the user who built it; no GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: None)
    monkeypatch.setattr(packs, "find_gpu", lambda: None)
    for name in ("bundle", "bundle.engines", "cache"):
        shutil.copytree(bundle.with_name(name), tmp_path / name)
    return tmp_path


def other_user(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "another"))


def states(report):
    return {capability: {e.state for e in graphs.values()} for capability, graphs in report.engines.items()}


def test_a_second_run_keeps_and_another_capability_adds(place):
    folder = place / "bundle.engines"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert states(build_engines(place / "bundle", engine_target("rtx", ["8.9"]))) == {"8.9": {"kept"}}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert states(build_engines(place / "bundle", engine_target("rtx", ["8.6"]))) == {"8.6": {"built"}}
    engines = EnginePack.open(folder).manifest.engines
    assert sorted((engine.key.capability, engine.graph) for engine in engines) == sorted(
        (capability, graph) for capability in ("8.9", "8.6") for graph in GRAPHS
    )
    assert not any(file.suffix == ".engine" for file in (place / "bundle").iterdir())


def test_a_pack_enters_the_cache_of_who_built_it_or_has_the_key_or_trusts_it(place, monkeypatch):
    added = add_pack(place / "bundle.engines")
    assert added.engines == {"8.9": dict.fromkeys(GRAPHS, "added")} and "not run here" in added.note
    assert add_pack(place / "bundle.engines").engines == {"8.9": dict.fromkeys(GRAPHS, "kept")}
    other_user(place, monkeypatch)
    with pytest.raises(
        UsageError, match=r"holds native code, and was not sealed by this user .*--pack-key FILE, or --"
    ):
        add_pack(place / "bundle.engines")
    assert list(EngineCache.open().folder.glob("*.engine")) == []
    assert add_pack(place / "bundle.engines", trust=True).engines["8.9"]["pair"] == "added"
    key = EnginePack.open(place / "bundle.engines").manifest.engines[0].key
    stored = EngineCache.open().load(key)
    assert stored is not None and len(stored.plan) > 1000


def test_a_pack_is_sealed_by_a_key_that_travels(place, monkeypatch):
    (place / "key").write_text("0123456789abcdef0123456789abcdef\n")
    (place / "another-key").write_text("f" * 32)
    shutil.rmtree(place / "bundle.engines")
    build_engines(place / "bundle", engine_target(None, ["8.9"], read_key(place / "key")))
    with pytest.raises(UsageError, match="sealed by another key, or was changed"):
        build_engines(place / "bundle", engine_target(None, ["8.6"]))
    other_user(place, monkeypatch)
    (place / "link").symlink_to(place / "key")  # as secrets are mounted
    assert add_pack(place / "bundle.engines", place / "link").engines["8.9"]["text"] == "added"
    with pytest.raises(IntegrityError, match="is not sealed by the key in"):
        add_pack(place / "bundle.engines", place / "another-key")
    with pytest.raises(NotFoundError, match="openssl rand -hex 32"):
        add_pack(place / "bundle.engines", place / "no-key")
    for content in (b"short", b"x" * 5000):
        (place / "key").write_bytes(content)
        with pytest.raises(UsageError, match="is no key"):
            add_pack(place / "bundle.engines", place / "key")


def test_a_changed_engine_or_manifest_is_refused_whole_and_built_again(place):
    folder = place / "bundle.engines"
    victim = sorted(folder.glob("text-*.engine"))[0]
    whole = victim.read_bytes()
    for broken in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], whole + b"x", b""):
        victim.write_bytes(broken)
        with pytest.raises(IntegrityError, match=r"text-8\.9-\w+\.engine is damaged \(its content is not what was"):
            add_pack(folder)
    assert list(EngineCache.open().folder.glob("*.engine")) == []
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises(IntegrityError, match="it is not a regular file"):
        add_pack(folder)
    states_of = build_engines(place / "bundle", engine_target(None, ["8.9"])).engines["8.9"]
    assert {graph: engine.state for graph, engine in states_of.items()} == {
        **dict.fromkeys(GRAPHS, "kept"),
        "text": "built",
    }
    manifest = folder / "engines.json"
    text = manifest.read_bytes()
    changed = (b"", b"{", b'{"format_version": 1}', text.replace(b"text-8.9", b"../evil"), text[:100])
    for content in changed:
        manifest.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"engines\.json is damaged"):
            add_pack(folder, trust=True)
    manifest.write_bytes(text.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(VersionError, match="has format 2, and this nsfse reads 1; update nsfse"):
        add_pack(folder)
    for seal in ("", "é"):
        parsed = msgspec.structs.replace(msgspec.json.decode(text, type=packs.PackManifest), seal=seal)
        manifest.write_bytes(msgspec.json.encode(parsed))
        with pytest.raises(UsageError, match="was not sealed by this user"):
            add_pack(folder)
    with pytest.raises(NotFoundError, match="there is no engine pack at"):
        add_pack(place / "bundle")


def reseal(folder: Path, **changed: object) -> None:
    """Seal a pack again whose engines' keys differ in some fields, as its builder would have."""
    manifest = EnginePack.open(folder).manifest
    engines = tuple(
        msgspec.structs.replace(engine, key=msgspec.structs.replace(engine.key, **changed))
        for engine in manifest.engines
    )
    write_manifest(folder, msgspec.structs.replace(manifest, engines=engines), EngineCache.open().secret)


def test_engines_of_another_version_or_gpu_are_refused(place, monkeypatch):
    folder = place / "bundle.engines"
    version = EnginePack.open(folder).manifest.engines[0].key.version
    reseal(folder, version="1.6.0.1")
    with pytest.raises(
        VersionError, match=rf"is built by TensorRT for RTX 1\.6\.0\.1, and here is TensorRT for RTX {version}"
    ):
        add_pack(folder)
    shutil.rmtree(folder)
    build_engines(place / "bundle", engine_target(None, ["8.9", "8.6"]))
    monkeypatch.setattr(packs, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    with pytest.raises(UsageError, match=r"is built for 8\.6, 8\.9; this GPU, NVIDIA H200, has 9\.0"):
        add_pack(folder)
    monkeypatch.setattr(packs, "find_gpu", lambda: Gpu("RTX A5000", "8.6"))
    added = add_pack(folder)
    assert list(added.engines) == ["8.6"] and added.note == ""


def test_engines_of_another_graph_leave_the_pack_of_a_new_export(place):
    onnx = pytest.importorskip("onnx")
    graph = place / "bundle" / "text.onnx"
    model = onnx.load(graph)
    model.doc_string = "other bytes"
    onnx.save(model, graph)
    write_bundle_manifest(place / "bundle", read_manifest(place / "bundle"))
    report = build_engines(place / "bundle", engine_target(None, ["8.6"]))
    assert {engine.state for engine in report.engines["8.6"].values()} == {"built"}
    current = {entry.sha256 for entry in Bundle.open(place / "bundle").manifest.files.values()}
    engines = EnginePack.open(place / "bundle.engines").manifest.engines
    assert {engine.key.graph for engine in engines} <= current
    assert {engine.graph for engine in engines if engine.key.capability == "8.9"} == {"image", "query", "pair"}
    assert len(list((place / "bundle.engines").glob("*.engine"))) == len(engines) == 7


def test_a_place_that_is_something_else_or_full_is_left_as_it_was(place, monkeypatch):
    folder = place / "bundle.engines"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*_, **__):
        raise OutputError("cannot write: No space left on device; free disk space")

    monkeypatch.setattr(engine_pack, "atomic_write", full)
    with pytest.raises(OutputError, match="No space left"):
        build_engines(place / "bundle", engine_target(None, ["8.6"]))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(entry.name for entry in place.iterdir()) == ["bundle", "bundle.engines", "cache"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="is the place of the engine pack, and is something else"):
        build_engines(place / "bundle", engine_target(None, ["8.9"]))
    assert (folder / "holiday.jpg").exists()


def test_with_a_gpu_engines_that_differ_leave_the_pack_and_the_cache(place, monkeypatch):
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: Gpu("RTX 4090", "8.9"))
    monkeypatch.setattr(engine_comparison, "EngineScorer", lambda bundle, library: None)
    monkeypatch.setattr(engine_comparison, "compare", lambda *_: {"vectors": 0.9999})
    report = build_engines(place / "bundle", engine_target(None, ["8.9", "8.6"]))
    assert report.gpu == "RTX 4090 (8.9)" and report.least_cosine == {"vectors": 0.9999}
    assert report.note.startswith("built for 8.6, not run here")
    assert len(list(EngineCache.open().folder.glob("*.engine"))) == 4
    monkeypatch.setattr(engine_comparison, "compare", lambda *_: {"vectors": float("nan")})
    with pytest.raises(IntegrityError, match="do not agree with ONNX Runtime"):
        build_engines(place / "bundle", engine_target(None, ["8.9", "8.6"]))
    left = EnginePack.open(place / "bundle.engines")
    assert {engine.key.capability for engine in left.manifest.engines} == {"8.6"}
    assert list(EngineCache.open().folder.glob("*.engine")) == []
    assert not list((place / "bundle.engines").glob("*-8.9-*"))


def test_without_a_gpu_the_capability_must_be_named_and_known(place):
    with pytest.raises(
        UsageError, match=r"no NVIDIA GPU works here; name the GPUs to build for, such as --compute-cap"
    ):
        engine_target("rtx")
    for wrong in ("9.0", "8.9.1", "x"):
        with pytest.raises(UsageError, match="builds for compute capability"):
            engine_target(None, [wrong])


def test_a_gpu_without_bf16_is_refused_before_the_export(place):
    target = engine_target(None, ["7.5", "8.6"])
    with pytest.raises(UsageError, match=r"GPUs of 7\.5 have no bf16, which is from 8\.0 on; use fp16 or fp32"):
        bundle_for_engines(place / "cache", place / "out", ExportOptions(precision="bf16"), target=target)
    assert not (place / "out").exists()


def test_the_command_line_builds_lists_adds_and_refuses(place, monkeypatch):
    def run(*arguments: str):
        return CliRunner().invoke(app, arguments)

    monkeypatch.chdir(place)
    built = run("export", "bundle", "--trt", "--compute-capability", "8.9,8.6")
    assert built.exit_code == 0 and "8.6  image  built" in built.output and "8.9  image  kept" in built.output
    assert run("export", "--trt", "bundle", "--compute-capability", "8.9").exit_code == 0
    described = json.loads(run("info", "bundle", "--json").output)["engine_pack"]
    assert described["path"].endswith("bundle.engines") and len(described["engines"]) == 2
    assert json.loads(run("info", "bundle.engines", "--json").output)["kind"] == "engine pack"
    assert run("engines", "list").output.startswith("no engines in")
    assert json.loads(run("engines", "add", "bundle.engines", "--json").output)["engines"]["8.6"]["pair"] == "added"
    assert len(json.loads(run("engines", "list", "--json").output)["engines"]) == 8
    assert "rtx" in run("engines", "list").output
    for wrong in (
        ("export", "bundle", "--compute-capability", "8.9"),
        ("export", "bundle", "--trt", "--pack-key", "key"),
        ("export", "bundle", "--trt=cuda"),
    ):
        assert run(*wrong).exit_code != 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_builder_takes_the_graphs(bundle, graph):
    opened = Bundle.open(bundle)
    data, library = opened.read(f"{graph}.onnx"), load_library("rtx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored, timings = build_engine(library, data, profiles_of(graph, opened.manifest), "8.6", b"", graph)
    assert len(stored.plan) > 1000 and timings == b""
    onnxruntime = pytest.importorskip("onnxruntime")
    assert list(stored.outputs) == [output.name for output in onnxruntime.InferenceSession(data).get_outputs()]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_builder_takes_attention_in_every_precision(tmp_path, precision):
    """A CLIP's image graph: TensorRT has no kernel for heads of this size, and takes them apart."""
    pytest.importorskip("transformers")
    from nsfse.config import Config, ModelConfig
    from nsfse.models.baselines import build_model
    from nsfse.models.pretrained import own_tokenizer, resolve_config
    from nsfse_export.export import to_onnx
    from nsfse_export.graphs import build_graphs
    from nsfse_export.quantization import reduce_graph
    from tests.small_clip import write_small_clip

    weights = str(write_small_clip(tmp_path / "clip"))
    config = ModelConfig(backbone="clip", weights=weights, image_size=(32, 32), dim=24, max_words=14)
    config = resolve_config(Config(model=config)).model
    model = build_model(config, own_tokenizer(config).get_vocab_size()).eval()
    data = to_onnx("image", build_graphs(model)["image"])
    data = data if precision == "fp32" else reduce_graph("image", data, precision)
    stored, _ = build_engine(load_library("rtx"), data, ({"batch": (1, 2, 4)},), "8.9", b"", "image")
    assert len(stored.plan) > 1000


def test_a_graph_that_the_builder_refuses_is_one_line(capfd):
    """The golden bundle's image graph transposes its uint8 before the cast, which TensorRT has no kernel for."""
    golden = Bundle.open(Path(__file__).parents[2] / "golden" / "bundle")
    with pytest.raises(IntegrityError, match=r"TensorRT for RTX \S+ does not take image\.onnx \(.*UInt8") as caught:
        build_engine(
            load_library("rtx"),
            golden.read("image.onnx"),
            profiles_of("image", golden.manifest),
            "8.9",
            b"",
            "image.onnx",
        )
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "need", lambda *_: (_ for _ in ()).throw(UsageError("none")))
    assert cuda.find_gpu() is None and pack_folder(Path("a/b")).name == "b.engines"
    assert isinstance(load_library("rtx"), TensorRT)
