"""One image of each group of a metadata column: the best of stage 1 (docs/queries.md §11)."""

from collections.abc import Iterable, Sequence

import numpy as np

from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.search.two_stage import TIE
from nsfse_runtime.types import Floats, Mask


def best_of_groups(vectors: Floats, query: Floats, mask: Mask, column: Column) -> Mask:
    """Return which rows are the best of their group.

    Args:
        vectors: The gallery's vectors [N, d].
        query: The query's vector [d].
        mask: Which rows [N] may be found.
        column: Its values are the groups. An image without one is a group of its own.

    Returns:
        A mask [N]: of each group the row in `mask` with the greatest inner product with `query`,
        the first of those that tie.
    """
    rows = np.flatnonzero(mask)
    if not len(rows):
        return mask
    scores, groups = np.vecdot(vectors, query)[rows], column.codes[rows]
    top = np.full(len(column.values), -np.inf, np.float32)
    np.maximum.at(top, groups, scores)
    tied = rows[scores >= top[groups] - TIE * np.maximum(1, np.abs(top[groups]))]
    best = mask & ~column.present[column.codes]
    best[tied[np.unique(column.codes[tied], return_index=True)[1]]] = True
    return best


def best_of_groups_in_pages(
    pages: Iterable[Sequence[tuple[str, Floats, str | None]]], query: Floats
) -> list[tuple[str, Floats]]:
    """Return the best image of each group, where images come in pages: ids, vectors [d] and values of the column.

    An image whose value is None is a group of its own.
    """
    best: list[tuple[str, Floats, str | None]] = []
    for page in pages:
        best = sorted([*best, *page], key=lambda image: image[0])
        vectors = np.array([vector for _, vector, _ in best], np.float32).reshape(len(best), len(query))
        column = Column("", [value for _, _, value in best])
        kept = best_of_groups(vectors, query, np.ones(len(best), np.bool_), column)
        best = [image for image, is_kept in zip(best, kept, strict=True) if is_kept]
    return [(name, vector) for name, vector, _ in best]
