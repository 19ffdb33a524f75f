"""A run's folder with seeded random weights: all that export and parity need, without training."""

from pathlib import Path

import msgspec
import torch

from nsfse.config import Config, ModelConfig
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.baselines import Baseline, build_model
from nsfse.models.checkpoint import save_tensors, write_file, write_header
from nsfse.models.nsfse import NSFSE

TEXTS = (
    "make it red and longer, with no stripes",
    "is blue instead of green",
    "the same in black but without a collar",
    "has shorter sleeves and a darker pattern",
)


def random_model(
    config: ModelConfig, vocabulary: int, seed: int = 0, t_c: float = 0.1, t_v: float = 0.2
) -> NSFSE | Baseline:
    """Return a model in evaluation mode with boundaries in the midst of its correspondences, and running statistics."""
    torch.manual_seed(seed)
    model = build_model(config, vocabulary)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        if isinstance(model, Baseline):
            return model.eval()
        model.head.mix.copy_(torch.tensor([0.3, 0.9, 0.6]))
        if model.blocks:
            model.blocks.agreement_weights.uniform_(0.2, 0.8)
            model.blocks.naming_weight.normal_(0, 0.2)
            model.blocks.naming_bias.zero_()
        for boundary, t in ((model.head.cross_boundary, t_c), (model.head.visual_boundary, t_v)):
            boundary.state.copy_(torch.tensor([300.0, 120.0, 60.0, 300.0, 30.0, 12.0, t, 0.4, 1.0]))
    return model.eval()


def write_random_run(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """Write a run of a random model that knows the words of TEXTS, with two epochs of made-up scores."""
    folder.mkdir(parents=True)
    vocabulary = build_vocabulary(TEXTS)
    write_file(folder / "tokenizer.json", vocabulary.to_str().encode())
    trained_on = {"source": "nothing (random weights)", "triplets_per_epoch": 0, "epochs": 2}
    write_header(folder, Config(model=config), vocabulary.get_vocab_size(), trained_on)
    save_tensors(folder / "model.safetensors", random_model(config, len(vocabulary.get_vocab()), seed).state_dict())
    save_tensors(folder / "best.safetensors", random_model(config, len(vocabulary.get_vocab()), seed + 1).state_dict())
    entries = [
        {"step": 1, "of": 2, "loss": 1.0},
        {"epoch": 1, "step": 1, "made-up": {"queries": 4, "R@1": 50.0}, "mean_R@1": 50.0},
        {"epoch": 2, "step": 2, "made-up": {"queries": 4, "R@1": 25.0}, "mean_R@1": 25.0},
    ]
    write_file(folder / "metrics.jsonl", b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    return folder
