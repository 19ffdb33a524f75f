"""bfloat16, forced on any processor, trains what float32 trains: every method, ablation, backbone and a whole run."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")

from nsfse.benchmark.methods import ABLATIONS, method_settings
from nsfse.config import Config, TrainConfig, load_config
from nsfse.models import autocast
from nsfse.models.autocast import choose
from nsfse.models.backbones import (
    efficientnet,
    registry,
    resnet,
)
from nsfse.models.baselines import METHODS, build_model
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.pretrained import resolve_config
from nsfse.training.dataloader import Batch
from nsfse.training.loop import train
from nsfse.training.trainer import Trainer
from nsfse_runtime.errors import UsageError

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
STEPS, QUERIES = 3, 16
CLOSE = 0.02
"""How far a step's loss may be from that in float32: 8 bits of a product are 0.2 %, and a step carries that on."""
SMALL = [
    "model.image_size=[32,32]",
    "model.width=16",
    "model.dim=16",
    f"train.batch={QUERIES}",
    "train.candidates=8",
    "train.lr=1e-4",
]
SWITCHES = {"fixed-t": "0.2", "gamma": "0", "alpha": "1"}
VARIANTS = {
    "nsfse": [],
    **{
        f"nsfse:{name}": method_settings(f"nsfse:{name}" + (f"={SWITCHES[name]}" if name in SWITCHES else ""))
        for name in ABLATIONS
    },
    **{name: method_settings(name) for name in METHODS},
    "head_grad_scale": ["model.head_grad_scale=0"],
    "label_smoothing": ["train.label_smoothing=0.1"],
    "odd channels": ["model.dim=12"],
    "in parts": ["train.grad_cache_chunks=3"],
    "efficientnet-lite0": ['model.backbone="efficientnet-lite0"', 'model.weights="random"', "model.image_size=[64,64]"],
    "efficientnet-lite0, small cells": [
        *(
            'model.backbone="efficientnet-lite0"',
            'model.weights="random"',
            "model.stride=16",
            "model.channel_dropout=0.2",
        )
    ],
    "resnet50": ['model.backbone="resnet50"', "model.image_size=[64,64]"],
    "taught and signed": ['model.text_teacher="read-before"', "model.word_dim=6", 'model.sentence="signed"'],
    "blocks": ["model.attribute_blocks=true", "model.attributes={colour=2}", "train.attribute_weight=1"],
    "clip": ['model.backbone="clip"', "model.max_words=14"],
    "clip in parts": ['model.backbone="clip"', "model.max_words=14", "train.grad_cache_chunks=2"],
    "combiner on clip": ['model.backbone="clip"', "model.max_words=14", "model.method=combiner"],
    "tirg on resnet50": ['model.backbone="resnet50"', "model.image_size=[64,64]", "model.method=tirg"],
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed: nsfse[clip]")
    from tests.small_clip import write_small_clip

    return write_small_clip(tmp_path_factory.mktemp("clip"))


def batch_of(size: tuple[int, int], titles: bool = True) -> Batch:
    """Queries in a ring: image i is the reference of query i, image i + 1 its target; the second word asks.

    Images are tiles of colours: to an untrained trunk images of noise are all alike, and rounding decides.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.arange(QUERIES)
    target = (images + 1) % QUERIES
    tiles = torch.randint(0, 256, (QUERIES, 4, 4, 3), generator=generator, dtype=torch.uint8)
    titled = images[: 4 if titles else 0]
    mask = torch.ones(QUERIES, 3, dtype=torch.bool)
    mask[::2, 2] = False
    named = torch.zeros(QUERIES, 3, dtype=torch.long).index_fill(1, torch.tensor([1]), 1)
    return Batch(
        tiles.repeat_interleave(size[0] // 4, 1).repeat_interleave(size[1] // 4, 2),
        images,
        images,
        target,
        torch.randint(2, 9, (QUERIES, 3), generator=generator) * mask,
        mask,
        torch.nn.functional.one_hot(target, QUERIES).bool(),
        named,
        torch.nn.functional.one_hot(target, QUERIES) - torch.nn.functional.one_hot(images, QUERIES),
        titled,
        torch.arange(2 * len(titled)).view(-1, 2) % 7 + 2,
        torch.ones(len(titled), 2, dtype=torch.bool),
        attributes=(images % 2)[:, None],
    )


def trainer_of(config: Config, amp: str) -> Trainer:
    torch.manual_seed(0)
    changed = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, bf16_autocast=amp))
    model = build_model(changed.model, 40 if config.model.backbone == "clip" else 9)
    calm(model)
    return Trainer(changed, model, 100)


@torch.no_grad()
def calm(model: torch.nn.Module) -> None:
    """Weaken what blocks of a deep trunk add, as in one that was trained.

    An untrained one is chaotic: in float32, half a grey level of noise changed the features of ResNet-50 by a half.
    """
    for module in model.modules():
        if isinstance(module, resnet.Bottleneck):
            module.bn3.weight.fill_(0.05)
        if isinstance(module, efficientnet.LiteBlock) and module.shortcut:
            module.project.weight.mul_(0.3)


def settings_of(name: str, request, monkeypatch) -> Config:
    monkeypatch.setitem(registry.BACKBONES, "resnet50", resnet.ResNetBackbone(8))
    overrides = [*SMALL, *VARIANTS[name]]
    if any("clip" in setting for setting in overrides):
        overrides.append(f'model.weights="{request.getfixturevalue("clip_folder")}"')
    return resolve_config(load_config(overrides=overrides))


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_trains_what_float32_trains(name, request, monkeypatch):
    config = settings_of(name, request, monkeypatch)
    batch = batch_of(config.model.image_size)
    exact, trainer = trainer_of(config, "off"), trainer_of(config, "on")
    assert trainer.precision.bfloat16 and not exact.precision.bfloat16
    seen = []
    products = (torch.nn.Conv2d, torch.nn.Linear)
    for module in trainer.model.image_encoder.modules():
        if isinstance(module, products):
            module.register_forward_hook(lambda _, __, found: seen.append(found.dtype))
    parts, losses = [], trainer.batch_losses
    monkeypatch.setattr(trainer, "batch_losses", lambda *given: parts.append(losses(*given)) or parts[-1])
    for step in range(STEPS):
        wanted, found = exact.train_step(batch), trainer.train_step(batch)
        assert found["loss"] == pytest.approx(wanted["loss"], rel=CLOSE), step
        if step == 0:
            gradients = [
                torch.cat([p.grad.flatten() for p in each.model.parameters() if p.grad is not None])
                for each in (exact, trainer)
            ]
            assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.85
    assert set(seen) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for found in parts for value in found.values())
    for parameter_name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32, parameter_name
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), parameter_name
    for buffer_name, buffer in trainer.model.named_buffers():
        if "boundary" in buffer_name:
            assert buffer.dtype == torch.float64 and bool(buffer.isfinite().all()), buffer_name
    assert {value.dtype for value in trainer.ema.values()} <= {torch.float32, torch.float64, torch.int64}


@pytest.mark.parametrize("name", ["nsfse", "clip", "artemis"])
@pytest.mark.parametrize("amp", ["off", "on"])
def test_somebodys_autocast_around_a_step_changes_nothing(name, amp, request, monkeypatch):
    config = settings_of(name, request, monkeypatch)
    batch, found = batch_of(config.model.image_size), []
    for around in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        trainer = trainer_of(config, amp)
        with around:
            found.append([trainer.train_step(batch) for _ in range(2)])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["nsfse", "clip"])
def test_what_encoders_and_head_hand_over_is_float32(name, request, monkeypatch):
    trainer = trainer_of(settings_of(name, request, monkeypatch), "on")
    batch, head, lowered = batch_of((32, 32)), trainer.model.head, trainer.precision.lowered
    vectors, regions = lowered(trainer.model.encode_images)(batch.pixels)
    words, sentence = lowered(trainer.model.encode_text)(batch.ids, batch.mask)
    side = head.encode_query(head.read(words, sentence, batch.mask, regions), sentence, regions)
    products = lowered(head.products)(side, regions[None].expand(QUERIES, -1, -1, -1))
    assert {x.dtype for x in (vectors, regions, words, sentence, *products)} == {torch.float32}
    for rows in (vectors, regions, sentence, words[batch.mask]):  # normalised after rounding, not before
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]), atol=1e-5, rtol=0)
    assert torch.equal(products[0], products[0].bfloat16().float())  # the product itself was in bfloat16
    assert len(regions[0, 0].unique()) == len(regions[0, 0].bfloat16().unique()) > 1
    assert not torch.equal(regions, regions.bfloat16().float())


def test_float64_stays():
    x = torch.rand(3, dtype=torch.float64)
    assert autocast.widened(x) is x and autocast.widened(x.bfloat16()).dtype == torch.float32
    (found,) = trainer_of(load_config(overrides=SMALL), "on").precision.lowered(lambda rows: (rows @ rows.T,))(x[None])
    assert found.dtype == torch.float64 and torch.equal(found, x[None] @ x[None].T)


def test_a_part_is_encoded_again_in_the_same_number_types(request, monkeypatch):
    """Going backward, each part's activations are computed once more: in other types they would be others."""
    config = settings_of("clip in parts", request, monkeypatch)
    whole = trainer_of(settings_of("clip", request, monkeypatch), "on")
    parted, seen = trainer_of(config, "on"), []
    for encoder in (parted.model.image_encoder, parted.model.text_encoder):
        encoder.trunk.projection.register_forward_hook(lambda _, __, found: seen.append(found.dtype))
    batch = batch_of((32, 32))
    gradients = []
    for trainer in (whole, parted):
        trainer.train_step(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    # Two parts, twice, of images, their patches, texts and titles.
    assert len(seen) == 2 * 2 * 4 and set(seen) == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_rounded_products_are_those_of_torchs_own_kernels():
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3)
    a, b = torch.randn(3, 5, 16), torch.randn(3, 16, 7)

    def products():
        given = [value.bfloat16().requires_grad_() for value in (x, w, a, b)]
        found = [torch.conv2d(given[0], given[1], padding=1), given[2] @ given[3], given[2][0] @ given[3][0]]
        sum(value.float().square().sum() for value in found).backward()
        return [*found, *(value.grad for value in given)]

    calls = []
    with autocast._Rounded():
        fast = products()
        calls.append(len(fast))
    for ours, theirs in zip(fast, products(), strict=True):
        assert ours.dtype == torch.bfloat16
        spread = float(theirs.float().abs().max())
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-7, atol=spread * 2**-7)


