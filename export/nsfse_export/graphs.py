"""The four graphs of a bundle as modules for export.

They call the model's own modules. Two parts are replaced in a copy. Recurrent units become the ONNX operator, which
takes each row's length; adaptive boundaries become their final values.
"""

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from nsfse.models.backbones.text import MaskedGru
from nsfse.models.baselines import Baseline
from nsfse.models.encoders import Encoders
from nsfse.models.nsfse import NSFSE
from nsfse.models.similarity_head import QueryEncoding
from nsfse.models.training_free import TrainingFree

BATCH, WORDS, CANDIDATES = "batch", "words", "candidates"
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One graph: the module, example inputs by name, and the shapes that inputs and outputs must have.

    A dimension is a number or the name of one that varies; `words+16` is sixteen more than `words`.
    """

    module: nn.Module
    example: dict[str, Tensor]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


class ImageGraph(nn.Module):
    """Pixels [B, H, W, 3] uint8 → vectors [B, d], regions [B, R, d]."""

    def __init__(self, model: Encoders) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images, normalisation included. TensorRT takes uint8 only where nothing but a cast reads it."""
        return self.model.encode_images(pixels.float())


class TextGraph(nn.Module):
    """ids [B, L] int64, mask [B, L] bool → words [B, L, d], sentence [B, d]."""

    def __init__(self, model: Encoders) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts."""
        return self.model.encode_text(ids, mask)


class QueryGraph(nn.Module):
    """Both encoders' outputs → query [B, d], infused [B, L, d], probes [B, P+L, d] and the weights of both."""

    def __init__(self, model: NSFSE | TrainingFree) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, vectors: Tensor, regions: Tensor, words: Tensor, sentence: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compose queries."""
        query, side = self.model.compose(vectors, regions, words, sentence, mask)
        return query, side.words, side.probes, side.word_weights, side.probe_weights


class VectorGraph(nn.Module):
    """vectors [B, d], sentence [B, d] → query [B, d]: the query graph of a model of one stage."""

    def __init__(self, model: Baseline) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, sentence: Tensor) -> Tensor:
        """Compose queries; a method may leave one of the two unread, and a graph keeps both inputs."""
        return self.model.method(vectors, sentence) + 0.0 * (vectors + sentence)


class PairGraph(nn.Module):
    """One query × K candidates → score [K], word_scores [K, L]."""

    def __init__(self, model: NSFSE | TrainingFree) -> None:
        super().__init__()
        self.model, self.head = model, model.head

    def forward(
        self,
        query: Tensor,
        infused: Tensor,
        probes: Tensor,
        word_weights: Tensor,
        probe_weights: Tensor,
        vectors: Tensor,
        regions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Score pairs, with one product of all query rows and all regions (docs/method.md §7); views have their own."""
        length, views = infused.shape[0], self.head.global_tokens
        end = probes.shape[0] - length - views
        across = regions.transpose(1, 2)
        near = torch.cat([infused, probes[:end], probes[end + views :]]) @ across
        side = QueryEncoding(
            infused[None],
            probes[None],
            word_weights[None],
            probe_weights[None],
            torch.ones_like(word_weights[None]) > 0,
        )
        pair = self.head.correspond(
            side,
            near[None, :, :length],
            near[None, :, length:],
            (probes[end : end + views] * regions[:, end:]).sum(-1)[None],
            (regions @ across)[None],
        )
        words = self.model.word_scores(infused[None], vectors[None], pair)
        return self.model.total(query[None], vectors[None], pair)[0], words[0]


class OnnxGru(nn.Module):
    """A `MaskedGru` as the ONNX operator GRU with `sequence_lens`. Only for export: it computes nothing in torch."""

    w: Tensor
    r: Tensor
    b: Tensor

    def __init__(self, gru: MaskedGru) -> None:
        super().__init__()
        self.hidden = gru.hidden_size
        for name, part in (("w", "weight_ih"), ("r", "weight_hh")):
            pair = [_onnx_order(getattr(gru, f"{part}_l0{direction}")) for direction in ("", "_reverse")]
            self.register_buffer(name, torch.stack(pair))
        biases = [
            torch.cat([_onnx_order(getattr(gru, f"bias_{side}_l0{direction}")) for side in ("ih", "hh")])
            for direction in ("", "_reverse")
        ]
        self.register_buffer("b", torch.stack(biases))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Return states [B, L, 2·hidden] of `embedded` [B, L, i]."""
        batch, length = mask.shape
        states = torch.onnx.ops.symbolic(
            "GRU",
            (embedded.transpose(0, 1), self.w, self.r, self.b, mask.sum(1).to(torch.int32)),
            {"hidden_size": self.hidden, "direction": "bidirectional", "linear_before_reset": 1},
            dtype=embedded.dtype,
            shape=(length, 2, batch, self.hidden),
            version=14,
        )
        return states.permute(2, 0, 1, 3).reshape(batch, length, 2 * self.hidden)


class FixedBoundary(nn.Module):
    """The final value of an adaptive boundary."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = t


