"""A tiny CLIP with random weights in a folder, saved by transformers, with a byte-level BPE tokenizer of its own."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ("make it red and longer", "is blue instead of green", "the same in black without a collar", "round", "square")


def small_tokenizer() -> Tokenizer:
    """Return a tokenizer built as CLIP's is: lower case, byte-level BPE with word ends, special tokens at both ends."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(r"'s|'t|'re|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator([*WORDS] * 3, trainer)
    ends = {word: made.token_to_id(word) for word in (START, END)}
    made.post_processor = processors.RobertaProcessing(
        (END, ends[END]), (START, ends[START]), trim_offsets=False, add_prefix_space=False
    )
    made.enable_truncation(16)
    made.enable_padding(pad_id=ends[END], pad_token=END)
    return made


def write_small_clip(folder: Path) -> Path:
    """Write the folder and return it."""
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = small_tokenizer()
    ends = {"bos_token_id": tokenizer.token_to_id(START), "eos_token_id": tokenizer.token_to_id(END)}
    config = CLIPConfig(
        text_config=shape | ends | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 16},
        vision_config=shape | {"image_size": 32, "patch_size": 16, "hidden_size": 48},
        projection_dim=24,
    )
    logging.disable_progress_bar()
    CLIPModel(config).eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