# Who decides

UNMEASURED = ", which was not measured to be faster; train.bf16_autocast=on uses it"


def processor(monkeypatch, avx512=False, amx=False, machine="x86_64", arm=False):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": arm}, raising=False)
    monkeypatch.delenv("NSFSE_BF16_AUTOCAST", raising=False)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({}, "off; this CPU has neither AVX512-BF16 nor AMX"),
        ({"avx512": True}, f"off; this CPU has AVX512-BF16{UNMEASURED}"),
        ({"avx512": True, "amx": True}, f"off; this CPU has AVX512-BF16 and AMX{UNMEASURED}"),
        ({"machine": "aarch64"}, "off; this ARM CPU has no bf16"),
        ({"machine": "arm64", "arm": True}, f"off; this CPU has bf16{UNMEASURED}"),
    ],
)
def test_auto_is_float32_on_every_cpu_and_says_why(monkeypatch, kind, reason):
    processor(monkeypatch, **kind)
    found = choose("auto", CPU)
    assert (found.bfloat16, str(found)) == (False, reason)
    assert found.native == bool(set(kind) - {"machine"})
    monkeypatch.setenv("NSFSE_BF16_AUTOCAST", "auto")
    assert str(choose("auto", CPU)) == reason


@pytest.mark.parametrize(("there", "line"), [(True, "on; V100 computes"), (False, "off; V100 does not compute")])
def test_a_gpu_that_only_emulates_bfloat16_does_without(monkeypatch, there, line):
    processor(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or there)
    found = choose("auto", torch.device("cuda"))
    assert found.bfloat16 is there and str(found) == f"{line} in bfloat16"