def _onnx_order(gates: Tensor) -> Tensor:
    """Reorder torch's gates (reset, update, new) to ONNX's (update, reset, hidden)."""
    reset, update, new = gates.detach().chunk(3)
    return torch.cat([update, reset, new])


Model = TypeVar("Model", bound=Encoders)


def exportable(model: Model) -> Model:
    """Return a copy of `model` in evaluation mode whose every part has an ONNX form."""
    exported = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(exported.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MaskedGru):
                setattr(parent, name, OnnxGru(child))
    if not isinstance(model, Baseline) and not isinstance(exported, Baseline):
        for name in ("cross_boundary", "visual_boundary"):
            setattr(exported.head, name, FixedBoundary(getattr(model.head, name).t))
    return exported


def build_graphs(model: NSFSE | TrainingFree | Baseline) -> dict[str, Graph]:
    """Return the bundle's graphs by name; names and shapes are those of `inference.onnx_scorer.OnnxScorer`."""
    ready = exportable(model)
    d, (height, width) = model.config.dim, model.config.image_size
    regions, visual_probes = _counts(model)
    probes = f"{WORDS}+{visual_probes}"
    queries: dict[str, Shape] = {
        "query": (BATCH, d),
        "infused": (BATCH, WORDS, d),
        "probes": (BATCH, probes, d),
        "word_weights": (BATCH, WORDS),
        "probe_weights": (BATCH, probes),
    }
    images: dict[str, Shape] = {"vectors": (BATCH, d), "regions": (BATCH, regions, d)}
    texts: dict[str, Shape] = {"words": (BATCH, WORDS, d), "sentence": (BATCH, d)}
    candidates: dict[str, Shape] = {name: (CANDIDATES, *shape[1:]) for name, shape in images.items()}
    read: dict[str, Shape] = {"ids": (BATCH, WORDS), "mask": (BATCH, WORDS)}
    scores: dict[str, Shape] = {"score": (CANDIDATES,), "word_scores": (CANDIDATES, WORDS)}
    encoders = {
        "image": _graph(ImageGraph(ready), {"pixels": (BATCH, height, width, 3)}, images),
        "text": _graph(TextGraph(ready), read, texts),
    }
    if isinstance(ready, Baseline):
        whole: dict[str, Shape] = {name: (BATCH, d) for name in ("vectors", "sentence")}
        return encoders | {"query": _graph(VectorGraph(ready), whole, {"query": (BATCH, d)})}
    return encoders | {
        "query": _graph(QueryGraph(ready), images | texts | {"mask": (BATCH, WORDS)}, queries),
        "pair": _graph(PairGraph(ready), {name: shape[1:] for name, shape in queries.items()} | candidates, scores),
    }


@torch.inference_mode()
def _counts(model: NSFSE | TrainingFree | Baseline) -> tuple[int, int]:
    """Return R, the regions of an image, and P, the probes of a query that belong to no word."""
    pixels = torch.zeros(1, *model.config.image_size, 3, dtype=torch.uint8)
    ids = torch.ones(1, 1, dtype=torch.int64)
    vectors, regions = model.encode_images(pixels)
    _, side = model.compose(vectors, regions, *model.encode_text(ids, ids > 0), ids > 0)
    return regions.shape[1], side.probes.shape[1] - 1


def _graph(module: nn.Module, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> Graph:
    # An exporter takes a size of 1 in the example for a constant, and equal sizes for the same one.
    sizes = {BATCH: 2, WORDS: 3, CANDIDATES: 5}

    def size(dimension: int | str) -> int:
        if isinstance(dimension, int):
            return dimension
        name, _, more = dimension.partition("+")
        return sizes[name] + int(more or 0)

    dtypes = {"pixels": torch.uint8, "ids": torch.int64, "mask": torch.bool}
    example = {
        name: torch.ones([size(dimension) for dimension in shape], dtype=dtypes.get(name, torch.float32))
        for name, shape in inputs.items()
    }
    return Graph(module.eval(), example, inputs, outputs)
