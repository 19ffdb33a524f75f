"""Fit which words name which value of an attribute, for vectors with blocks (docs/method.md §4).

The texts are those of training, whose words are labelled. Their references are images of the gallery that t and ω are
fitted to: what a word finds in an image that training has seen is not what it finds in others.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse.data import TrainingTriplet, WordLabel
from nsfse.evaluation.ranker import map_valid_texts
from nsfse.models.attribute_blocks import AttributeBlocks
from nsfse.models.torch_scorer import TorchScorer
from nsfse.training.dataloader import AttributeClasses
from nsfse_runtime.types import TargetFeatures

TEXTS, STEPS, L2 = 1500, 60, 1e-4
UNKNOWN = -1  # a value that the label does not tell: "not red" allows all others


def fit_naming(
    scorer: TorchScorer,
    blocks: AttributeBlocks,
    gallery: TargetFeatures,
    triplets: Sequence[TrainingTriplet],
    classes: AttributeClasses,
) -> None:
    """Fit the naming of a scorer's `blocks` in place; nothing changes where no text has labelled words.

    Args:
        scorer: The model; its texts and composition are used.
        blocks: The blocks of its model.
        gallery: Features of images that serve as references, one after another.
        triplets: Training triplets; the first TEXTS with labels are used.
        classes: The values of the attributes, in the order of the blocks.
    """
    labelled = [triplet for triplet in triplets if triplet.word_labels][:TEXTS]
    if not labelled or not len(gallery):
        return
    references = gallery.take(np.arange(len(labelled)) % len(gallery))
    texts = [triplet.text for triplet in labelled]
    composed = map_valid_texts(
        lambda rows: scorer.compose(references.take(rows), [texts[row] for row in rows]), len(texts)
    )
    words, targets = [], []
    for triplet, query in zip(labelled, composed, strict=True):
        if query is not None:
            words.append(query.words)
            targets += [_target(token, triplet.word_labels, classes) for token in query.tokens]
    rows, (attributes, values) = torch.from_numpy(np.concatenate(words)), torch.tensor(targets).T
    weight, bias = _least_loss(rows, attributes, values, blocks)
    with torch.no_grad():
        blocks.naming_weight.copy_(weight)
        blocks.naming_bias.copy_(bias)


def _target(token: str, labels: Sequence[WordLabel], classes: AttributeClasses) -> tuple[int, int]:
    """Return the number of the attribute that a word names, from 1 on and 0 for none, and that of its value."""
    naming = [label for label in labels if token.lower() in label.words and label.attribute_key in classes.values]
    if len(naming) != 1:
        return 0, UNKNOWN
    (label,) = naming
    known = classes.values[label.attribute_key]
    has_value = len(label.values) == 1 and not label.absent and label.values[0] in known
    return 1 + [*classes.values].index(label.attribute_key), known.index(label.values[0]) if has_value else UNKNOWN


def _least_loss(words: Tensor, attributes: Tensor, values: Tensor, blocks: AttributeBlocks) -> tuple[Tensor, Tensor]:
    """Return weight and bias with the least cross entropy: of the attribute, and of the values that are known."""
    weight = torch.zeros_like(blocks.naming_weight, device="cpu").requires_grad_()
    bias = torch.zeros_like(blocks.naming_bias, device="cpu").requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")
    named = [(attributes == 1 + number) & (values != UNKNOWN) for number in range(len(blocks.counts))]

    def closure() -> Tensor:
        optimizer.zero_grad()
        attribute_logits, value_logits = blocks.naming_logits(words, weight, bias)
        loss = F.cross_entropy(attribute_logits, attributes) + L2 * weight.square().sum()
        for mask, logits in zip(named, value_logits, strict=True):
            if mask.any():
                loss = loss + F.cross_entropy(logits[mask], values[mask]) / len(named)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
