"""One run's model, optimizer and position; one step.

Every random choice depends on (seed, step) alone: not on what came before, nor on how many processes share a batch.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nsfse.config import Config
from nsfse.models.autocast import choose
from nsfse.models.baselines import Baseline
from nsfse.models.nsfse import NSFSE
from nsfse.models.pretrained import caches_features, param_groups
from nsfse.training.dataloader import Batch, augment, drop_words
from nsfse.training.distributed import DistributedContext, SyncBatchNorm2d
from nsfse.training.objectives import AttributeHeads, EncodedBatch, loss_weights, make_objectives, weighted_sum
from nsfse.training.workarounds import seeded

SCALAR_LR_SCALE = 5.0  # temperatures and fusion weights must travel far: at the common rate they hardly move


class Trainer:
    """Model, optimizer and position of one run.

    Args:
        config: The run's configuration.
        model: The model, on its device.
        total_steps: Steps of the whole training, which the learning rate's schedule spans.
        context: This process's place among several.
        classes: How many values each attribute of the images has.
    """

    def __init__(
        self,
        config: Config,
        model: NSFSE | Baseline,
        total_steps: int,
        context: DistributedContext | None = None,
        classes: Sequence[int] = (),
    ) -> None:
        self.config, self.model, self.total_steps = config.train, model, total_steps
        self.context = context or DistributedContext(chunks=config.train.grad_cache_chunks)
        self.device = next(model.parameters()).device
        self.precision = choose(str(self.config.bf16_autocast), self.device)
        if self.context.world_size > 1:
            SyncBatchNorm2d.convert(model)
        with seeded(self.config.seed, self.device):
            classes = () if config.model.attributes else classes  # the vectors themselves tell them
            self.attributes = AttributeHeads(config.model.dim, classes).to(self.device)
        self.learning = nn.ModuleList([model, self.attributes])
        self.objectives = make_objectives(model, self.config, self.precision, self.attributes)
        self.loss_weights = loss_weights(self.config)
        self.cached = caches_features(config)
        self.encode_images = self.precision.lowered(model.encode_features if self.cached else model.encode_images)
        self.encode_text = self.precision.lowered(model.encode_text)
        groups = param_groups(_decay_groups(self.learning), model, config.train.backbone_lr_scale)
        self.optimizer = torch.optim.AdamW(groups, lr=config.train.lr, weight_decay=config.train.weight_decay)
        self.ema = {name: value.clone() for name, value in model.state_dict().items()}
        self.step = 0

    def learning_rate(self) -> float:
        """Return the rate of the next step: it rises over the warm-up, then falls by a cosine to 1 % of the peak."""
        warmup = max(1, int(self.config.warmup_ratio * self.total_steps))
        if self.step < warmup:
            return self.config.lr * (self.step + 1) / warmup
        done = (self.step - warmup) / max(1, self.total_steps - warmup)
        return self.config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step; return the losses by name, their weighted sum `loss`, and `grad_norm`."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        named_losses = self._backward(batch.to(self.device))
        self.context.all_reduce_gradients(self.learning)
        norm = torch.nn.utils.clip_grad_norm_(self.learning.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        self._update_ema()
        return {name: float(value.detach()) for name, value in named_losses.items()} | {"grad_norm": float(norm)}

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses and their gradients."""
        seed = self.config.seed * 1_000_003 + self.step
        with self.precision.step(), seeded(seed, self.device):  # a backbone may have dropout
            named_losses = self.batch_losses(batch, torch.Generator().manual_seed(seed))
            (named_losses["loss"] / self.context.world_size).backward()  # type: ignore[no-untyped-call]
        return named_losses

    def batch_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of one batch by name, `loss` their weighted sum (docs/method.md §6); float32 or better."""
        with self.precision.full():
            encoded = self._encode(batch, generator)
            named_losses: dict[str, Tensor] = {}
            for objective in self.objectives:
                named_losses |= objective(batch, encoded, generator)
            return named_losses | {"loss": weighted_sum(named_losses, self.loss_weights)}

    def _encode(self, batch: Batch, generator: torch.Generator) -> EncodedBatch:
        """Augment and encode a batch."""
        settings, context, model = self.config, self.context, self.model
        queries, images = batch.right.shape
        strength = 0.0 if self.cached else settings.augment_strength
        pixels = augment(batch.pixels, batch.rows, images, strength, generator).contiguous()
        ids = drop_words(batch.ids, batch.mask, settings.word_dropout, generator)
        vectors, regions = context.encode(model, self.encode_images, (pixels,), images)
        rows = torch.cat(context.rows(queries))
        words, sentence = context.encode(model, self.encode_text, (ids[rows], batch.mask[rows]), queries)
        blocked = batch.right.scatter(1, batch.reference[:, None], True).scatter(1, batch.target[:, None], False)
        titles = self._encode_titles(batch, generator)
        return EncodedBatch(vectors, regions, words, sentence, titles, blocked, *_read_labels(batch, ids))

    def _encode_titles(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Return the sentences [T, d] of the batch's titles, None where they have no weight or are too few."""
        count = len(batch.titled)
        if not self.config.title_weight or count < self.context.world_size:
            return None
        ids = drop_words(batch.title_ids, batch.title_mask, self.config.word_dropout, generator)
        rows = torch.cat(self.context.rows(count))
        return self.context.encode(self.model, self.encode_text, (ids[rows], batch.title_mask[rows]), count)[1]

    def _update_ema(self) -> None:
        """Move the averaged weights towards the model's; boundaries and counters are copied as they are."""
        decay = min(self.config.ema_decay, self.step / (self.step + 10.0)) if self.config.ema_decay else 0.0
        with torch.no_grad():
            now = self.model.state_dict()
            moving = [name for name, value in now.items() if value.dtype == torch.float32]
            follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            follow([self.ema[n] for n in moving], [now[n] for n in moving], self.step)
            for name in now.keys() - set(moving):
                self.ema[name].copy_(now[name])

    def state(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as named tensors."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"attributes.{k}": v for k, v in self.attributes.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.ema.items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in slots.items()}
        return tensors | {"step": torch.tensor(self.step)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.attributes.load_state_dict(part("attributes."))
        self.ema |= {name: value.to(self.device) for name, value in part("average.").items()}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            number, name = key.split(".", 1)
            slots.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        self.step = int(tensors["step"])


def _read_labels(batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return `named` and `fulfils` of a batch without the words that were dropped from `ids` [B, L]."""
    read = ids == batch.ids
    return batch.named * read, batch.fulfils[read[batch.named != 0]]


def _decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return an optimizer's groups: matrices decay, vectors do not, scalars do not and learn faster."""
    scalars = [p for n, p in model.named_parameters() if p.ndim == 0 or n.endswith("head.mix")]
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "lr_scale": 1.0},
        {
            "params": [p for n, p in model.named_parameters() if p.ndim == 1 and not n.endswith("head.mix")],
            "weight_decay": 0.0,
            "lr_scale": 1.0,
        },
        {"params": scalars, "weight_decay": 0.0, "lr_scale": SCALAR_LR_SCALE},
    ]
