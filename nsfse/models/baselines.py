"""The methods that NSFSE is compared with, over the same encoders, batches, optimizer and loop (docs/method.md §9).

Written from their papers: TIRG (Vo et al., CVPR 2019, arXiv 1812.07119), the Combiner of CLIP4Cir (Baldrati et al.,
CVPR Workshops 2022), ARTEMIS (Delmas et al., ICLR 2022, arXiv 2203.08101). A method is a function of the reference's
vector g and the sentence m, unit rows [B, d]. All but ARTEMIS return one unit vector [B, d], whose inner product with
a candidate's vector is the score.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.encoders import Encoders
from nsfse.models.nsfse import NSFSE
from nsfse.models.similarity_head import QueryEncoding
from nsfse.models.training_free import TrainingFree
from nsfse.plugins import add_plugins
from nsfse_runtime.errors import DataError
from nsfse_runtime.types import RankingMode

LEAST_NORM = 1e-6
MOST_COSINE = 1 - 1e-6  # nearer than this, an arc has no direction


def image_only(image: Tensor, _sentence: Tensor) -> Tensor:
    """q = g: how far the reference alone leads."""
    return image


def text_only(_image: Tensor, sentence: Tensor) -> Tensor:
    """q = m: how far the text alone leads."""
    return sentence


def vector_sum(image: Tensor, sentence: Tensor, share: float = 0.5) -> Tensor:
    """q = unit((1 - a) g + a m), a the text's `share`."""
    return F.normalize((1 - share) * image + share * sentence, dim=-1)


def slerp(image: Tensor, sentence: Tensor, share: float = 0.5) -> Tensor:
    """q = unit(sin((1 - a) θ) g + sin(a θ) m), θ the angle between them: the point at `share` a of the arc."""
    angle = torch.acos((image * sentence).sum(-1, keepdim=True).clamp(-MOST_COSINE, MOST_COSINE))
    return F.normalize(torch.sin((1 - share) * angle) * image + torch.sin(share * angle) * sentence, dim=-1)


class Tirg(nn.Module):
    """q = unit(w_g f_gate + w_r f_res), f_gate = σ(MLP[g; m]) ⊙ g, f_res = MLP[g; m]: the reference, modified.

    The form for vectors of the last layer: linear maps for convolutions. Without the batch normalisation.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.residual = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.gate_weight = nn.Parameter(torch.tensor(1.0))
        self.residual_weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Compose `image` [B, d] with `sentence` [B, d] into unit rows [B, d]."""
        both = torch.cat([image, sentence], -1)
        gated = torch.sigmoid(self.gate(both)) * image
        return F.normalize(self.gate_weight * gated + self.residual_weight * self.residual(both), dim=-1)


class Combiner(nn.Module):
    """q = unit((1 − λ) g + λ m + v); λ in 0..1 and v [d] come from two branches over both features, projected."""

    def __init__(self, dim: int, dropout: float = 0.5) -> None:
        super().__init__()
        wide, hidden = 4 * dim, 8 * dim

        def layer(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))

        self.image, self.text = layer(dim, wide), layer(dim, wide)
        self.mixture = nn.Sequential(layer(2 * wide, hidden), nn.Linear(hidden, dim))
        self.share = nn.Sequential(layer(2 * wide, hidden), nn.Linear(hidden, 1))

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Compose `image` [B, d] with `sentence` [B, d] into unit rows [B, d]."""
        both = torch.cat([self.image(image), self.text(sentence)], -1)
        share = torch.sigmoid(self.share(both))
        return F.normalize((1 - share) * image + share * sentence + self.mixture(both), dim=-1)


class PairScorer(nn.Module, ABC):
    """A method whose score is not the inner product with one query vector; `forward` returns rows [B, K, d]."""

    @abstractmethod
    def scores(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """Return the score [B, U] of every query with every one of `vectors` [U, d]."""

    @abstractmethod
    def nearest(self, rows: Tensor) -> Tensor:
        """Return the unit vector [B, d] that ranks most like `scores`."""


class Artemis(PairScorer):
    """s = cos(T m, A_EM(m) ⊙ t) + cos(A_IS(m) ⊙ g, A_IS(m) ⊙ t): explicit matching and implicit similarity.

    The text weighs the target's dimensions, so no vector of the query alone gives this score. But both terms are
    ⟨a, t⟩ / √⟨b, t²⟩ with rows a and b of the query alone: `forward` returns these as `rows` [B, 4, d].
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transform = nn.Linear(dim, dim)
        self.explicit, self.implicit = (
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.Softmax(-1)) for _ in range(2)
        )

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Return a and b of explicit matching, then a and b of implicit similarity, [B, 4, d]."""
        explicit, implicit = self.explicit(sentence), self.implicit(sentence)
        return torch.stack(
            [
                F.normalize(self.transform(sentence), dim=-1) * explicit,
                explicit.square(),
                F.normalize(implicit * image, dim=-1) * implicit,
                implicit.square(),
            ],
            1,
        )

    def scores(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """Return s [B, U] of every query with every one of `vectors` [U, d], in -2..2."""
        explicit, explicit_squares, implicit, implicit_squares = rows.unbind(1)
        squares = vectors.square().T

        def cosine(a: Tensor, b: Tensor) -> Tensor:
            return (a @ vectors.T) / (b @ squares).sqrt().clamp_min(LEAST_NORM)

        return cosine(explicit, explicit_squares) + cosine(implicit, implicit_squares)

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the unit vector [B, d] that ranks most like `scores`: its norms taken as the same for every target."""
        explicit, explicit_squares, implicit, implicit_squares = rows.unbind(1)
        explicit = explicit / explicit_squares.sum(-1, keepdim=True).sqrt()
        return F.normalize(explicit + implicit / implicit_squares.sum(-1, keepdim=True).sqrt(), dim=-1)


