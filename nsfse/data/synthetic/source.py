"""The drawn catalogue, version 1: product-like images whose every right answer is known. The project's benchmark.

An edit names what it changes and keeps everything else. Right answers are ALL gallery items that keep the reference's
other attributes and have what the text asks for: "darker" any darker shade of the hue, "longer" any longer one, "not
red" any other colour. After a change of category, length and detail are free: they belong to a category. Hard
negatives are right but for exactly one attribute.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, Pixels, TrainingTriplet, WordLabel
from nsfse.data.datasets.query_set import write_query_set
from nsfse.data.synthetic.compound_queries import PARTS, Question, questions
from nsfse.data.synthetic.edits import Option, attribute_key, options
from nsfse.data.synthetic.items import FREE_WITH_CATEGORY, LEVELS, Codes, Stock
from nsfse.data.synthetic.render import paint
from nsfse.data.text.augmentation import VARIETY, Retelling
from nsfse.data.text.category_edits import EXCLUDED, REPLACED, category_edits
from nsfse.data.text.template_file import FIELDS, load_phrasings
from nsfse.data.text.templates import Edit
from nsfse_runtime.errors import DataError, NotFoundError, OutputError, UsageError
from nsfse_runtime.output_files import check_folder

VERSION = "1"
SEEN_TEXTS = 2
"""A query has four texts: two phrasings of those training sees, then the two it never sees."""
_SAID = tuple(kind for kind in FIELDS if kind not in ("gender", "value", "not value", EXCLUDED, REPLACED))
"""Kinds of edit that are drawn."""
_PAIRS_TOGETHER = 2
_SPLITS = {"train": 0, "val": 1, "test": 2}
_NOTE = "texts 1-2 are phrasings that training sees, texts 3-4 are held out of it"


class DrawnSource:
    """The drawn catalogue as a data set; images are drawn when asked for, the same for the same seed and id.

    `items` and `seed` are those of the train split. Val and test are the benchmark's own and change only with
    `test_seed` and `gallery`, so that two models compare whatever they trained on. Both have as many images: what
    tells a match is fitted on val, and how near the nearest wrong image comes depends on how many there are.
    """

    def __init__(
        self,
        level: str = "standard",
        items: int | None = None,
        seed: int = 0,
        *,
        test_seed: int = 0,
        gallery: int | None = None,
        triplets: int | None = None,
        phrasings: str = "en",
        variety: float = VARIETY,
    ) -> None:
        """Take a level (`standard` or `easy`), train items, triplets per epoch (default two an item).

        `phrasings` is a shipped language or a TOML file, `variety` the share of training texts told anew. Raises
        UsageError for an unknown level, a count that is not positive or a share that is none, and the file's errors.
        """
        if level not in LEVELS:
            raise UsageError(f"unknown level {level!r} of the drawn catalogue; use one of: {', '.join(LEVELS)}")
        self.level = LEVELS[level]
        if min(16 if count is None else count for count in (items, gallery, triplets)) < 16:
            raise UsageError("the drawn catalogue needs at least 16 items a split and 16 triplets")
        if not 0 <= variety <= 1:
            raise UsageError("variety is a share of the training texts, from 0 to 1")
        self._phrasings, self._variety = load_phrasings(phrasings, _SAID), variety
        for kind in _SAID:
            if not self._phrasings.kinds[kind].held_out:
                raise DataError(
                    f"{phrasings}: kinds.{kind} has no held_out, in which the drawn benchmark asks; write two"
                )
        self.name = "drawn" if level == "standard" else f"drawn-{level}"
        self.images: Mapping[str, Path] = {}
        self.missing: tuple[str, ...] = ()
        self.seed, self.test_seed = seed, test_seed
        shown = gallery or self.level.gallery
        self._sizes = {"train": items or self.level.train_items, "val": shown, "test": shown}
        self.per_epoch = triplets or 2 * self._sizes["train"]
        self._stocks: dict[str, Stock] = {}
        self._protocols: dict[str, list[EvaluationProtocol]] = {}
        self._ways: dict[tuple[int, int], list[tuple[Codes, Codes]]] = {}

    @property
    def knows(self) -> str:
        """Return what is in its images, for whoever is handed a model that has seen nothing else."""
        kinds, colours, patterns = self.level.values[:3]
        said = (("kinds", kinds), ("colours", colours), ("patterns", patterns))
        return "drawings of " + ", ".join(f"{len(values)} {name} ({', '.join(values)})" for name, values in said)

    def stock(self, split: str) -> Stock:
        """Return the items of a split. Raises UsageError for an unknown split."""
        if split not in _SPLITS:
            raise UsageError(f"the drawn catalogue has no split {split!r}; use train, val or test")
        if split not in self._stocks:
            seed = (self.seed if split == "train" else self.test_seed, _SPLITS[split])
            self._stocks[split] = Stock(self.level, self._sizes[split], seed, training=split == "train")
        return self._stocks[split]

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split."""
        return tuple(_name(split, item) for item in range(len(self.stock(split).codes)))

    def describe(self, item: str) -> dict[str, str]:
        """Return what is in an image."""
        split, number = self._find(item)
        return self.level.describe(self.stock(split).codes[number])

    def attributes(self, item: str) -> dict[str, str]:
        """Return what is in an image, length and detail under the name of what has them (`shirt length`)."""
        known = self.describe(item)
        return {attribute_key(name, known["category"]): value for name, value in known.items()}

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] drawn at `size` (H, W). Raises NotFoundError for an unknown id."""
        split, number = self._find(item)
        stock = self.stock(split)
        seed = int(stock.image_seeds[number])
        return paint(self.level.describe(stock.codes[number]), seed, size, self.level.nuisance)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the epoch's training triplets: fresh pairs and texts, both directions of a pair adjacent."""
        rng = np.random.default_rng([2, self.seed, epoch])
        retelling = Retelling(self._phrasings, self._variety, self.seed, epoch)
        stock = self.stock("train")
        made: list[TrainingTriplet] = []
        while len(made) < self.per_epoch:
            for cluster in rng.permutation(np.arange(len(stock.clusters))).tolist():
                made += self._pairs_of(stock, cluster, rng, retelling)
                if len(made) >= self.per_epoch:
                    break
        return made[: self.per_epoch]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return `drawn`, all queries, and for the test split its parts: `drawn-single`, ..., `drawn-heldout`.

        A query is of the part `heldout` where training never saw its category, colour and pattern together.
        """
        if split == "train":
            return []
        if split not in self._protocols:
            self._protocols[split] = self._made(split)
        return list(self._protocols[split])

    def _made(self, split: str) -> list[EvaluationProtocol]:
        stock, gallery = self.stock(split), self.items(split)
        parts: dict[str, list[EvalQuery]] = {kind: [] for kind in (*self.level.kinds, "heldout")}
        wanted = self.level.queries_per_kind if split == "test" else self.level.queries_per_kind // 2
        for part, query in self._queries(stock, split):
            if len(parts[part]) < wanted:
                parts[part].append(query)
            if all(len(queries) >= wanted for queries in parts.values()):
                break
        whole = [query for queries in parts.values() for query in queries]
        mixed = np.random.default_rng([5, self.test_seed]).permutation(len(whole)).tolist()
        version = self._version(split)
        named = {"drawn": [whole[i] for i in mixed]}
        if split == "test":
            named |= {f"drawn-{part}": queries for part, queries in parts.items() if queries}
        return [
            EvaluationProtocol(name, version, gallery, tuple(queries), note=_NOTE) for name, queries in named.items()
        ]

    def _version(self, split: str) -> str:
        version = f"{VERSION}-{self.level.name}-{split}-{self.test_seed}"
        return version if self._phrasings.name == "en" else f"{version}-{self._phrasings.name}"

    def check(self) -> CheckReport:
        """Return the counts of the splits: nothing drawn can be missing."""
        return CheckReport(self.name, {split: len(self.items(split)) for split in _SPLITS})

    def _find(self, item: str) -> tuple[str, int]:
        split, _, number = item.partition("-")
        if split in _SPLITS and number.isdigit() and int(number) < self._sizes[split]:
            return split, int(number)
        raise NotFoundError(f"the drawn catalogue has no image {item!r}; ids run from {_name('train', 0)}")

    def _options(self, a: Codes, b: Codes) -> tuple[Option, ...]:
        return _cached_options(self.level.name, a, b)

    def _both_ways(self, stock: Stock, cluster: int, differing: int) -> list[tuple[Codes, Codes]]:
        """Return the pairs of a training cluster's corners that a text can lead across in both directions."""
        if (cluster, differing) not in self._ways:
            pairs = stock.clusters[cluster].pairs(differing)
            both = [(a, b) for a, b in pairs if self._options(a, b) and self._options(b, a)]
            self._ways[cluster, differing] = both
        return self._ways[cluster, differing]

    def _pairs_of(
        self, stock: Stock, cluster: int, rng: np.random.Generator, retelling: Retelling
    ) -> list[TrainingTriplet]:
        """Return both directions of a few pairs of one cluster, two in three of them one attribute apart."""
        made: list[TrainingTriplet] = []
        for _ in range(_PAIRS_TOGETHER):
            differing = 2 if "double" in self.level.kinds and rng.random() < 0.35 else 1
            both = self._both_ways(stock, cluster, differing)
            if not both:
                continue
            a, b = both[rng.integers(len(both))]
            first, second = (int(rng.choice(stock.clusters[cluster].corners[codes])) for codes in (a, b))
            for one, other, start, end in ((a, b, first, second), (b, a, second, first)):
                choices = self._options(one, other)
                made.append(self._training(stock, choices[rng.integers(len(choices))], start, end, rng, retelling))
        return made

    def _training(
        self, stock: Stock, option: Option, start: int, end: int, rng: np.random.Generator, retelling: Retelling
    ) -> TrainingTriplet:
        seen = int(rng.integers(len(self._phrasings.phrases_of(option.edits).seen)))
        text, typos = retelling.tell(option.edits, seen, rng.random())
        targets = [end] + [item for item in stock.matching(option.allowed) if item != end]
        names = tuple(_name("train", item) for item in targets)
        word_labels = self._word_labels(stock, option, end)
        return TrainingTriplet(_name("train", start), text, names, option.kind, word_labels, typos)

    def _word_labels(self, stock: Stock, option: Option, answer: int) -> tuple[WordLabel, ...]:
        return option.word_labels(self.level, self.level.describe(stock.codes[answer])["category"])

    def calibration_split(self) -> EvaluationProtocol:
        """Return the validation queries: their images are drawn for nothing else."""
        return self.protocols("val")[0]

    def category_edits(self, gallery: Sequence[str], count: int) -> tuple[EvalQuery, ...]:
        """Return queries that exclude or replace the category (see nsfse.data.text.category_edits)."""
        known = {item: self.describe(item) for item in gallery}
        return category_edits(known, "category", FREE_WITH_CATEGORY, self._phrasings, count)

    def questions(self) -> list[EvaluationProtocol]:
        """Return the test protocols of several images, texts and exclusions (see drawn_questions)."""
        version, gallery = self._version("test"), self.items("test")
        return [
            EvaluationProtocol(f"drawn-{part}", version, gallery, queries, note=_NOTE)
            for part in PARTS
            if (queries := self._asked(part))
        ]

    def _asked(self, part: str) -> tuple[EvalQuery, ...]:
        """Return a part's queries, as many of each kind."""
        stock, wanted = self.stock("test"), self.level.queries_per_kind
        rng = np.random.default_rng([7, self.test_seed, list(PARTS).index(part)])
        found: dict[str, list[EvalQuery]] = {kind: [] for kind in PARTS[part]}
        for question in questions(stock, part, wanted, rng):
            kind = found[question.kind]
            if len(kind) < wanted and (query := self._question(stock, question, rng)):
                kind.append(query)
            if all(len(queries) >= wanted for queries in found.values()):
                break
        return tuple(query for kind in found.values() for query in kind)

    def _question(self, stock: Stock, question: Question, rng: np.random.Generator) -> EvalQuery | None:
        """Return a question with its images chosen; None where they leave no answer."""
        shown = [
            int(rng.choice(stock.matching(tuple((code,) for code in codes))))
            for codes in (*question.references, *question.negative_images)
        ]
        right = tuple(_name("test", item) for item in question.right)
        hard = tuple(_name("test", item) for item in question.hard if item not in shown)
        names, count = [_name("test", item) for item in shown], len(question.references)
        texts = [self._phrased((edit,), rng) for edit in question.edits]
        query = EvalQuery(
            names[0],
            texts[0],
            right,
            hard,
            kind=question.kind,
            more_references=tuple(names[1:count]),
            more_texts=tuple(texts[1:]),
            negative_texts=question.negative_texts,
            negative_images=tuple(names[count:]),
        )
        return query if right else None

    def _phrased(self, edits: Sequence[Edit], rng: np.random.Generator) -> tuple[str, ...]:
        """Return the texts of a test query: two phrasings that training sees, then those it never sees."""
        phrases = self._phrasings.phrases_of(edits)
        seen = rng.choice(len(phrases.seen), size=SEEN_TEXTS, replace=False)
        templates = [*(phrases.seen[i] for i in seen), *phrases.held_out]
        return tuple(self._phrasings.fill(template, edits) for template in templates)

    def _queries(self, stock: Stock, split: str) -> Iterator[tuple[str, EvalQuery]]:
        """Yield (part, query) in a random order: every option of every pair of corners, once."""
        rng = np.random.default_rng([3, self.test_seed, _SPLITS[split]])
        ways = [
            (cluster, one, other, option)
            for cluster in stock.clusters
            for differing in (1, 2)
            for a, b in cluster.pairs(differing)
            for one, other in ((a, b), (b, a))
            for option in self._options(one, other)
        ]
        for way in rng.permutation(len(ways)).tolist():
            cluster, one, other, option = ways[way]
            held = stock.is_unseen(one) or stock.is_unseen(other)
            reference = int(rng.choice(cluster.corners[one]))
            yield "heldout" if held else option.kind, self._query(stock, split, option, reference, rng)

    def _query(self, stock: Stock, split: str, option: Option, reference: int, rng: np.random.Generator) -> EvalQuery:
        texts = self._phrased(option.edits, rng)
        answers = stock.matching(option.allowed)
        return EvalQuery(
            _name(split, reference),
            texts,
            tuple(_name(split, item) for item in answers),
            tuple(_name(split, item) for item in stock.one_off(option.allowed) if item != reference),
            kind=option.kind,
            word_labels=self._word_labels(stock, option, answers[0]),
        )


