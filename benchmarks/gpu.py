"""Time training of CLIP-size models: NSFSE's own step, whole and in parts, against a plain combiner on the same towers.

python benchmarks/gpu.py [--toy] [--batch 256]    needs transformers; weights and images are random
python benchmarks/gpu.py --trt [--smoke] [--bundle BUNDLE] [-o DIR]    serving instead: see gpu_serving.py

The towers are those of ViT-B/32. The plain loop is in the manner of CLIP4Cir: one vector for each image and text, a
combiner, cross entropy over the batch. Both train all of the towers, encode each image of the batch once and use
bfloat16 where training would (NSFSE_BF16_AUTOCAST=on or off forces it).
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from towers import BASE, TOY, ImageTower, RandomClip, TextTower

from nsfse.config import Config, ModelConfig, TrainConfig
from nsfse.models.autocast import choose
from nsfse.models.backbones.registry import BACKBONES
from nsfse.models.nsfse import NSFSE
from nsfse.training.dataloader import Batch
from nsfse.training.trainer import Trainer

WARM, SECONDS = 3, 60.0  # steps before the clock starts; a variant is timed no longer than this
AGREE = 2e-3  # relative difference of losses in float32, CPU against GPU


class Combiner(nn.Module):
    """After Baldrati et al. (CVPR Workshops 2022): a gated sum of image and text plus a mixture of both."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(dim, 4 * dim), nn.Linear(dim, 4 * dim)
        self.mixture = nn.Sequential(nn.Linear(8 * dim, 8 * dim), nn.ReLU(), nn.Linear(8 * dim, dim))
        self.gate = nn.Sequential(nn.Linear(8 * dim, 8 * dim), nn.ReLU(), nn.Linear(8 * dim, 1), nn.Sigmoid())

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Combine [B, d] and [B, d] into unit rows."""
        both = torch.cat([F.relu(self.image(image)), F.relu(self.text(text))], -1)
        share = self.gate(both)
        return F.normalize((self.mixture(both) + share * text + (1 - share) * image).float(), dim=-1)


def synthetic(size: dict[str, Any], queries: int) -> Batch:
    """Return a batch of random images in pairs, each pair in both directions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(queries)
    partners = rows + 1 - 2 * (rows % 2)
    pixels = torch.randint(0, 256, (queries, size["side"], size["side"], 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(3, size["vocabulary"], (queries, size["words"]), generator=generator)
    mask = torch.arange(size["words"])[None] < torch.randint(3, size["words"] + 1, (queries, 1), generator=generator)
    right = torch.zeros(queries, queries, dtype=torch.bool)
    right[rows, partners] = True
    unnamed = torch.zeros_like(ids), right[:0].long()
    return Batch(pixels, rows, rows, partners, ids, mask, right, *unnamed, rows[:0], ids[:0], mask[:0])


def nsfse_step(size: dict[str, Any], settings: TrainConfig, device: torch.device) -> Callable[[Batch], float]:
    """Return NSFSE's training step on the towers."""
    BACKBONES["random-clip"] = RandomClip(size)
    torch.manual_seed(0)
    model = NSFSE(
        ModelConfig(backbone="random-clip", image_size=(size["side"],) * 2, dim=size["dim"]), size["vocabulary"]
    )
    trainer = Trainer(Config(train=settings), model.to(device), 10_000)
    return lambda batch: trainer.train_step(batch)["loss"]


def plain_step(size: dict[str, Any], settings: TrainConfig, device: torch.device) -> Callable[[Batch], float]:
    """Return the plain loop's training step on the same towers."""
    torch.manual_seed(0)
    images, texts, combiner = ImageTower(size), TextTower(size), Combiner(size["dim"])
    model = nn.ModuleList([images, texts, combiner]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    numbers = choose(str(settings.bf16_autocast), device)

    def encoded(pixels: Tensor, reference: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        vectors, _ = images(pixels.permute(0, 3, 1, 2).float() / 255.0)
        return vectors, combiner(vectors[reference], texts(ids, mask)[1])

    def step(batch: Batch) -> float:
        moved = batch.to(device)
        optimizer.zero_grad(set_to_none=True)
        with numbers.step():
            vectors, query = numbers.lowered(encoded)(moved.pixels, moved.reference, moved.ids, moved.mask)
            loss = F.cross_entropy(100.0 * query @ vectors.T, moved.target)
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def timed(make: Callable[..., Callable[[Batch], float]], *setting: Any, batch: Batch, steps: int) -> dict[str, Any]:
    """Return images per second and peak memory of one variant."""
    device = setting[-1]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, seconds, began = make(*setting), [], time.perf_counter()
    for index in range(WARM + steps):
        started = time.perf_counter()
        loss = step(batch)  # reads the loss, so the device is done
        seconds += [time.perf_counter() - started] if index >= WARM else []
        if seconds and time.perf_counter() - began > SECONDS:
            break
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None
    rate = round(len(batch.pixels) / statistics.median(seconds), 1)
    return {"images_per_second": rate, "peak_gib": peak, "steps": len(seconds), "last_loss": round(loss, 4)}


def agreement(size: dict[str, Any], settings: TrainConfig, device: torch.device) -> dict[str, Any] | None:
    """Return the first step's loss in float32 on both devices, and whether they agree; None without a GPU."""
    if device.type == "cpu":
        return None
    batch = synthetic(size, 16)
    losses = {
        kind: nsfse_step(size, changed_settings(settings, bf16_autocast="off"), torch.device(kind))(batch)
        for kind in ("cpu", "cuda")
    }
    return losses | {"agree": abs(losses["cpu"] - losses["cuda"]) <= AGREE * abs(losses["cpu"])}


def changed_settings(settings: TrainConfig, **changed: Any) -> TrainConfig:
    """Return `settings` with some changed."""
    return TrainConfig(**{name: getattr(settings, name) for name in settings.__struct_fields__} | changed)


def serving(smoke: bool, bundle: Path | None, minutes: float, out: Path | None) -> None:
    """Measure serving and print its table."""
    from gpu_serving import measure

    report = measure(smoke, bundle, minutes)
    if out is not None:
        write(report, out)
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = [
        f"{report['device']}, {report['provider']}, torch {report['torch']}; GEMM in TFLOP/s: {report['gemm_tflops']}, "
        f"copy {report['copy_gb_per_second']} GB/s{', SMOKE RUN: no figure means anything' if report['smoke'] else ''}",
        "",
        "| part | model | type | size | way | ms | per second | share of limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        figures = [row.get(name, "") for name in ("ms", "per_second", "share_of_limit")]
        figures = [f"left out: {row['left_out']}", "", ""] if "left_out" in row else figures
        cells = [row[name] for name in ("part", "model", "type", "size", "way")] + figures
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any], out: Path) -> None:
    """Write gpu.json and gpu.md into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (out / "gpu.md").write_text(table(report), "utf-8")


def main() -> None:
    """Measure and print one JSON object; exit with 1 where CPU and GPU disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny towers: seconds on a CPU")
    parser.add_argument("--batch", type=int, help="queries and images in a batch: 256, toy 8")
    parser.add_argument("--trt", action="store_true", help="serving: PyTorch, ONNX Runtime and TensorRT")
    parser.add_argument("--smoke", action="store_true", help="with --trt: tiny sizes on the CPU, for the mechanism")
    parser.add_argument(
        "--bundle",
        type=Path,
        help="with --trt: re-rank and query with it",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="with --trt: what is not begun then is left out")
    parser.add_argument("-o", "--out", type=Path, help="with --trt: folder for gpu.json and gpu.md")
    options = parser.parse_args()
    if options.trt:
        serving(options.smoke, options.bundle, options.minutes, options.out)
        sys.exit(0)
    size = TOY if options.toy else BASE
    device = torch.device("cuda" if torch.cuda.is_available() and not options.toy else "cpu")
    batch = synthetic(size, options.batch or (8 if options.toy else 256))
    settings = TrainConfig(lr=1e-5, batch=len(batch.pixels))
    common: dict[str, Any] = {"batch": batch, "steps": size["steps"]}
    parts = changed_settings(settings, grad_cache_chunks=4)
    checked = agreement(size, settings, device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(json.dumps({
        "machine": machine,
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": version("transformers"),
        "device": device.type, "bfloat16": str(choose("auto", device)),
        "toy": options.toy, "batch": len(batch.pixels), "image": size["side"],
        "plain": timed(plain_step, size, settings, device, **common),
        "nsfse": timed(nsfse_step, size, settings, device, **common),
        "nsfse_in_4_parts": timed(nsfse_step, size, parts, device, **common),
        "cpu_and_gpu": checked,
    }, indent=2))  # fmt: skip
    sys.exit(1 if checked and not checked["agree"] else 0)


if __name__ == "__main__":
    main()