MethodFactory = Callable[[ModelConfig], Callable[[Tensor, Tensor], Tensor]]

# To add a method: write its function or class, then add its line here; or a plug-in (nsfse.plugins).
METHODS: dict[str, MethodFactory] = {
    "image-only": lambda config: image_only,
    "text-only": lambda config: text_only,
    "sum": lambda config: partial(vector_sum, share=config.text_share),
    "slerp": lambda config: partial(slerp, share=config.text_share),
    "tirg": lambda config: Tirg(config.dim),
    "combiner": lambda config: Combiner(config.dim),
    "artemis": lambda config: Artemis(config.dim),
}


def known_methods() -> dict[str, MethodFactory]:
    """Return METHODS, plug-ins included."""
    add_plugins("methods", METHODS, _as_factory)
    return METHODS


def _as_factory(found: object) -> MethodFactory:
    """Return what a plug-in names, a function of the configuration. Raises TypeError."""
    if not callable(found):
        raise TypeError("it is no function of the model's configuration")
    return found


class AttributeProjections(nn.Module):
    """Maps by which a method of one vector learns attributes, in training alone (docs/method.md §9).

    Words (P), images (P′) and sentences (P″) are mapped into one space. No score reads these maps: what is learned
    reaches the ranking through the encoders.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.word, self.image, self.sentence = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, words: Tensor, vectors: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map `words` [B, L, d], `vectors` [U, d] and `sentence` [B, d] to unit rows of the same shapes."""
        mapped = self.word(words), self.image(vectors), self.sentence(sentence)
        word, image, text = (F.normalize(rows, dim=-1) for rows in mapped)
        return word, image, text


class Baseline(Encoders):
    """Encoders and one of METHODS, with the interface of NSFSE. It compares whole images, and has no regions."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        # There is no head whose gradient is scaled: what attributes teach reaches all of the encoders.
        super().__init__(
            msgspec.structs.replace(config, head_grad_scale=1.0) if config.attribute_supervision else config, vocabulary
        )
        self.method = METHODS[config.method](config)
        self.stage1_scale = nn.Parameter(torch.tensor(3.0))  # log of the temperature
        self.mode = RankingMode.ALL_PAIRS if isinstance(self.method, PairScorer) else RankingMode.ONE_STAGE
        self.facts = AttributeProjections(config.dim) if config.attribute_supervision else None

    def _image_outputs(self, vectors: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors [B, d] and no regions [B, 0, d]."""
        return vectors, regions[:, :0]

    def compose(
        self, vectors: Tensor, regions: Tensor, words: Tensor, sentence: Tensor, mask: Tensor
    ) -> tuple[Tensor, QueryEncoding]:
        """Return the query [B, d] and an encoding without words; its probes are a `PairScorer`'s rows [B, K, d]."""
        composed = self.method(vectors, sentence)
        probes = composed if isinstance(self.method, PairScorer) else regions[:, :0]
        return self.nearest(composed), QueryEncoding(
            words[:, :0], probes, mask[:, :0].float(), probes[..., 0], mask[:, :0]
        )

    def nearest(self, composed: Tensor) -> Tensor:
        """Return the query [B, d] from what the method made of image and text."""
        return self.method.nearest(composed) if isinstance(self.method, PairScorer) else composed

    def scores(self, query: Tensor, probes: Tensor, vectors: Tensor) -> Tensor:
        """Return the score [B, U] of what `compose` gave with every one of `vectors` [U, d]."""
        return self.method.scores(probes, vectors) if isinstance(self.method, PairScorer) else query @ vectors.T


def build_model(config: ModelConfig, vocabulary: int) -> NSFSE | TrainingFree | Baseline:
    """Return the model that `config` names, untrained. Raises DataError for an unknown method."""
    if config.method == "nsfse" and config.attribute_supervision:
        raise DataError(
            "model.attribute_supervision is for baselines; nsfse learns attributes by train.word_grounding_weight and"
            " train.word_role_weight"
        )
    if config.method == "nsfse":
        return NSFSE(config, vocabulary)
    if config.method not in known_methods():
        raise DataError(f"model.method: no method {config.method!r}; there are: nsfse, {', '.join(METHODS)}")
    if config.evidence != "none":
        return TrainingFree(config, vocabulary, METHODS[config.method](config))
    return Baseline(config, vocabulary)
