"""What speed is measured on: by default a CLIP of random weights, with random galleries and images."""

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nsfse.config import Config, ModelConfig
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.backbones.dual_encoder import MEAN, STD
from nsfse.models.checkpoint import save_tensors, write_file, write_header
from nsfse.models.nsfse import NSFSE
from nsfse.models.torch_scorer import TorchScorer
from nsfse_runtime.errors import ImageError, UsageError
from nsfse_runtime.gallery import store
from nsfse_runtime.images.decode import decode_image
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import TOKENIZER
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.types import Floats, Scorer, TargetFeatures

TEXT = "make it red"
"""The text of the queries: three words, as many queries have."""
VOCABULARY_TEXTS = (TEXT, "but with longer sleeves and a darker pattern than this one has")

_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_hidden_layers": 12}
_VOCABULARY, _POSITIONS, _SIDE = 49408, 77, 224
VIT_B_32: dict[str, Any] = {
    "text_config": _SHARED
    | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    | {"vocab_size": _VOCABULARY, "max_position_embeddings": _POSITIONS},
    "vision_config": _SHARED
    | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    | {"image_size": _SIDE, "patch_size": 32, "num_channels": 3},
    "projection_dim": 512,
    "start": _VOCABULARY - 2,
    "end": _VOCABULARY - 1,
    "mean": list(MEAN),
    "std": list(STD),
}
_REGION_SETS = 256  # distinct regions in a random gallery; more would measure the same


@dataclass
class Setting:
    """One model in torch and as bundles by precision, with where to write and when to stop.

    Attributes:
        run: Folder of the run.
        torch: The model in torch.
        models: The model's bundles by precision.
        folder: Folder for galleries and images.
        rounds: Rounds of each measurement.
        deadline: When to begin nothing more, in seconds of time.monotonic.
        left_out: What was not measured for want of time.
        galleries: Random galleries by their number of images.
    """

    run: Path
    torch: TorchScorer
    models: dict[str, OnnxScorer]
    folder: Path
    rounds: int
    deadline: float
    left_out: list[str] = field(default_factory=list)
    galleries: dict[int, Path] = field(default_factory=dict)

    @property
    def best(self) -> OnnxScorer:
        """Return the bundle's model that a CPU would serve: int8 where there is one."""
        return self.models.get("int8", self.models["fp32"])

    @property
    def text(self) -> str:
        """Return the text of the queries."""
        return query_text(self.best.bundle)

    @property
    def scorers(self) -> dict[str, Scorer]:
        """Return the model's forms by name, torch first."""
        return {"torch": self.torch, **self.models}

    def out_of_time(self, step: str) -> bool:
        """Return whether there is no time left for `step`, which is then added to `left_out`."""
        late = time.monotonic() > self.deadline
        if late:
            self.left_out.append(step)
        return late

    def gallery(self, size: int) -> Path:
        """Return a random gallery of `size` images for the best bundle."""
        if size not in self.galleries:
            self.galleries[size] = write_random_gallery(self.folder / f"{size}.gallery", self.best.bundle, size)
        return self.galleries[size]


def write_random_clip_run(run: Path, dim: int, cells: int) -> Path:
    """Write the run of an NSFSE on a CLIP ViT-B/32 of random weights, untrained, and return its folder."""
    clip_config = VIT_B_32 | {"cells": cells}
    model = ModelConfig(
        backbone="clip", clip_config=clip_config, image_size=(_SIDE, _SIDE), dim=dim, max_words=_POSITIONS - 2
    )
    run.mkdir(parents=True)
    write_file(run / TOKENIZER, build_vocabulary(VOCABULARY_TEXTS).to_str().encode())
    torch.manual_seed(0)
    write_header(run, Config(model=model), _VOCABULARY, {"source": "nothing (random weights)"})
    save_tensors(run / "model.safetensors", NSFSE(model, _VOCABULARY).state_dict())
    return run


