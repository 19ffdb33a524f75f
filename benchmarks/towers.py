"""Towers of random weights for the GPU benchmarks: CLIP's shapes, and a bundle of NSFSE on them."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nsfse
from nsfse.config import ModelConfig
from nsfse.models.backbones.base import Backbone, ImageEncoder, TextEncoder
from nsfse.models.backbones.registry import BACKBONES
from nsfse.models.nsfse import NSFSE
from nsfse_runtime.inference.manifest import Manifest, write_manifest

try:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
except ImportError:
    sys.exit("transformers is not installed; run: pip install transformers")

BASE = {
    "image": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
    "side": 224, "patch": 32, "dim": 512, "words": 20, "vocabulary": 49408, "steps": 20,
}  # fmt: skip
TOY = {
    "image": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "side": 32, "patch": 16, "dim": 32, "words": 6, "vocabulary": 64, "steps": 2,
}  # fmt: skip

TOWERS = {
    "ViT-B/32": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "image_size": 224, "patch_size": 32},
    "ViT-L/14": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14},
}  # fmt: skip
TINY = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 32, "patch_size": 16},
}  # fmt: skip


class ImageTower(ImageEncoder):
    """A CLIP image tower of random weights: [B, 3, H, W] in 0..1 → unit vectors [B, d], unit regions [B, R, d]."""

    def __init__(self, size: dict[str, Any]) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(**size["image"], image_size=size["side"], patch_size=size["patch"])
        )
        self.vector = nn.Linear(size["image"]["hidden_size"], size["dim"])
        self.region = nn.Linear(size["image"]["hidden_size"], size["dim"])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images."""
        output = self.tower(pixel_values=(pixels - 0.45) * 4.0)
        regions = self.region(output.last_hidden_state[:, 1:])
        return F.normalize(self.vector(output.pooler_output).float(), dim=-1), F.normalize(regions.float(), dim=-1)


class TextTower(TextEncoder):
    """A CLIP text tower of random weights: [B, L] → unit words [B, L, d], unit sentences [B, d]."""

    def __init__(self, size: dict[str, Any]) -> None:
        super().__init__()
        self.tower = CLIPTextModel(
            CLIPTextConfig(**size["text"], vocab_size=size["vocabulary"], bos_token_id=1, eos_token_id=2)
        )
        self.word = nn.Linear(size["text"]["hidden_size"], size["dim"])
        self.sentence = nn.Linear(size["text"]["hidden_size"], size["dim"])

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts; the sentence is the last word's state."""
        states = self.tower(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        last = states.gather(1, (mask.sum(1) - 1)[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
        words, sentence = self.word(states).float(), self.sentence(last).float()
        return F.normalize(words, dim=-1) * mask[..., None], F.normalize(sentence, dim=-1)


class RandomClip(Backbone):
    """Both towers of a CLIP of this size, with random weights."""

    name = "random-clip"
    reads_weights = False

    def __init__(self, size: dict[str, Any]) -> None:
        self.size = size

    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both towers."""
        return ImageTower(self.size), TextTower(self.size)


class Encoder(nn.Module):
    """pixels [B, H, W, 3] uint8 → unit vectors [B, h] float32; the tower computes in `dtype`, the ends in float32."""

    def __init__(self, size: dict[str, int], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype, self.tower = dtype, CLIPVisionModel(CLIPVisionConfig(**size)).eval().to(dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images."""
        planes = (pixels.float().permute(0, 3, 1, 2) / 255 - 0.45) * 4
        return F.normalize(self.tower(pixel_values=planes.to(self.dtype)).pooler_output.float(), dim=-1)


def flops(size: dict[str, int]) -> float:
    """Return the floating-point operations of a tower for one image."""
    h, tokens = size["hidden_size"], (size["image_size"] // size["patch_size"]) ** 2 + 1
    linear = (
        size["num_hidden_layers"] * (4 * h * h + 2 * h * size["intermediate_size"]) + 3 * size["patch_size"] ** 2 * h
    )
    return 2.0 * tokens * linear + 4.0 * size["num_hidden_layers"] * tokens * tokens * h


def random_bundle(folder: Path, smoke: bool) -> Path:
    """Write a bundle of NSFSE with random weights on the towers of ViT-B/32, and return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from nsfse_export.export import head_constants, to_onnx
    from nsfse_export.graphs import build_graphs

    size = TOY if smoke else BASE
    BACKBONES["random-clip"] = RandomClip(size)
    config = ModelConfig(backbone="random-clip", image_size=(size["side"],) * 2, dim=size["dim"])
    torch.manual_seed(0)
    model = NSFSE(config, size["vocabulary"]).eval()
    graphs = build_graphs(model)
    for name, graph in graphs.items():
        (folder / f"{name}.onnx").write_bytes(to_onnx(name, graph))
    words = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "make", "it", "red", "and", "longer"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    head = head_constants(model)
    write_manifest(
        folder,
        Manifest(
            name="NSFSE on random ViT-B/32",
            created_with=nsfse.__version__,
            image_size=config.image_size,
            dim=config.dim,
            regions=int(graphs["image"].outputs["regions"][1]),
            max_words=config.max_words,
            boundary={"t_c": head.t_c},
            head=head.to_dict(),
        ),
    )
    return folder