def draw_query_set(
    folder: Path, items: int = 4000, seed: int = 0, size: int = 128, level: str = "standard"
) -> dict[str, int]:
    """Write a test split of `items` images of `size` x `size` pixels as a query set; return its counts.

    The same items, seed and level give the queries of `DrawnSource(level, gallery=items, test_seed=seed)`; the same
    folder may be written again. Raises UsageError for fewer than 16 items, OutputError where it cannot be written.
    """
    source = DrawnSource(level, test_seed=seed, gallery=items)
    ids = source.items("test")
    protocols = [*source.protocols("test"), *source.questions()]
    queries = [(p.name, "test", query) for p in protocols for query in p.queries]
    rows = {item: {"file": f"images/{item}.png", "split": "test", **source.describe(item)} for item in ids}
    _refuse_others(folder, protocols[0].name)
    write_query_set(folder, rows, queries)
    try:
        (folder / "images").mkdir(exist_ok=True)
        for item in ids:
            Image.fromarray(source.load(item, (size, size))).save(folder / rows[item]["file"], compress_level=4)
    except OSError as error:
        raise OutputError(f"cannot write images to {folder}: {error.strerror}; choose another folder") from error
    return {"items": len(ids), "queries": len(source.protocols("test")[0].queries), "seed": seed, "size": size}


def _refuse_others(folder: Path, protocol: str) -> None:
    """Raise OutputError where `folder` holds something else than a drawn query set."""
    check_folder(folder, ("items.csv", "images"), ("queries.jsonl",))
    first = b""
    with suppress(FileNotFoundError), (folder / "queries.jsonl").open("rb") as file:
        first = file.readline()
    if first and f'"protocol": "{protocol}"'.encode() not in first:
        raise OutputError(f"{folder} holds another query set; choose an empty folder or a new one")


@functools.cache
def _cached_options(level: str, a: Codes, b: Codes) -> tuple[Option, ...]:
    return tuple(option for option in options(LEVELS[level], a, b) if option.kind in LEVELS[level].kinds)


def _name(split: str, item: int) -> str:
    return f"{split}-{item:06d}"
