"""The drawn catalogue, version 1: product-like images whose every right answer is known. The project's benchmark.

An edit names what it changes and leaves everything else. Right answers are ALL gallery items that
have the reference's other attributes and what the text requests. "darker" is any darker shade of the
hue, "longer" any longer one, "not red" any other colour. After a change of category, length and
detail are free: they belong to a category. Hard negatives are right but for exactly one attribute.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, Pixels, TrainingTriplet
from nsfse.data.synthetic.edits import EditOption, attribute_key, level_edit_options
from nsfse.data.synthetic.items import FREE_WITH_CATEGORY, LEVELS, SPLITS, AttributeCodes, SyntheticItems, item_id
from nsfse.data.synthetic.queries import QueryMaker
from nsfse.data.synthetic.render import paint
from nsfse.data.text.augmentation import AUGMENT_PROB, TextAugmenter
from nsfse.data.text.category_edits import EXCLUDED, REPLACED, category_edits
from nsfse.data.text.template_file import FIELDS, load_templates
from nsfse.data.text.voices import training_voices
from nsfse_runtime.errors import DataError, NotFoundError, UsageError

_KINDS = tuple(kind for kind in FIELDS if kind not in ("gender", "value", "not value", EXCLUDED, REPLACED))
"""Kinds of edit that are drawn."""
_PAIRS_TOGETHER = 2
_MIN_COUNT = 16


class DrawnOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the data set `drawn`."""

    level: str = "standard"
    """`standard`, or `easy` for the demo."""
    items: int | None = None
    """Images of the train split; by default the level's number."""
    seed: int = 0
    """Seed of the train split and of the order and texts of training."""
    test_seed: int = 0
    """Seed of the val and test splits."""
    gallery: int | None = None
    """Images of val and of test; by default the level's number."""
    triplets: int | None = None
    """Triplets in an epoch; by default two for each image of the train split."""
    templates: str = "en"
    """A shipped language, or a TOML file of templates."""
    augment_prob: float = AUGMENT_PROB
    """Share of training texts that are augmented, from 0 to 1 (docs/data.md)."""
    voices: str | None = None
    """A shipped language or a TOML file of voices; by default those of the templates' language."""
    voice_ratio: float = 0.0
    """Share of augmented texts that a voice says, from 0 to 1; short trainings lose negations by it."""
    without_voices: Sequence[str] = ()
    """Voices that training never hears."""

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown level and for a number out of its range."""
        if self.level not in LEVELS:
            raise UsageError(f"unknown level {self.level!r} of the drawn catalogue; use one of: {', '.join(LEVELS)}")
        counts = (self.items, self.gallery, self.triplets)
        if any(count is not None and count < _MIN_COUNT for count in counts):
            raise UsageError(f"the drawn catalogue needs at least {_MIN_COUNT} items a split and {_MIN_COUNT} triplets")
        if not (0 <= self.augment_prob <= 1 and 0 <= self.voice_ratio <= 1):
            raise UsageError("augment_prob and voice_ratio are shares of the training texts, from 0 to 1")


class DrawnSource:
    """The drawn catalogue as a data set; images are drawn when needed, the same for the same seed and id.

    `items` and `seed` are those of the train split. Val and test are the benchmark's own and change only with
    `test_seed` and `gallery`, so that two models compare whatever they trained on. Both have as many images: confidence
    is fitted on val, and how near the nearest wrong image comes depends on how many there are.

    Raises:
        NotFoundError: There is no such file of templates.
        DataError: The file of templates is not in its form, or holds none out.
    """

    def __init__(self, options: DrawnOptions | None = None) -> None:
        options = options or DrawnOptions()
        self.level = LEVELS[options.level]
        self._options, self._templates = options, load_templates(options.templates, _KINDS)
        self._voices = training_voices(options.voices, options.without_voices, self._templates)
        for kind in _KINDS:
            if not self._templates.kinds[kind].held_out:
                raise DataError(
                    f"{options.templates}: kinds.{kind} has no held_out, which the drawn benchmark needs; write two"
                )
        self.name = "drawn" if options.level == "standard" else f"drawn-{options.level}"
        self.images: Mapping[str, Path] = {}
        self.missing: tuple[str, ...] = ()
        gallery = options.gallery or self.level.gallery
        self._sizes = {"train": options.items or self.level.train_items, "val": gallery, "test": gallery}
        self._triplet_count = options.triplets or 2 * self._sizes["train"]
        self._items: dict[str, SyntheticItems] = {}
        self._protocols: dict[str, list[EvaluationProtocol]] = {}
        self._pairs: dict[tuple[int, int], list[tuple[AttributeCodes, AttributeCodes]]] = {}

    @property
    def knows(self) -> str:
        """What is in its images, for the card of a model that has seen nothing else."""
        categories, colours, patterns = self.level.values[:3]
        named = (("kinds", categories), ("colours", colours), ("patterns", patterns))
        return "drawings of " + ", ".join(f"{len(values)} {name} ({', '.join(values)})" for name, values in named)

    def synthetic_items(self, split: str) -> SyntheticItems:
        """Return the items of a split. Raises UsageError for an unknown split."""
        if split not in SPLITS:
            raise UsageError(f"the drawn catalogue has no split {split!r}; use train, val or test")
        if split not in self._items:
            training = split == "train"
            seed = (self._options.seed if training else self._options.test_seed, SPLITS[split])
            self._items[split] = SyntheticItems(self.level, self._sizes[split], seed, training=training)
        return self._items[split]

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split."""
        return tuple(item_id(split, number) for number in range(len(self.synthetic_items(split).codes)))

    def codes(self, item: str) -> AttributeCodes:
        """Return the codes of what is in an image."""
        split, number = self._find(item)
        return self.synthetic_items(split).codes[number]

    def describe(self, item: str) -> dict[str, str]:
        """Return what is in an image."""
        return self.level.describe(self.codes(item))

    def attributes(self, item: str) -> dict[str, str]:
        """Return what is in an image, length and detail under a key of the category's own (`shirt length`)."""
        known = self.describe(item)
        return {attribute_key(name, known["category"]): value for name, value in known.items()}

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] drawn at `size` (H, W). Raises NotFoundError for an unknown id."""
        split, number = self._find(item)
        items = self.synthetic_items(split)
        return paint(
            self.level.describe(items.codes[number]), int(items.image_seeds[number]), size, self.level.nuisance
        )

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the epoch's training triplets: fresh pairs and texts, both directions of a pair side by side."""
        seed, count = self._options.seed, self._triplet_count
        rng = np.random.default_rng([2, seed, epoch])
        augmenter = TextAugmenter(
            self._templates, self._options.augment_prob, seed, epoch, self._voices, self._options.voice_ratio
        )
        clusters = np.arange(len(self.synthetic_items("train").clusters))
        triplets: list[TrainingTriplet] = []
        while len(triplets) < count:
            for cluster in rng.permutation(clusters).tolist():
                triplets += self._cluster_triplets(cluster, rng, augmenter)
                if len(triplets) >= count:
                    break
        return triplets[:count]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return `drawn`, all queries, and for the test split its parts: `drawn-single`, ..., `drawn-heldout`.

        A query is of the part `heldout` where training never saw its category, colour and pattern together.
        """
        if split == "train":
            return []
        if split not in self._protocols:
            self._protocols[split] = self._query_maker(split).protocols()
        return list(self._protocols[split])

    def compound_protocols(self) -> list[EvaluationProtocol]:
        """Return the test protocols of several images, texts and exclusions (see compound_queries)."""
        return self._query_maker("test").compound_protocols()

    def calibration_split(self) -> EvaluationProtocol:
        """Return the validation queries: their images are drawn for nothing else."""
        return self.protocols("val")[0]

    def category_edits(self, gallery: Sequence[str], count: int) -> tuple[EvalQuery, ...]:
        """Return queries that exclude or replace the category (see nsfse.data.text.category_edits)."""
        known = {item: self.describe(item) for item in gallery}
        return category_edits(known, "category", FREE_WITH_CATEGORY, self._templates, count)

    def check(self) -> CheckReport:
        """Return the counts of the splits: nothing drawn can be missing."""
        return CheckReport(self.name, {split: len(self.items(split)) for split in SPLITS})

    def _query_maker(self, split: str) -> QueryMaker:
        return QueryMaker(self.synthetic_items(split), split, self._options.test_seed, self._templates)

    def _find(self, item: str) -> tuple[str, int]:
        split, _, number = item.partition("-")
        if split in SPLITS and number.isdigit() and int(number) < self._sizes[split]:
            return split, int(number)
        raise NotFoundError(f"the drawn catalogue has no image {item!r}; ids run from {item_id('train', 0)}")

    def _two_way_pairs(self, cluster: int, differing: int) -> list[tuple[AttributeCodes, AttributeCodes]]:
        """Return the pairs of a training cluster's corners that a text can lead across in both directions."""
        if (cluster, differing) not in self._pairs:
            pairs, level = self.synthetic_items("train").clusters[cluster].pairs(differing), self.level.name
            both = [(a, b) for a, b in pairs if level_edit_options(level, a, b) and level_edit_options(level, b, a)]
            self._pairs[cluster, differing] = both
        return self._pairs[cluster, differing]

    def _cluster_triplets(
        self, cluster: int, rng: np.random.Generator, augmenter: TextAugmenter
    ) -> list[TrainingTriplet]:
        """Return both directions of a few pairs of one cluster, two in three of them one attribute apart."""
        corners = self.synthetic_items("train").clusters[cluster].corners
        triplets: list[TrainingTriplet] = []
        for _ in range(_PAIRS_TOGETHER):
            differing = 2 if "double" in self.level.kinds and rng.random() < 0.35 else 1
            pairs = self._two_way_pairs(cluster, differing)
            if not pairs:
                continue
            a, b = pairs[rng.integers(len(pairs))]
            first, second = (int(rng.choice(corners[codes])) for codes in (a, b))
            for origin, goal, start, end in ((a, b, first, second), (b, a, second, first)):
                options = level_edit_options(self.level.name, origin, goal)
                option = options[rng.integers(len(options))]
                triplets.append(self._triplet(option, start, end, rng, augmenter))
        return triplets

    def _triplet(
        self, option: EditOption, start: int, end: int, rng: np.random.Generator, augmenter: TextAugmenter
    ) -> TrainingTriplet:
        items = self.synthetic_items("train")
        base = int(rng.integers(len(self._templates.templates_for(option.edits).base)))
        sampled = augmenter.sample(option.edits, base, rng.random(), option.old)
        targets = [end] + [item for item in items.matching(option.allowed) if item != end]
        names = tuple(item_id("train", item) for item in targets)
        labels = option.word_labels(self.level, items.codes[end])
        if sampled.refuses_old:
            labels += (option.old_label(self.level, items.codes[start]),)
        return TrainingTriplet(item_id("train", start), sampled.text, names, option.kind, labels, sampled.typos)
