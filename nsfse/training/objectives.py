"""What training minimises: an objective takes a batch and its encodings and returns named losses.

The trainer adds the losses by `loss_weights` (docs/method.md §6). Names of losses are those of metrics.jsonl.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import Config, TrainConfig
from nsfse.models.ablations import AblatedHead
from nsfse.models.autocast import NumberTypes
from nsfse.models.backbones.base import scale_gradient
from nsfse.models.baselines import Baseline
from nsfse.models.boundary import AdaptiveBoundary
from nsfse.models.nsfse import NSFSE
from nsfse.models.similarity_head import PairSimilarities, QueryEncoding, TextReading, grams
from nsfse.training import losses
from nsfse.training.dataloader import AttributeClasses, Batch
from nsfse.training.workarounds import seeded

MAX_SCALE = 100.0  # of logits: the inverse of the least temperature
HEAD_SCALE = 10.0  # of unit vectors before a classifier, whose weights start small and decay


@dataclass(frozen=True)
class EncodedBatch:
    """What the encoders made of a batch of B queries over U images, with the word labels that count.

    vectors [U, d], regions [U, R, d], words [B, L, d] and sentence [B, d] are unit rows; titles [T, d] are sentences of
    titles, or None. blocked [B, U] marks images that are no negatives. named [B, L] and fulfils [N, U] are those of the
    batch without the words that were dropped.
    """

    vectors: Tensor
    regions: Tensor
    words: Tensor
    sentence: Tensor
    titles: Tensor | None
    blocked: Tensor
    named: Tensor
    fulfils: Tensor


class Objective(Protocol):
    """A function of a batch that returns losses, scalars, by name."""

    def __call__(self, batch: Batch, encoded: EncodedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses; `generator` makes every random choice."""


def loss_weights(config: TrainConfig) -> dict[str, float]:
    """Return the weight of each loss, in the order in which they are added."""
    return {
        "stage1": 1.0,
        "text": config.sentence_weight,
        "titles": config.title_weight,
        "attributes": config.attribute_weight,
        "naming": config.word_role_weight,
        "evidence": config.word_grounding_weight,
        "views": config.head_weight,
        "head": config.head_weight,
        "distill": config.distill_weight,
        "boundary": config.boundary_weight,
    }


def learns_attributes(config: Config) -> bool:
    """Return whether attributes train the vectors: those of NSFSE, and of a baseline with attribute supervision."""
    supervised = config.model.method == "nsfse" or config.model.attribute_supervision
    return supervised and config.train.attribute_weight > 0


def with_blocks(config: Config, classes: AttributeClasses) -> Config:
    """Return `config` with the number of values of each attribute that the model's vectors have blocks of."""
    if not (config.model.attribute_blocks and config.model.method == "nsfse" and learns_attributes(config)):
        return config
    model = msgspec.structs.replace(config.model, attributes=classes.counts)
    return msgspec.structs.replace(config, model=model)


def weighted_sum(named_losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of the losses by their weights, in the order of `weights`."""
    terms = (weight * named_losses[name] for name, weight in weights.items() if name in named_losses)
    return sum(terms, torch.zeros(()))


def make_objectives(
    model: NSFSE | Baseline, config: TrainConfig, precision: NumberTypes, attributes: "AttributeHeads"
) -> tuple[Objective, ...]:
    """Return what `model` is trained by, in the order of computation."""
    titles = TitleObjective(model, config)
    if isinstance(model, Baseline):
        return titles, BaselineObjective(model, config, attributes)
    if isinstance(model.head, AblatedHead):
        return titles, AblatedObjective(model, config, precision, attributes)
    return titles, NSFSEObjective(model, config, precision, attributes)


def logit_scale(log_scale: Tensor) -> Tensor:
    """Return the factor of cosines, from its logarithm, at most MAX_SCALE."""
    return log_scale.exp().clamp_max(MAX_SCALE)


class TitleObjective:
    """Which image has a title, and which title an image has, among those of the batch."""

    def __init__(self, model: NSFSE | Baseline, config: TrainConfig) -> None:
        self.model, self.smoothing = model, config.label_smoothing

    def __call__(self, batch: Batch, encoded: EncodedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `titles`, or nothing where no image has one."""
        if encoded.titles is None:
            return {}
        logits = logit_scale(self.model.stage1_scale) * encoded.titles @ encoded.vectors[batch.titled].T
        own = torch.arange(len(batch.titled), device=logits.device)
        alike = (batch.title_ids[:, None] == batch.title_ids).all(-1) & (own[:, None] != own)
        both = [losses.masked_cross_entropy(x, alike, own, self.smoothing) for x in (logits, logits.T)]
        return {"titles": 0.5 * (both[0] + both[1])}


class AttributeHeads(nn.Module):
    """A linear classifier of each attribute on unit vectors of images and queries, in training alone.

    Args:
        dim: d of the vectors.
        classes: How many values each attribute has; without any there is no loss.
    """

    def __init__(self, dim: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, count) for count in classes)

    def forward(self, rows: Tensor) -> list[Tensor]:
        """Return the logits [N, C_a] of each attribute for unit `rows` [N, d]."""
        return [head(HEAD_SCALE * rows) for head in self.heads]


