"""Tiny dual encoders with random weights, one a family, each with a tokenizer of its kind."""

import json
import math
from pathlib import Path

import torch
from transformers import (
    AltCLIPConfig,
    AutoModel,
    BertConfig,
    ChineseCLIPConfig,
    CLIPConfig,
    CLIPSegConfig,
    MetaClip2Config,
    SiglipConfig,
    VisionTextDualEncoderConfig,
    ViTConfig,
)
from transformers.utils import logging
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from tests.small_clip import END, START, WORDS, small_tokenizer

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = SHAPE | {"image_size": 32, "patch_size": 8, "hidden_size": 24}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz红色"


def write_clip_vocabulary(folder: Path) -> dict:
    """Write vocab.json and merges.txt and return the ids of the text's configuration."""
    made = small_tokenizer()
    model = json.loads(made.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"])]), "utf-8")
    ids = {"bos_token_id": made.token_to_id(START), "eos_token_id": made.token_to_id(END)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": START,
                "eos_token": END,
                "pad_token": END,
                "unk_token": END,
            }
        )
    )
    return ids | {
        "pad_token_id": ids["eos_token_id"],
        "vocab_size": made.get_vocab_size(),
        "max_position_embeddings": 16,
    }


def write_bert_vocabulary(folder: Path) -> dict:
    """Write a BERT's vocab.txt."""
    pieces = [*CHARACTERS, *(f"##{letter}" for letter in CHARACTERS), *" ".join(WORDS).split()]
    words = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]))
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"})
    )
    return {"vocab_size": len(words), "pad_token_id": 0, "max_position_embeddings": 32}


def write_sentencepiece(folder: Path, name: str, special: list[str]) -> int:
    """Write a SentencePiece model of letters and some words, and return its size."""
    model = sentencepiece.ModelProto()
    words = [f"▁{word}" for word in dict.fromkeys(" ".join(WORDS).split())]
    for at, piece in enumerate([*special, "▁", *CHARACTERS, *words]):
        kind = 2 if piece == "<unk>" else 3 if at < len(special) else 1
        model.pieces.add(piece=piece, score=-math.log(2 + at), type=kind)
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = special.index("<unk>")
    (folder / name).write_bytes(model.SerializeToString())
    return len(model.pieces)


def write_siglip_vocabulary(folder: Path) -> dict:
    """Write spiece.model; its texts are padded to all positions with the end token."""
    size = write_sentencepiece(folder, "spiece.model", ["<pad>", "</s>", "<unk>"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "</s>", "eos_token": "</s>"}))
    return {"vocab_size": size, "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 1}


def write_roberta_vocabulary(folder: Path) -> dict:
    """Write sentencepiece.bpe.model as XLM-RoBERTa's: its special tokens come first, its padding is 1."""
    size = write_sentencepiece(folder, "sentencepiece.bpe.model", ["<unk>", "<s>", "</s>"]) + 2
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return ids | {"vocab_size": size, "max_position_embeddings": 34, "type_vocab_size": 1}


def _pair(kind, write, **more):
    def make(folder):
        text = SHAPE | write(folder) | more
        return kind(text_config=text, vision_config=IMAGE, projection_dim=20)

    return make


def _siglip(folder):
    text = SHAPE | write_siglip_vocabulary(folder) | {"hidden_size": 24, "projection_size": 24}
    return SiglipConfig(text_config=text, vision_config=IMAGE)


def _gemma_siglip(folder):
    """SigLIP 2 of fixed resolution: a SigLIP whose tokenizer.json pads on the left."""
    config = _siglip(folder)
    from nsfse.models.backbones.text_tokens import _whole_tokenizer

    _whole_tokenizer(str(folder), "siglip").save(str(folder / "tokenizer.json"))
    (folder / "spiece.model").unlink()
    settings = {"pad_token": {"content": "<pad>"}, "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return config


def _two_towers(folder):
    text = BertConfig(**SHAPE | write_bert_vocabulary(folder))
    return VisionTextDualEncoderConfig(
        vision_config=ViTConfig(**IMAGE).to_dict(), text_config=text.to_dict(), projection_dim=20
    )


FAMILIES = {
    "clip": _pair(CLIPConfig, write_clip_vocabulary),
    "metaclip_2": _pair(MetaClip2Config, write_roberta_vocabulary),
    "altclip": _pair(AltCLIPConfig, write_roberta_vocabulary, project_dim=20),
    "chinese_clip": _pair(ChineseCLIPConfig, write_bert_vocabulary),
    "clipseg": _pair(CLIPSegConfig, write_clip_vocabulary),
    "siglip": _siglip,
    "siglip-2-fixed": _gemma_siglip,
    "vision-text-dual-encoder": _two_towers,
}


def write_small_dual_encoder(folder: Path, family: str, binary: bool = False) -> Path:
    """Write the folder of a family and return it; `binary` writes pytorch_model.bin."""
    logging.disable_progress_bar()
    torch.manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModel.from_config(FAMILIES[family](folder)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():  # else tokens differ little, and nothing is shown
            if tensor.ndim > 1 and "norm" not in name:
                tensor.normal_(0, 0.3)
    model.save_pretrained(folder)
    if binary:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
