"""Which queries of a protocol are scored, which are left out and why, and what is odd about those that count."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsfse.data import EvalQuery, EvaluationProtocol, Source
from nsfse.data.text.vocabulary import count_read
from nsfse_runtime.types import Scorer

__all__ = ["LEFT_OUT", "ODD", "QueryNote", "left_out", "odd_queries", "scorable_queries", "text_counts", "unlisted"]

LEFT_OUT = {
    "reference_unlisted": ("its reference is in no split list", "their references are in no split list"),
    "reference_missing": ("the image of its reference is missing", "the images of their references are missing"),
    "no_target": ("it names no target", "they name no target"),
    "target_missing": ("the image of its target is missing", "the images of their targets are missing"),
    "target_not_in_split": ("its target is not in the split", "their targets are not in the split"),
}
"""Reason why a query is left out → its text for one query, and for several. The first that holds is given."""

ODD = {
    "target_is_reference": ("its target is its reference", "their targets are their references"),
    "target_not_in_set": ("its target is not in its image set", "their targets are not in their image sets"),
    "set_not_of_five": ("its image set does not have five candidates", "their image sets do not have five candidates"),
    "member_missing": ("a member of its image set is not in the gallery", "members of their image sets are not there"),
    "member_twice": ("its image set lists a member twice", "their image sets list a member twice"),
    "target_twice": ("it lists a target twice", "they list a target twice"),
}
"""What is odd about a query that is counted all the same → its text for one query, and for several."""

CANDIDATES = 5
"""How many members of an image set R_subset ranks: CIRR's six without the reference."""
EXAMPLES = 3
"""How many queries are named for each reason."""


@dataclass(frozen=True, slots=True)
class QueryNote:
    """Queries that share a `reason` of LEFT_OUT or ODD: how many `queries`, and the names of the first of them."""

    reason: str
    queries: int
    examples: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the documented form."""
        return {"reason": self.reason, "queries": self.queries, "examples": list(self.examples)}


def scorable_queries(
    protocol: EvaluationProtocol, missing: Collection[str] = (), unlisted: Collection[str] = ()
) -> list[EvalQuery]:
    """Return the queries that can be scored.

    Their images are there, and at least one target is, where targets are known.

    Args:
        protocol: Gallery and queries.
        missing: Ids outside the gallery whose images are missing.
        unlisted: Ids that no list of the data set has.

    Returns:
        Queries in the protocol's order.
    """
    reasons = _reasons(protocol, missing, unlisted)
    return [query for query, reason in zip(protocol.queries, reasons, strict=True) if not reason]


def left_out(
    protocol: EvaluationProtocol, missing: Collection[str] = (), unlisted: Collection[str] = ()
) -> tuple[QueryNote, ...]:
    """Return why the other queries are left out, the reasons in the order of LEFT_OUT."""
    return _noted(protocol, list(_reasons(protocol, missing, unlisted)), LEFT_OUT)


def odd_queries(protocol: EvaluationProtocol, scored: Iterable[EvalQuery]) -> tuple[QueryNote, ...]:
    """Return what is odd about the queries that are `scored`, each kind counted by itself."""
    known = {id(query) for query in scored}
    gallery = frozenset(protocol.gallery)
    reasons = [dict.fromkeys(_odd(query, gallery), "") if id(query) in known else {} for query in protocol.queries]
    return _noted(protocol, reasons, ODD)


def unlisted(source: Source, protocols: Iterable[EvaluationProtocol]) -> frozenset[str]:
    """Return the ids that queries show and that no list of `source` has, so that it has no image of them."""
    images = getattr(source, "images", None)
    if not images:  # it draws what it names, or has no image at all, so that nothing can be scored
        return frozenset()
    shown = {item for protocol in protocols for query in protocol.queries for item in query.reference_ids}
    return frozenset(shown.difference(images, source.missing))


def text_counts(scorer: Scorer, texts: Sequence[str]) -> dict[str, int] | None:
    """Count texts that the model reads only in part.

    Args:
        scorer: The model.
        texts: The texts; one that cannot be read at all counts in `count` alone.

    Returns:
        How many texts there are, have an unknown word, or are longer than the model reads. None for
        a scorer without a tokenizer.
    """
    tokenizer = scorer.tokenizer
    if tokenizer is None:
        return None
    counts = count_read(tokenizer, texts)
    return {
        "count": counts["texts"],
        "with_unknown_word": counts["texts_with_unknown_words"],
        "longer_than_read": counts["texts_cut"],
        "words_read": tokenizer.max_words,
    }


def _reasons(
    protocol: EvaluationProtocol, missing: Collection[str], unlisted: Collection[str]
) -> Iterator[dict[str, str]]:
    """Yield for each query why it is left out → the id that is to blame, or nothing."""
    gallery, missing_ids = frozenset(protocol.gallery), frozenset(protocol.missing_ids).union(missing)
    unlisted_ids = frozenset(unlisted)
    answers_hidden = not any(query.targets for query in protocol.queries)  # then a test server has the answers
    for query in protocol.queries:
        if culprit := next((item for item in query.reference_ids if item in unlisted_ids), ""):
            yield {"reference_unlisted": culprit}
        elif culprit := next((item for item in query.reference_ids if item in missing_ids), ""):
            yield {"reference_missing": culprit}
        elif answers_hidden or not gallery.isdisjoint(query.targets):
            yield {}
        elif not query.targets:
            yield {"no_target": ""}
        else:
            yield {
                "target_not_in_split" if missing_ids.isdisjoint(query.targets) else "target_missing": query.targets[0]
            }


def _odd(query: EvalQuery, gallery: frozenset[str]) -> Iterator[str]:
    if query.targets and set(query.targets) <= set(query.reference_ids):
        yield "target_is_reference"
    if query.subset and query.targets and set(query.subset).isdisjoint(query.targets):
        yield "target_not_in_set"
    if query.pairid and query.subset and len(query.subset) != CANDIDATES:
        yield "set_not_of_five"
    if not gallery.issuperset(query.subset):
        yield "member_missing"
    if len(set(query.subset)) < len(query.subset):
        yield "member_twice"
    if len(set(query.targets)) < len(query.targets):
        yield "target_twice"


def _noted(
    protocol: EvaluationProtocol, reasons_of: Sequence[Mapping[str, str]], order: Iterable[str]
) -> tuple[QueryNote, ...]:
    notes = []
    for reason in order:
        positions = [position for position, reasons in enumerate(reasons_of) if reason in reasons]
        if positions:
            named = (
                _name(protocol.queries[position], position, reasons_of[position][reason])
                for position in positions[:EXAMPLES]
            )
            notes.append(QueryNote(reason, len(positions), tuple(named)))
    return tuple(notes)


def _name(query: EvalQuery, position: int, item: str) -> str:
    name = f"pairid {query.pairid}" if query.pairid else f"query {position + 1}, reference {query.reference}"
    return name if item in ("", query.reference) and not query.pairid else f"{name}: {item}" if item else name