def value_losses(
    heads: AttributeHeads, model: NSFSE | Baseline, batch: Batch, vectors: Tensor, query: Tensor
) -> dict[str, Tensor]:
    """Return the loss on attributes of images and queries; nothing where none are learned.

    A query has the attributes of its target: what the text changes comes from the text, the rest from the reference.

    Args:
        heads: The classifiers of a model without blocks of attributes.
        model: The model.
        batch: The batch.
        vectors: Unit vectors of its images [U, d].
        query: Unit vectors of its queries [B, d].
    """
    blocks = model.blocks if isinstance(model, NSFSE) else None
    if blocks is None and not len(heads.heads):
        return {}
    rows, labels = torch.cat([vectors, query]), torch.cat([batch.attributes, batch.attributes[batch.target]])
    logits = [p.log() for p in blocks.distributions(rows)] if blocks else heads(rows)
    return {"attributes": losses.attribute_loss(logits, labels)}


class BaselineObjective:
    """Cross entropy of a baseline's score over the batch, and attributes where it learns them."""

    def __init__(self, model: Baseline, config: TrainConfig, attributes: AttributeHeads) -> None:
        self.model, self.smoothing, self.attributes = model, config.label_smoothing, attributes

    def __call__(self, batch: Batch, encoded: EncodedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `stage1`, and `naming` and `evidence` where attributes are learned."""
        model = self.model
        with seeded(generator.initial_seed(), encoded.vectors.device):  # dropout, like every choice, by (seed, step)
            composed = model.method(encoded.vectors[batch.reference], encoded.sentence)
        logits = model.scores(composed, composed, encoded.vectors)
        scaled = logit_scale(model.stage1_scale) * logits
        loss = losses.masked_cross_entropy(scaled, encoded.blocked, batch.target, self.smoothing)
        query = model.nearest(composed)
        values = value_losses(self.attributes, model, batch, encoded.vectors, query)
        return {"stage1": loss} | values | attribute_losses(model, encoded, batch.ids)


def attribute_losses(model: Baseline, encoded: EncodedBatch, ids: Tensor) -> dict[str, Tensor]:
    """Return what a baseline learns from attributes, nothing for one that does not. An image is one region.

    Args:
        model: A baseline.
        encoded: The batch.
        ids: Word ids [B, L] of its texts.
    """
    if model.facts is None:
        return {}
    words, images, sentence = model.facts(encoded.words, encoded.vectors, encoded.sentence)
    scale, never = logit_scale(model.stage1_scale), AdaptiveBoundary(model.config.alpha)
    grounding = losses.word_grounding_loss(never, words, images[:, None], encoded.named, encoded.fulfils)
    return {
        "naming": losses.sentence_word_role_loss(sentence, words, ids, encoded.named, scale),
        "evidence": grounding,
    }


class NSFSEObjective:
    """The losses of NSFSE: stage 1, the words' roles and looks, the pair head, its boundaries."""

    def __init__(self, model: NSFSE, config: TrainConfig, precision: NumberTypes, attributes: AttributeHeads) -> None:
        self.model, self.config, self.head, self.attributes = model, config, model.head, attributes
        self.products = precision.lowered(model.head.products)

    def __call__(self, batch: Batch, encoded: EncodedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return all losses of `loss_weights` but `titles`; `text` where it has a weight."""
        references = encoded.regions[batch.reference]
        reading = self.head.read(encoded.words, encoded.sentence, batch.mask, references)
        query = self.model.stage1(encoded.vectors[batch.reference], encoded.sentence, reading)
        named_losses = self._stage1_losses(batch, encoded, query) | self._word_losses(encoded, reading)
        named_losses |= value_losses(self.attributes, self.model, batch, encoded.vectors, query)
        sentence = scale_gradient(encoded.sentence, self.model.config.head_grad_scale)
        named_losses["views"] = self._global_token_loss(batch, encoded, sentence)
        cosines = query @ encoded.vectors.T
        return named_losses | self._head_losses(batch, encoded, reading, sentence, cosines, generator)

    def _stage1_losses(self, batch: Batch, encoded: EncodedBatch, query: Tensor) -> dict[str, Tensor]:
        scale, smoothing = logit_scale(self.model.stage1_scale), self.config.label_smoothing

        def loss(rows: Tensor) -> Tensor:
            logits = scale * rows @ encoded.vectors.T
            return losses.masked_cross_entropy(logits, encoded.blocked, batch.target, smoothing)

        named_losses = {"stage1": loss(query)}
        if self.config.sentence_weight:
            named_losses["text"] = loss(encoded.sentence)
        return named_losses

    def _word_losses(self, encoded: EncodedBatch, reading: TextReading) -> dict[str, Tensor]:
        grounding = losses.word_grounding_loss
        return {
            "naming": losses.word_role_loss(reading.weights, reading.signs, encoded.named),
            "evidence": grounding(
                self.head.cross_boundary, reading.words, encoded.regions, encoded.named, encoded.fulfils
            ),
        }

    def _global_token_loss(self, batch: Batch, encoded: EncodedBatch, sentence: Tensor) -> Tensor:
        probes = self.head.view_probes(sentence, encoded.regions[batch.reference])
        logits = logit_scale(self.model.head_scale) * self.head.view_scores(probes, encoded.regions)
        return losses.masked_cross_entropy(logits, encoded.blocked, batch.target)

    def _head_losses(
        self,
        batch: Batch,
        encoded: EncodedBatch,
        reading: TextReading,
        sentence: Tensor,
        cosines: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Train the head by the first queries of the batch, a share of them, against some candidates each."""
        rows = torch.arange(max(1, int(self.config.head_share * len(cosines))))
        reference, regions = batch.reference[rows], encoded.regions
        candidates = losses.choose_candidates(
            cosines[rows], encoded.blocked[rows], batch.target[rows], reference, self.config.candidates, generator
        )
        query = self.head.encode_query(reading.take(rows), sentence[rows], regions[reference])
        across, near, view = self.products(query, regions[candidates])
        pair = self.head.correspond(query, across, near, view, grams(regions)[candidates])
        return self._pair_losses(query, pair, candidates, cosines[rows].gather(1, candidates))

    def _pair_losses(
        self, query: QueryEncoding, pair: PairSimilarities, candidates: Tensor, cosines: Tensor
    ) -> dict[str, Tensor]:
        """Return the head's losses for `candidates` [B, M], the target first, with stage 1's `cosines` [B, M]."""
        scale = logit_scale(self.model.head_scale)
        first = torch.zeros(len(cosines), dtype=torch.long, device=cosines.device)
        total = self.head.total(cosines.detach(), pair)
        # Words say what the reference is not. No gallery shows it again, so nothing else learns to flee from it.
        scores = [pair.cross, *(losses.without_reference(score) for score in (pair.visual, total))]
        stage1_scale = logit_scale(self.model.stage1_scale)
        target = losses.match_weights(candidates)
        random, pushed = (losses.mismatch_weights(candidates, reference) for reference in (False, True))
        cross = losses.boundary_samples(pair.x, query.word_weights, target, random)
        visual = losses.boundary_samples(pair.y, query.probe_weights, target, random)
        words = losses.boundary_samples(pair.x, query.word_weights, target, pushed)
        self._update_boundaries(cosines, cross, visual)
        return {
            "head": sum((F.cross_entropy(scale * score, first) for score in scores), torch.zeros(())) / 3,
            "distill": losses.distillation(stage1_scale * losses.without_reference(cosines), scale * scores[-1]),
            "boundary": self._boundary_loss(words, visual),
        }

    def _boundary_loss(self, words: losses.BoundarySamples, visual: losses.BoundarySamples) -> Tensor:
        cross_loss = losses.boundary_loss(self.head.cross_boundary, words)
        return cross_loss + losses.boundary_loss(self.head.visual_boundary, visual)

    def _update_boundaries(
        self, cosines: Tensor, cross: losses.BoundarySamples, visual: losses.BoundarySamples
    ) -> None:
        """Take statistics from queries whose target is among the five best candidates, all of them at first."""
        good = (cosines[:, 1:] > cosines[:, :1]).sum(1) < 5
        if not self.head.cross_boundary.ready or int(good.sum()) == 0:
            good = torch.ones_like(good)
        for boundary, samples in ((self.head.cross_boundary, cross), (self.head.visual_boundary, visual)):
            best, matched, mismatched = samples.best[good], samples.matched[good], samples.mismatched[good]
            boundary.update(best, matched, best, mismatched)


class AblatedObjective(NSFSEObjective):
    """The losses of an `AblatedHead`: a part that is missing has none."""

    def __init__(self, model: NSFSE, config: TrainConfig, precision: NumberTypes, attributes: AttributeHeads) -> None:
        super().__init__(model, config, precision, attributes)
        assert isinstance(model.head, AblatedHead)
        self.ablated = model.head

    def _word_losses(self, encoded: EncodedBatch, reading: TextReading) -> dict[str, Tensor]:
        """Return 0 where the head reads no words, and no grounding without their branch."""
        if self.ablated.sentence_only:
            return {name: reading.words.sum() * 0.0 for name in ("naming", "evidence")}
        named_losses = super()._word_losses(encoded, reading)
        return named_losses | {"evidence": named_losses["evidence"] * self.ablated.has_cross}

    def _boundary_loss(self, words: losses.BoundarySamples, visual: losses.BoundarySamples) -> Tensor:
        cross_loss = losses.boundary_loss(self.head.cross_boundary, words) * self.ablated.has_cross
        return cross_loss + losses.boundary_loss(self.head.visual_boundary, visual) * self.ablated.has_visual
