"""A query as a value: pictures, texts, what must not be there, and how they weigh."""

from collections.abc import Mapping, Sequence

import msgspec

from nsfse_runtime.retriever import Reference


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for."""

    references: tuple[Reference, ...]
    texts: tuple[str, ...] = ()
    minus_texts: tuple[str, ...] = ()
    minus: tuple[Reference, ...] = ()
    balance: float = 0.5
    k: int = 10
    where: Mapping[str, str | Sequence[str]] | None = None
    rerank: int = 100
    min_score: float = 0.0
    maps: bool = False