def query_text(bundle: Bundle) -> str:
    """Return TEXT, or three words of the model's vocabulary where it knows none of it."""
    vocabulary = [
        word
        for word in json.loads(bundle.read(TOKENIZER))["model"].get("vocab", {})
        if isinstance(word, str) and word.isalpha()
    ]
    if not vocabulary or set(TEXT.split()) & {word.removesuffix("</w>") for word in vocabulary}:
        return TEXT
    return " ".join(islice(vocabulary, 3))


def clustered_vectors(size: int, dim: int, random: np.random.Generator, *, independent: bool = False) -> Floats:
    """Draw unit vectors `[size, dim]`, 100 around each centre of a low-rank space, similar to real features.

    With `independent` they are nearly independent instead: the worst case of an index.
    """
    rank = dim if independent else min(64, dim)
    basis = random.normal(size=(rank, dim)).astype(np.float32) / np.sqrt(rank)
    centres = random.normal(size=(max(1, size // 100), rank)).astype(np.float32)
    vectors = np.empty((size, dim), np.float32)
    for start in range(0, size, 50_000):
        rows = vectors[start : start + 50_000]
        noise = random.standard_normal((len(rows), rank), np.float32)
        points = noise if independent else centres[random.integers(len(centres), size=len(rows))] + 0.5 * noise
        rows[:] = points @ basis + 0.3 * random.standard_normal(rows.shape, np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def write_random_gallery(path: Path, bundle: Bundle, size: int) -> Path:
    """Write a gallery of `size` images with random features for `bundle`, and return its path.

    All else is as an index leaves it: the cost of a query does not depend on the features. Ids are `image_id(0)` ...
    """
    manifest, random = bundle.manifest, np.random.default_rng(size)
    vectors = clustered_vectors(size, manifest.dim, random)
    regions = random.standard_normal((_REGION_SETS, manifest.regions, manifest.dim)).astype(np.float32)
    regions /= np.linalg.norm(regions, axis=-1, keepdims=True)
    store.create(path, bundle.fingerprint, str(bundle.path.absolute()))
    with store.GalleryTables.open_writer(path) as gallery, gallery.writing():
        encoded = [gallery.encode_regions(rows) for rows in regions]
        for number, vector in enumerate(vectors):
            content = gallery.put_content(number.to_bytes(32, "big"), vector, encoded[number % _REGION_SETS])
            gallery.put_item(image_id(number), content, (0, 0), "{}")
        gallery.write_meta({"dim": manifest.dim, "regions": manifest.regions})
        gallery.advance()
    return path


def image_id(key: int) -> str:
    """Return the id of an image of a random gallery."""
    return f"made-{key:07d}.jpg"


def cycle_ids(size: int) -> Iterator[str]:
    """Return ids of a random gallery, one after another without end."""
    return (image_id(97 * index % size) for index in count())


def random_targets(setting: Setting, size: int) -> TargetFeatures:
    """Draw unit features of `size` images in the shapes of the model."""
    manifest, random = setting.best.bundle.manifest, np.random.default_rng(1)
    vectors = random.standard_normal((size, manifest.dim), np.float32)
    regions = random.standard_normal((size, manifest.regions, manifest.dim), np.float32)
    return TargetFeatures(
        vectors / np.linalg.norm(vectors, axis=-1, keepdims=True),
        regions / np.linalg.norm(regions, axis=-1, keepdims=True),
    )


def long_text(text: str, words: int) -> str:
    """Return `text` repeated up to so many words."""
    return " ".join((text.split() * words)[:words])


def random_jpeg(megapixels: float) -> bytes:
    """Return a JPEG of 4 to 3 with as much detail as a photograph (about 0.25 bytes a pixel)."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size, random = (width, round(width * 3 / 4)), np.random.default_rng(zlib.crc32(b"photo"))
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (size[1], size[0], 1))
    data = BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()


def check_sizes(sizes: list[int]) -> None:
    """Raise UsageError for galleries that cannot be made."""
    if not sizes or min(sizes) < 200:
        raise UsageError("--sizes are the images of galleries to measure, by commas, 200 at least: 10000,100000")


def check_photos(folder: Path) -> None:
    """Raise UsageError for a folder without an image."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with suppress(ImageError):
            decode_image(path)
            return
    raise UsageError(f"no image in {folder}; give a folder of images with --photos")
