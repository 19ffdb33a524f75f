"""A run without training: a dual encoder, and a composition that has nothing to learn."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nsfse.config import Config, parse_config
from nsfse.models.backbones.dual_encoder import common_dim, most_words
from nsfse.models.baselines import METHODS, build_model
from nsfse.models.checkpoint import save_tensors, write_file, write_header
from nsfse.models.pretrained import load_pretrained, origin, own_tokenizer, resolve_config
from nsfse_runtime.errors import UsageError

TRAINING_FREE = ("slerp", "sum", "image-only", "text-only")
LONGEST = 75
"""Words that are read at most: a CLIP's. Towers of the BERT kind have 512 positions, and learned from short texts."""


@contextmanager
def untrained_run(
    weights: str, *, backbone: str = "clip", method: str = "slerp", text_share: float = 0.5
) -> Iterator[Path]:
    """Give a run that was never trained, to export: the dual encoder at `weights` and a method of TRAINING_FREE.

    `weights` is a folder or `hub:OWNER/NAME`; `text_share` is how much the text counts, 0...1. The run is gone when the
    block ends. Raises UsageError (a backbone or method that would have to learn) and the errors of the weights.
    """
    config = _configuration(backbone, weights, method, text_share)
    words = own_tokenizer(config.model)
    assert words is not None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_file(run / "tokenizer.json", words.to_str().encode())
        model = build_model(config.model, words.get_vocab_size())
        load_pretrained(model, run / "tokenizer.json")
        description = {"training": f"none; {method} of image and text, the text's share {text_share:g}"}
        write_header(run, config, words.get_vocab_size(), description | origin(config.model))
        save_tensors(run / "model.safetensors", model.state_dict())
        yield run


def _configuration(backbone: str, weights: str, method: str, text_share: float) -> Config:
    if backbone != "clip":
        raise UsageError(
            f"{backbone} has no common space of images and words before it is trained; use --backbone clip"
        )
    if method not in TRAINING_FREE:
        learns = "has to learn" if method in (*METHODS, "nsfse") else "is no method"
        raise UsageError(f"{method} {learns}; without training there are: {', '.join(TRAINING_FREE)}")
    named = {"backbone": backbone, "weights": weights, "method": method, "text_share": text_share}
    config = resolve_config(parse_config({"model": named}, "import-clip"))
    described = config.model.clip_config
    side, words = described["config"]["vision_config"]["image_size"], min(most_words(described), LONGEST)
    model = msgspec.structs.replace(config.model, image_size=(side, side), dim=common_dim(described), max_words=words)
    return msgspec.structs.replace(config, model=model)