def test_the_environment_stands_in_for_auto_alone(monkeypatch):
    processor(monkeypatch)
    for value, used in (("on", True), ("ON ", True), ("off", False), ("", False)):
        monkeypatch.setenv("NSFSE_BF16_AUTOCAST", value)
        assert choose("auto", CPU).bfloat16 is used
        assert choose("on", CPU).bfloat16 and not choose("off", CPU).bfloat16
    monkeypatch.setenv("NSFSE_BF16_AUTOCAST", "on")
    assert str(choose("auto", CPU)).startswith("on; NSFSE_BF16_AUTOCAST is on (this CPU has neither")
    processor(monkeypatch, avx512=True)
    monkeypatch.setenv("NSFSE_BF16_AUTOCAST", "off")
    assert str(choose("auto", CPU)) == "off; NSFSE_BF16_AUTOCAST is off"


def test_a_wrong_value_is_refused_in_one_line_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("NSFSE_BF16_AUTOCAST", "yes")
    with pytest.raises(UsageError, match=r"^NSFSE_BF16_AUTOCAST is 'yes'; set it to auto, on or off$"):
        train(load_config(overrides=TOY), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    choose("off", CPU)  # nobody asks for it
    with pytest.raises(UsageError, match=r"^the options: train\.bf16_autocast is 'maybe'; set it to auto, on or off$"):
        load_config(overrides=["train.bf16_autocast=maybe"])
    with pytest.raises(UsageError, match=r"train\.bf16_autocast is 'maybe'"):
        TrainConfig(bf16_autocast="maybe")


@pytest.mark.parametrize(("old", "new"), [(True, "auto"), (False, "off")])
def test_true_and_false_mean_what_they_did(tmp_path, old, new):
    assert (
        TrainConfig(bf16_autocast=old) == TrainConfig(bf16_autocast=new)
        and TrainConfig(bf16_autocast=old).bf16_autocast == new
    )
    assert load_config(overrides=[f"train.bf16_autocast={str(old).lower()}"]).train.bf16_autocast == new
    file = tmp_path / "old.toml"
    file.write_text(f"[train]\nbf16_autocast = {str(old).lower()}\n")
    assert load_config(file=file).train.bf16_autocast == new


def test_the_doctor_says_what_is_used_and_why(monkeypatch):
    from nsfse.cli import doctor

    processor(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.collect()["training"] == {"bfloat16": "off; this CPU has neither AVX512-BF16 nor AMX"}
    monkeypatch.setenv("NSFSE_BF16_AUTOCAST", "on")
    found = doctor.collect()
    assert found["training"]["bfloat16"].startswith("on; NSFSE_BF16_AUTOCAST is on")
    assert found["settings"]["NSFSE_BF16_AUTOCAST"] == "on"
    monkeypatch.setenv("NSFSE_BF16_AUTOCAST", "yes")
    wrong = "NSFSE_BF16_AUTOCAST is 'yes'; set it to auto, on or off"
    found = doctor.collect()
    assert found["training"] == {"bfloat16": f"failed: {wrong}"} and wrong in found["problems"]


# A whole run

TOY = [
    'data.source="drawn"',
    'data.options.level="easy"',
    "data.options.gallery=96",
    "data.options.items=64",
    "data.options.triplets=48",
    "data.validation_queries=4",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=16",
    "train.candidates=6",
    "train.epochs=2",
    "train.threads=1",
]


def digest(run: Path, name: str = "model.safetensors") -> str:
    return hashlib.sha256((run / name).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def forced(tmp_path_factory):
    run = tmp_path_factory.mktemp("forced") / "run"
    train(load_config(overrides=[*TOY, "train.bf16_autocast=on", "train.epochs=1"]), run)
    return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_died_goes_on_to_the_same_weights(tmp_path, accumulate):
    settings = load_config(
        overrides=[*TOY, "train.bf16_autocast=on", f"train.grad_cache_chunks={accumulate}", "train.save_every=0"]
    )
    train(settings, tmp_path / "whole", steps=2)

    class DiedError(Exception):
        pass

    def die(entry):
        if entry.get("step") == 2 and "loss" in entry:
            raise DiedError

    with pytest.raises(DiedError):
        train(settings, tmp_path / "run", progress=die, steps=2)
    seen = []
    train(settings, tmp_path / "run", progress=seen.append, steps=2)
    assert [entry["step"] for entry in seen if "loss" in entry] == [2]  # from the state after step 1
    for name in ("model.safetensors", "state.safetensors"):
        assert digest(tmp_path / "run", name) == digest(tmp_path / "whole", name)
    assert {value.dtype for value in load_checkpoint(tmp_path / "run").model.parameters()} == {torch.float32}


def test_a_run_of_before_continues(tmp_path):
    """Its config.json is of format 1 and says "amp": true."""
    settings, run = [*TOY, "train.epochs=1"], tmp_path / "run"
    train(load_config(overrides=settings), run, steps=1)
    header = json.loads((run / "config.json").read_text())
    assert header["config"]["train"]["bf16_autocast"] == "auto"
    header["format"] = 1
    del header["config"]["train"]["bf16_autocast"]
    header["config"]["train"]["amp"] = True
    (run / "config.json").write_text(json.dumps(header))
    seen = []
    train(load_config(overrides=settings), run, progress=seen.append)
    assert [entry["step"] for entry in seen if "loss" in entry] == [2, 3]
    with pytest.raises(UsageError, match="another configuration"):
        train(load_config(overrides=[*settings, "train.bf16_autocast=off"]), run)


def test_a_run_in_bfloat16_is_exported_and_evaluated(forced, tmp_path):
    for name in ("onnx", "onnxscript", "onnxslim", "onnxruntime"):
        pytest.importorskip(name)
    from nsfse.data.registry import open_source
    from nsfse.evaluation.evaluate import evaluate_source
    from nsfse.open import open_scorer
    from nsfse_export import export_bundle

    assert (forced / "decision.json").exists()
    export_bundle(forced, tmp_path / "bundle")
    config = load_checkpoint(forced).config
    source = open_source("drawn", None, **config.data.options)
    asked = source.protocols("val")[:1]
    found = []
    for model in (forced, tmp_path / "bundle"):
        result = evaluate_source(open_scorer(model), source, asked).results[0]
        found.append({name: value for name, value in result.scores.items() if name.startswith("R@")})
    assert found[0] == pytest.approx(found[1], abs=2.0) and 0 < found[0]["R@50"] <= 100


@pytest.mark.slow
def test_two_processes_train_as_one_does_in_bfloat16(tmp_path):
    paths = os.pathsep.join(str(ROOT / room) for room in (".", "export", "runtime"))
    found = {}
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        child = subprocess.run(
            [
                *(sys.executable, *launcher, "-m", "tests.train_child", "once", str(tmp_path / name), *TOY),
                *("train.bf16_autocast=on", "train.grad_cache_chunks=2", "train.epochs=1", "train.lr=1e-4"),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
        )
        assert child.returncode == 0, child.stderr[-2000:]
        entries = [json.loads(line) for line in child.stdout.splitlines()]
        found[name] = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(found["one"]) == 3
    assert found["two"][0] == pytest.approx(found["one"][0], rel=2e-3)
    assert found["two"] == pytest.approx(found["one"], rel=CLOSE)


def test_the_benchmark_shows_both_times_and_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = __import__("importlib").import_module("number_types")
    found = bench.measure(None, 2, [setting for setting in TOY if "epochs" not in setting])
    assert set(found["seconds_per_step"]) == {"float32", "bfloat16"} and found["times_faster"] > 0
    float32, bfloat16 = (found["losses"][mode] for mode in ("float32", "bfloat16"))
    assert float32 != bfloat16 and len(float32) == 4
    assert bfloat16[0] == pytest.approx(float32[0], rel=CLOSE)
