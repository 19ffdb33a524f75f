"""Give a dual encoder word evidence: fitted to a folder of images, without labels (docs/method.md §11)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from nsfse.models.baselines import build_model
from nsfse.models.checkpoint import load_checkpoint, save_tensors, write_decision, write_header
from nsfse.models.training_free import TrainingFree, prompt_ids
from nsfse.models.zero_shot import TRAINING_FREE
from nsfse.training.fit_without_labels import Evidence, fit_without_labels
from nsfse_runtime.errors import ImageError, NotFoundError, UsageError
from nsfse_runtime.gallery.scan import list_folder
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.types import Pixels

MOST_IMAGES, BATCH = 2000, 32


class FolderImages:
    """Images of a folder, up to MOST_IMAGES: how many are `used`, and the `skipped` with their reasons."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        if not folder.is_dir():
            raise NotFoundError(f"no folder {folder}; give one with images like those that will be searched")
        self._folder, self._size = folder, size
        self.used, self.skipped = 0, list[tuple[str, str]]()

    def batches(self) -> Iterator[Pixels]:
        """Yield pixels [B, H, W, 3]; broken images are skipped."""
        names = sorted(list_folder(self._folder).files)
        chosen = [
            names[at] for at in np.linspace(0, len(names), min(MOST_IMAGES, len(names)), endpoint=False, dtype=int)
        ]
        for start in range(0, len(chosen), BATCH):
            read = [pixels for name in chosen[start : start + BATCH] if (pixels := self._read(name)) is not None]
            self.used += len(read)
            if read:
                yield np.stack(read)

    def _read(self, name: str) -> Pixels | None:
        try:
            return load_image(self._folder / name, self._size)
        except ImageError as error:
            self.skipped.append((name, str(error)))
            return None


def add_evidence(run: Path, images: Path, prompt: str = "") -> tuple[Evidence | None, FolderImages]:
    """Give a run of a dual encoder word evidence and confidence, fitted to a folder of images; `run` is replaced.

    Args:
        run: A run of one of the methods that compose without parameters, trained or not.
        images: The folder; of more than MOST_IMAGES some are taken, evenly spread.
        prompt: What is read before each word, such as "a photo of".

    Returns:
        What was fitted, None where the run stays as it was; and what was read of the folder.

    Raises:
        NotFoundError: There is no such folder.
        UsageError: The run's method has another way to compose.
        DataError: It has too few images.
    """
    checkpoint = load_checkpoint(run)
    config = checkpoint.config.model
    if config.method not in TRAINING_FREE:
        raise UsageError(f"{run} is of the method {config.method}; evidence is fitted to {', '.join(TRAINING_FREE)}")
    tokens = FastTokenizer.from_file(str(run / "tokenizer.json"))
    before = prompt_ids(tokens, prompt)
    named: dict[str, Any] = {
        "evidence": "regions",
        "evidence_prompt": before,
        "max_words": config.max_words - len(before),
    }
    model = build_model(msgspec.structs.replace(config, **named), tokens.get_vocab_size()).eval()
    if not isinstance(model, TrainingFree):
        raise TypeError(f"{type(model).__name__} has no evidence")
    model.load_state_dict(checkpoint.model.state_dict(), strict=False)
    model.marks.read(tokens)
    folder = FolderImages(images, config.image_size)
    evidence = fit_without_labels(model, tokens, folder.batches())
    if evidence:
        header = msgspec.structs.replace(checkpoint.config, model=model.config)
        about = {"evidence": f"fitted without labels to {folder.used} images, words sought in {evidence.place}"}
        write_header(run, header, tokens.get_vocab_size(), checkpoint.info.get("trained_on", {}) | about)
        save_tensors(run / "model.safetensors", model.state_dict())
        write_decision(run, evidence.decision)
    return evidence, folder


def evidence_line(evidence: Evidence | None, folder: FolderImages) -> str:
    """Return a line on what was fitted, and to what."""
    skipped = f" ({len(folder.skipped)} skipped: {'; '.join(map(': '.join, folder.skipped[:3]))})" * bool(
        folder.skipped
    )
    images = f"{folder.used} images{skipped}"
    if evidence is None:
        return f"no evidence: in {images} no word of the vocabulary stands out"
    place = "regions" if evidence.place == "regions" else "whole images, since regions do not say what whole images do"
    return f"evidence fitted to {images}: words are looked for in {place}, t_c {evidence.boundary['t']:.3f}"
