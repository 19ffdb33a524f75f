"""The queries of the drawn catalogue, of one edit and of several images, texts and exclusions."""

from collections.abc import Iterator, Sequence

import numpy as np

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.synthetic.compound_queries import PARTS, CompoundQuery, compound_queries
from nsfse.data.synthetic.edits import EditOption, level_edit_options
from nsfse.data.synthetic.items import SPLITS, SyntheticItems, item_id
from nsfse.data.text.templates import Edit, TemplateSet

VERSION = "1"
BASE_TEXTS = 2
"""A query has four texts: two phrasings of those training sees, then the two it never sees."""
_NOTE = "texts 1-2 are phrasings that training sees, texts 3-4 are held out of it"


class QueryMaker:
    """Makes the protocols of one split, the same for the same items and seed."""

    def __init__(self, items: SyntheticItems, split: str, seed: int, templates: TemplateSet) -> None:
        self._items, self._split, self._seed, self._templates = items, split, seed, templates
        self._level = items.level
        self._gallery = tuple(item_id(split, number) for number in range(len(items.codes)))

    def protocols(self) -> list[EvaluationProtocol]:
        """Return `drawn`, all queries, and for the test split its parts: `drawn-single`, ..., `drawn-heldout`."""
        parts: dict[str, list[EvalQuery]] = {kind: [] for kind in (*self._level.kinds, "heldout")}
        wanted = self._level.queries_per_kind if self._split == "test" else self._level.queries_per_kind // 2
        for part, query in self._queries():
            if len(parts[part]) < wanted:
                parts[part].append(query)
            if all(len(queries) >= wanted for queries in parts.values()):
                break
        whole = [query for queries in parts.values() for query in queries]
        order = np.random.default_rng([5, self._seed]).permutation(len(whole)).tolist()
        named = {"drawn": [whole[index] for index in order]}
        if self._split == "test":
            named |= {f"drawn-{part}": queries for part, queries in parts.items() if queries}
        return [self._protocol(name, queries) for name, queries in named.items()]

    def compound_protocols(self) -> list[EvaluationProtocol]:
        """Return the protocols of several images, texts and exclusions (see compound_queries)."""
        named = {f"drawn-{part}": self._compound_queries(part) for part in PARTS}
        return [self._protocol(name, queries) for name, queries in named.items() if queries]

    def _protocol(self, name: str, queries: Sequence[EvalQuery]) -> EvaluationProtocol:
        version = f"{VERSION}-{self._level.name}-{self._split}-{self._seed}"
        version = version if self._templates.name == "en" else f"{version}-{self._templates.name}"
        return EvaluationProtocol(name, version, self._gallery, tuple(queries), note=_NOTE)

    def _queries(self) -> Iterator[tuple[str, EvalQuery]]:
        """Yield (part, query) in a random order: every option of every pair of corners, once."""
        rng = np.random.default_rng([3, self._seed, SPLITS[self._split]])
        options = [
            (cluster, start, goal, option)
            for cluster in self._items.clusters
            for differing in (1, 2)
            for a, b in cluster.pairs(differing)
            for start, goal in ((a, b), (b, a))
            for option in level_edit_options(self._level.name, start, goal)
        ]
        for index in rng.permutation(len(options)).tolist():
            cluster, start, goal, option = options[index]
            unseen = self._items.is_unseen(start) or self._items.is_unseen(goal)
            reference = int(rng.choice(cluster.corners[start]))
            yield "heldout" if unseen else option.kind, self._query(option, reference, rng)

    def _query(self, option: EditOption, reference: int, rng: np.random.Generator) -> EvalQuery:
        texts = self._texts(option.edits, rng)
        answers = self._items.matching(option.allowed)
        hard = [item for item in self._items.near_misses(option.allowed) if item != reference]
        return EvalQuery(
            item_id(self._split, reference),
            texts,
            tuple(item_id(self._split, item) for item in answers),
            tuple(item_id(self._split, item) for item in hard),
            kind=option.kind,
            word_labels=option.word_labels(self._level, self._items.codes[answers[0]]),
        )

    def _compound_queries(self, part: str) -> tuple[EvalQuery, ...]:
        """Return a part's queries, as many of each kind."""
        wanted = self._level.queries_per_kind
        rng = np.random.default_rng([7, self._seed, list(PARTS).index(part)])
        by_kind: dict[str, list[EvalQuery]] = {kind: [] for kind in PARTS[part]}
        for compound in compound_queries(self._items, part, wanted, rng):
            queries = by_kind[compound.kind]
            if len(queries) < wanted and (query := self._compound_query(compound, rng)):
                queries.append(query)
            if all(len(queries) >= wanted for queries in by_kind.values()):
                break
        return tuple(query for queries in by_kind.values() for query in queries)

    def _compound_query(self, compound: CompoundQuery, rng: np.random.Generator) -> EvalQuery | None:
        """Return a query with its images chosen; None where they leave no answer."""
        shown = [
            int(rng.choice(self._items.matching(tuple((code,) for code in codes))))
            for codes in (*compound.references, *compound.negative_images)
        ]
        names, count = [item_id(self._split, item) for item in shown], len(compound.references)
        texts = [self._texts((edit,), rng) for edit in compound.edits]
        query = EvalQuery(
            names[0],
            texts[0],
            tuple(item_id(self._split, item) for item in compound.targets),
            tuple(item_id(self._split, item) for item in compound.hard if item not in shown),
            kind=compound.kind,
            more_references=tuple(names[1:count]),
            more_texts=tuple(texts[1:]),
            negative_texts=compound.negative_texts,
            negative_images=tuple(names[count:]),
        )
        return query if query.targets else None

    def _texts(self, edits: Sequence[Edit], rng: np.random.Generator) -> tuple[str, ...]:
        """Return the texts of a query: two phrasings that training sees, then those it never sees."""
        templates = self._templates.templates_for(edits)
        base = rng.choice(len(templates.base), size=BASE_TEXTS, replace=False)
        chosen = [*(templates.base[index] for index in base), *templates.held_out]
        return tuple(self._templates.fill(template, edits) for template in chosen)
