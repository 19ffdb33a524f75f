"""A checkpoint in torch behind the one interface of `nsfse_runtime.types.Scorer`."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nsfse_runtime.types import (
    Boundaries,
    Floats,
    ModelInfo,
    PairScores,
    Pixels,
    QueryFeatures,
    TargetFeatures,
    no_evidence,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nsfse.models.baselines import Baseline
    from nsfse.models.nsfse import NSFSE
    from nsfse.models.similarity_head import QueryEncoding
    from nsfse.models.training_free import TrainingFree
    from nsfse_runtime.inference.confidence import Decision
    from nsfse_runtime.inference.tokenizer import Tokenizer


class TorchScorer:
    """A model in torch, in evaluation mode; `decision` tells a match, where there is one."""

    def __init__(
        self, model: "NSFSE | TrainingFree | Baseline", tokenizer: "Tokenizer", decision: "Decision | None" = None
    ) -> None:
        self.model, self.tokenizer, self.decision = model, tokenizer, decision
        self.device = next(model.parameters()).device

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the (height, width) that `encode_images` takes."""
        return self.model.config.image_size

    @property
    def info(self) -> ModelInfo:
        """Return what the model says of itself, as its weights are now."""
        from nsfse.models.baselines import Baseline

        mix, boundaries = (1.0, 0.0), None
        if not isinstance(self.model, Baseline):
            head = self.model.head
            w_global, w_cross, _ = head.fusion_weights().tolist()
            mix = w_global, w_cross
            boundaries = Boundaries(head.cross_boundary.t, head.visual_boundary.t, head.global_tokens)
        return ModelInfo(self.model.mode, mix, None, boundaries, self.decision, str(self.device), None)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        """Encode `pixels` [B, H, W, 3] uint8, already fitted to `image_size`."""
        import torch

        with torch.inference_mode():
            vectors, regions = self._encode(self._tensor(np.ascontiguousarray(pixels)))
        return TargetFeatures(vectors.cpu().numpy(), regions.cpu().numpy())

    def _encode(self, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        return self.model.encode_images(pixels)

    def _tensor(self, array: Any) -> "Tensor":
        import torch

        return torch.from_numpy(array).to(self.device)

    def _text(self, texts: Sequence[str]) -> tuple[Any, Any, Any]:
        import torch

        ids, mask = (self._tensor(array) for array in self.tokenizer.encode(texts))
        with torch.inference_mode():
            words, sentence = self.model.encode_text(ids, mask)
        return words, sentence, mask

    def sentence(self, texts: Sequence[str]) -> Floats:
        """Return sentence vectors [B, d], the query of the text-only mode."""
        sentences: Floats = self._text(texts)[1].cpu().numpy()
        return sentences

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        """Compose B references with B texts. Raises TextError for a text without a known word."""
        import torch

        words, sentence, mask = self._text(texts)
        with torch.inference_mode():
            query, side = self.model.compose(
                self._tensor(references.vectors), self._tensor(references.regions), words, sentence, mask
            )
        others = side.probes.shape[1] - side.words.shape[1]  # probes that belong to no word
        query, side = query.cpu(), side.to("cpu")
        queries = []
        for row, text in enumerate(texts):
            length = int(mask[row].sum())
            queries.append(
                QueryFeatures(
                    query[row].numpy(),
                    side.words[row, :length].numpy(),
                    side.probes[row, : others + length].numpy(),
                    side.word_weights[row, :length].numpy(),
                    side.probe_weights[row, : others + length].numpy(),
                    self._tokens(text, side.words.shape[1]),
                )
            )
        return queries

    def _tokens(self, text: str, rows: int) -> tuple[str, ...]:
        """Return what the words' rows stand for: words; the whole text where there is one row for it; or nothing."""
        each = self.model.config.words == "each"
        return self.tokenizer.tokens(text) if each and rows else (text,)[:rows]

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        """Score one query against K targets."""
        import torch

        from nsfse.models.baselines import Baseline

        if isinstance(self.model, Baseline):
            rows = (torch.from_numpy(array) for array in (query.vector[None], query.probes[None], targets.vectors))
            with torch.inference_mode():
                return no_evidence(self.model.scores(*rows)[0].numpy())
        head = self.model.head
        with torch.inference_mode():
            side, vectors = query_encoding(query).to(self.device), self._tensor(targets.vectors)[None]
            pair = head.pair_similarities(side, self._tensor(targets.regions)[None])
            score = self.model.total(self._tensor(query.vector)[None], vectors, pair)
            words = self.model.word_scores(side.words, vectors, pair)
        return PairScores(score[0].cpu().numpy(), words[0].cpu().numpy(), head.cross_boundary.t)


class FeatureScorer(TorchScorer):
    """A scorer whose images come as features that frozen stages of the trunk have computed before."""

    def _encode(self, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        return self.model.encode_features(pixels)


def make_scorer(
    model: "NSFSE | TrainingFree | Baseline", tokenizer: "Tokenizer", *, cached_features: bool
) -> TorchScorer:
    """Return a scorer of images, or of features where training caches these (pretrained.feature_extractor)."""
    return (FeatureScorer if cached_features else TorchScorer)(model, tokenizer)


def query_encoding(query: QueryFeatures) -> "QueryEncoding":
    """Return one query as the head takes it, a batch of one."""
    import torch

    from nsfse.models.similarity_head import QueryEncoding

    def row(array: Floats) -> "Tensor":
        return torch.from_numpy(array)[None]

    return QueryEncoding(
        row(query.words),
        row(query.probes),
        row(query.word_weights),
        row(query.probe_weights),
        torch.ones(1, len(query.words), dtype=torch.bool),
    )
