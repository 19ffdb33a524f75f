"""A pre-trained sentence encoder, such as all-MiniLM-L6-v2, that says what words mean before any image is seen.

It is read when a run starts. The run and its bundle hold word vectors made from it, and need it no more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from nsfse.models.backbones.weights_folder import first_line, hub_source
from nsfse_runtime.errors import DataError, NotFoundError
from nsfse_runtime.extras import need

MAX_TOKENS = 64
CHUNK = 256


class TextTeacher:
    """Texts to unit vectors: the mean of the encoder's last states.

    Args:
        weights: A folder saved by transformers, or `hub:OWNER/NAME`.

    Raises:
        MissingExtraError: transformers is not installed.
        NotFoundError: There is no such folder.
        DataError: It holds no encoder that can be read.
    """

    def __init__(self, weights: str) -> None:
        need("transformers", "clip")
        from transformers import AutoModel, AutoTokenizer

        source, local = hub_source(weights)
        if local and not Path(source).is_dir():
            raise NotFoundError(f"model.text_teacher: no folder {source}; give one saved by transformers, or hub:NAME")
        try:
            self._encoder: Any = AutoModel.from_pretrained(source, local_files_only=local, use_safetensors=True).eval()
            fast = AutoTokenizer.from_pretrained(source, local_files_only=local)
            self._tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        except Exception as error:  # OSError, ValueError, SafetensorError and what hub clients raise
            raise DataError(f"model.text_teacher: {weights} cannot be read ({first_line(error)})") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [N, t] of N texts."""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # texts of like length: little padding
        rows: dict[int, Tensor] = {}
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            rows.update(zip(chunk, self._chunk([texts[at] for at in chunk]), strict=True))
        return torch.stack([rows[at] for at in range(len(texts))]).clone()

    def common_words(self, count: int) -> tuple[str, ...]:
        """Return the first `count` whole words of its vocabulary, which BERT's tokenizers order by frequency."""
        by_id = sorted((number, word) for word, number in self._tokenizer.get_vocab().items())
        words = (word for _, word in by_id if word.isalpha() and len(word) > 1)
        return tuple(word for word, _ in zip(words, range(count), strict=False))

    def _chunk(self, texts: Sequence[str]) -> Tensor:
        read = [self._tokenizer.encode(text).ids for text in texts]
        ids = torch.zeros(len(read), max(map(len, read)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(read):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        states = cast(Tensor, self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
        kept = mask[..., None].float()
        return F.normalize((states * kept).sum(1) / kept.sum(1), dim=-1)


def word_vectors(teacher: TextTeacher, words: Sequence[str], dim: int) -> Tensor:
    """Return the teacher's vectors of single words, centred, in their `dim` main directions, [N, dim].

    Their mean square is 1, as that of fresh embeddings.
    """
    vectors = teacher.vectors(words).double()
    vectors = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    kept = vectors @ directions[:dim].T
    scaled: Tensor = kept / kept.square().mean().sqrt().clamp_min(1e-8)
    return scaled.float()
