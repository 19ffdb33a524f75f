"""One run's model, optimizer and position; one step.

Every random choice depends on (seed, step) alone: not on what came before, nor on how many processes share a batch.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse.config import Config
from nsfse.models.autocast import choose
from nsfse.models.backbones.base import reached
from nsfse.models.baselines import Baseline
from nsfse.models.nsfse import NSFSE
from nsfse.models.pretrained import paced
from nsfse.models.similarity_head import PairSide, QuerySide, Reading, grams
from nsfse.training import losses
from nsfse.training.dataloader import Batch, augment, drop_words
from nsfse.training.distributed import Share, join_normalisation

SCALAR_PACE = 5.0  # temperatures and mixing weights must travel far: at the common rate they hardly move


class Trainer:
    """Model, optimizer and position of one run."""

    def __init__(self, config: Config, model: NSFSE | Baseline, total_steps: int, share: Share | None = None) -> None:
        self.config, self.model, self.total_steps = config.train, model, total_steps
        self.share, self.device = share or Share(parts=config.train.grad_cache_chunks), next(model.parameters()).device
        self.numbers = choose(str(self.config.bf16_autocast), self.device)
        if self.share.world > 1:
            join_normalisation(model)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        scalars = [p for n, p in model.named_parameters() if p.ndim == 0 or n == "head.mix"]
        rest = [p for n, p in model.named_parameters() if p.ndim == 1 and n != "head.mix"]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "pace": 1.0},
            {"params": rest, "weight_decay": 0.0, "pace": 1.0},
            {"params": scalars, "weight_decay": 0.0, "pace": SCALAR_PACE},
        ]
        groups = paced(groups, model, config.train.backbone_lr_scale)
        self.optimizer = torch.optim.AdamW(groups, lr=config.train.lr, weight_decay=config.train.weight_decay)
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.step = 0

    def learning_rate(self) -> float:
        """Rise over the warm-up, then fall by a cosine to 1 % of the peak."""
        warm = max(1, int(self.config.warmup_ratio * self.total_steps))
        if self.step < warm:
            return self.config.lr * (self.step + 1) / warm
        done = (self.step - warm) / max(1, self.total_steps - warm)
        return self.config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step; return the losses."""
        self.model.train()
        seed = self.config.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # for a backbone with dropout
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["pace"]
        self.optimizer.zero_grad(set_to_none=True)
        with self.numbers.step():
            parts = self.batch_losses(batch.to(self.device), generator)
            (parts["loss"] / self.share.world).backward()  # type: ignore[no-untyped-call]
        self.share.agree(self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        self._move_average()
        return {name: float(value.detach()) for name, value in parts.items()} | {"grad_norm": float(norm)}

    def batch_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of one batch by name, `loss` their weighted sum (docs/method.md §6); float32 or better."""
        with self.numbers.full():
            return self._batch_losses(batch, generator)

    def _batch_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        settings, model, share, lowered = self.config, self.model, self.share, self.numbers.lowered
        queries, images = batch.right.shape
        pixels = augment(batch.pixels, batch.rows, images, settings.augment_strength, generator).contiguous()
        ids = drop_words(batch.ids, batch.mask, settings.word_dropout, generator)
        vectors, regions = share.encode(model, lowered(model.encode_images), (pixels,), images)
        mine = torch.cat(share.rows(queries))
        words, sentence = share.encode(model, lowered(model.encode_text), (ids[mine], batch.mask[mine]), queries)
        blocked = batch.right.scatter(1, batch.reference[:, None], True).scatter(1, batch.target[:, None], False)
        titles = self._titles(batch, vectors, generator)
        weights = {
            "stage1": 1.0,
            "text": settings.sentence_weight,
            "titles": settings.title_weight,
            "naming": settings.word_role_weight,
            "evidence": settings.word_grounding_weight,
            "views": settings.head_weight,
            "head": settings.head_weight,
            "distill": settings.distill_weight,
            "boundary": settings.boundary_weight,
        }
        if isinstance(model, Baseline):
            parts = model.losses(batch, vectors, sentence, blocked, generator, settings.label_smoothing)
            facts = model.fact_losses(words, vectors, sentence, batch.ids, *self._known(batch, ids))
            more = titles | facts
            parts["loss"] = sum((weights[name] * value for name, value in more.items()), parts["loss"])
            return parts | more
        reading = model.head.read(words, sentence, batch.mask, regions[batch.reference])
        query = model.stage1(vectors[batch.reference], sentence, reading)
        parts = self._stage1(batch, vectors, query, sentence, blocked) | titles
        parts |= self._words(batch, ids, reading, regions)
        sentence = reached(sentence, model.config.head_grad_scale)
        views = model.head.view_probes(sentence, regions[batch.reference])
        parts["views"] = losses.classification(
            model.head_scale.exp().clamp_max(100.0) * model.head.view_scores(views, regions), blocked, batch.target
        )
        cosines = query @ vectors.T
        rows = torch.arange(max(1, int(settings.head_share * len(query))))
        chosen = losses.choose_candidates(
            cosines[rows], blocked[rows], batch.target[rows], batch.reference[rows], settings.candidates, generator
        )
        side = model.head.query_side(reading.take(rows), sentence[rows], regions[batch.reference[rows]])
        across, near, view = lowered(model.head.products)(side, regions[chosen])
        pair = model.head.correspond(side, across, near, view, grams(regions)[chosen])
        parts |= self._head(side, pair, chosen, cosines[rows].gather(1, chosen))
        parts["loss"] = sum((weights[name] * value for name, value in parts.items()), torch.zeros(()))
        return parts

    def _stage1(
        self, batch: Batch, vectors: Tensor, query: Tensor, sentence: Tensor, blocked: Tensor
    ) -> dict[str, Tensor]:
        scale, smoothing = self.model.stage1_scale.exp().clamp_max(100.0), self.config.label_smoothing
        parts = {"stage1": losses.classification(scale * query @ vectors.T, blocked, batch.target, smoothing)}
        if self.config.sentence_weight:
            parts["text"] = losses.classification(scale * sentence @ vectors.T, blocked, batch.target, smoothing)
        return parts

    def _titles(self, batch: Batch, vectors: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of telling by its title which image it is, and the reverse; nothing where none has one."""
        share, settings, count = self.share, self.config, len(batch.titled)
        if not settings.title_weight or count < share.world:
            return {}
        ids = drop_words(batch.title_ids, batch.title_mask, settings.word_dropout, generator)
        mine = torch.cat(share.rows(count))
        encode = self.numbers.lowered(self.model.encode_text)
        _, called = share.encode(self.model, encode, (ids[mine], batch.title_mask[mine]), count)
        logits = self.model.stage1_scale.exp().clamp_max(100.0) * called @ vectors[batch.titled].T
        own = torch.arange(count, device=logits.device)
        alike = (batch.title_ids[:, None] == batch.title_ids).all(-1) & (own[:, None] != own)
        both = [losses.classification(x, alike, own, settings.label_smoothing) for x in (logits, logits.T)]
        return {"titles": 0.5 * (both[0] + both[1])}

    def _known(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return `named` and `fulfils` of a batch without the words that were dropped from `ids` [B, L]."""
        kept = ids == batch.ids
        return batch.named * kept, batch.fulfils[kept[batch.named != 0]]

    def _words(self, batch: Batch, ids: Tensor, reading: Reading, regions: Tensor) -> dict[str, Tensor]:
        """Return what is learned of words that are known to ask, but for those dropped from `ids` [B, L]."""
        head = cast(NSFSE, self.model).head
        if head.sentence_only:
            return {name: reading.words.sum() * 0.0 for name in ("naming", "evidence")}
        named, fulfils = self._known(batch, ids)
        return {
            "naming": losses.naming(reading.weights, reading.signs, named),
            "evidence": losses.evidence(head.cross_boundary, reading.words, regions, named, fulfils)
            * (head.branches != "visual"),
        }

    def _head(self, side: QuerySide, pair: PairSide, chosen: Tensor, cosines: Tensor) -> dict[str, Tensor]:
        head = cast(NSFSE, self.model).head
        scale = cast(NSFSE, self.model).head_scale.exp().clamp_max(100.0)
        first = torch.zeros(len(cosines), dtype=torch.long, device=cosines.device)
        total = head.total(cosines.detach(), pair)
        # Words say what the reference is not; no gallery shows it again, so that nothing else learns to flee from it.
        scores = [pair.cross, *(losses.without_reference(score) for score in (pair.visual, total))]
        tau = self.model.stage1_scale.exp().clamp_max(100.0)
        target = losses.match_weights(chosen)
        random, pushed = (losses.mismatch_weights(chosen, reference) for reference in (False, True))
        cross = losses.boundary_terms(pair.x, side.word_weights, target, random)
        visual = losses.boundary_terms(pair.y, side.probe_weights, target, random)
        words = losses.boundary_terms(pair.x, side.word_weights, target, pushed)
        self._update_boundaries(cosines, cross, visual)
        return {
            "head": sum((F.cross_entropy(scale * score, first) for score in scores), torch.zeros(())) / 3,
            "distill": losses.distillation(tau * losses.without_reference(cosines), scale * scores[-1]),
            "boundary": losses.boundary_loss(head.cross_boundary, words) * (head.branches != "visual")
            + losses.boundary_loss(head.visual_boundary, visual) * (head.branches != "cross"),
        }

    def _update_boundaries(self, cosines: Tensor, cross: losses.Terms, visual: losses.Terms) -> None:
        """Take statistics from queries whose target is among the five best candidates, all of them at first."""
        head = cast(NSFSE, self.model).head
        good = (cosines[:, 1:] > cosines[:, :1]).sum(1) < 5
        if not head.cross_boundary.ready or int(good.sum()) == 0:
            good = torch.ones_like(good)
        for boundary, terms in ((head.cross_boundary, cross), (head.visual_boundary, visual)):
            boundary.update(terms.best[good], terms.matched[good], terms.best[good], terms.mismatched[good])

    def _move_average(self) -> None:
        """Follow the weights; boundaries and counters are copied as they are."""
        decay = min(self.config.ema_decay, self.step / (self.step + 10.0)) if self.config.ema_decay else 0.0
        with torch.no_grad():
            now = self.model.state_dict()
            moving = [name for name, value in now.items() if value.dtype == torch.float32]
            torch._foreach_lerp_([self.average[n] for n in moving], [now[n] for n in moving], 1.0 - decay)
            for name in now.keys() - set(moving):
                self.average[name].copy_(now[name])

    def state(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as named tensors."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.items()}
        for at, slots in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{at}.{k}": v for k, v in slots.items()}
        return found | {"step": torch.tensor(self.step)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average = {name: value.to(self.device) for name, value in part("average.").items()}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            at, name = key.split(".", 1)
            slots.setdefault(int(at), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        self.step = int(tensors["step"])
