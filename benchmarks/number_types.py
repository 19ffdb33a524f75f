"""Time training steps in float32 and in bfloat16 from the same weights and batches, and compare their losses.

python benchmarks/number_types.py [--preset drawn-easy] [--steps 10] [--set section.key=value] [--data DIR]

Run it on a processor before bfloat16 becomes its default there (docs/training.md). Steps of both are interleaved. On a
CPU without bfloat16 products are computed in float32 and rounded: that shows the cost in loss, not in time.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from nsfse.config import load_config
from nsfse.data.registry import open_source
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.autocast import choose
from nsfse.models.baselines import build_model
from nsfse.models.device import pick_device
from nsfse.models.pretrained import feature_extractor, freeze, load_pretrained, own_tokenizer, resolve_config
from nsfse.training.dataloader import ImageCache, make_batch
from nsfse.training.distributed import DistributedContext
from nsfse.training.trainer import Trainer
from nsfse_runtime.inference.tokenizer import Tokenizer

MODES = {"float32": "off", "bfloat16": "on"}
WARM = 2
"""Steps before the clock starts."""


def measure(preset: str | None, steps: int, overrides: list[str], data: Path | None = None) -> dict[str, Any]:
    """Return seconds a step, and the loss of each step, of both modes."""
    config = resolve_config(load_config(preset, None, overrides, data))
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    folder = Path(config.data.folder) if config.data.folder else None
    source = open_source(config.data.source, folder, **config.data.options)
    triplets = source.triplets(0)
    device = pick_device(config.train.device)
    with tempfile.TemporaryDirectory() as temporary:
        texts = [triplet.text for triplet in triplets]
        words = own_tokenizer(config.model) or build_vocabulary(texts)
        path = Path(temporary) / "tokenizer.json"
        path.write_text(words.to_str(), "utf-8")
        tokenizer = Tokenizer.from_file(path, config.model.max_words)
        trainers = {}
        for mode, amp in MODES.items():
            changed = load_config(bases=[_tree(config)], overrides=[f"train.bf16_autocast={amp}"])
            torch.manual_seed(config.train.seed)
            model = build_model(changed.model, len(tokenizer))
            load_pretrained(model, path)
            freeze(model, changed)
            model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            trainers[mode] = Trainer(changed, model, 1000)
    extractor = feature_extractor(trainers["float32"].model, config)
    images = ImageCache(source, config.model.image_size, config.train.cache_gb * 2**30, config.train.workers, extractor)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    losses: dict[str, list[float]] = {mode: [] for mode in MODES}
    size = config.train.batch
    for index in range(WARM + steps):
        start = index * size % (len(triplets) - size + 1)
        batch = make_batch(triplets[start : start + size], images, tokenizer, DistributedContext())
        for mode, trainer in trainers.items():
            began = time.perf_counter()
            losses[mode].append(trainer.train_step(batch)["loss"])  # reads the loss, so the device is done
            seconds[mode] += [time.perf_counter() - began] if index >= WARM else []
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    precision = trainers["bfloat16"].precision
    return {
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "preset": preset,
        "native": precision.native,
        "auto": str(choose("auto", device)),
        "seconds_per_step": {mode: round(value, 4) for mode, value in medians.items()},
        "times_faster": round(medians["float32"] / medians["bfloat16"], 3),
        "losses": {mode: [round(value, 4) for value in values] for mode, values in losses.items()},
    }


def _tree(config: Any) -> dict[str, Any]:
    import msgspec

    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="drawn-easy")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    print(json.dumps(measure(options.preset, options.steps, options.set, options.data), indent=2))


if __name__ == "__main__":
    main()
