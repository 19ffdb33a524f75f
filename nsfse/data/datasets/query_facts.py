"""What the table of a query set tells about its queries, beside their right answers."""

from collections.abc import Collection, Iterable

from nsfse.data.datasets.items import ItemTable
from nsfse.data.text.exclusions import excludes

COLOUR, SECOND_COLOUR, BACKGROUND = "colour", "colour2", "background"
"""Columns of items.csv. COLOUR is also the kind of queries that request one."""
NAMED = ("category", COLOUR, SECOND_COLOUR, "pattern", "print", "sleeve")
"""Columns whose values a text may name."""


class QueryFacts:
    """Answers from the columns of a table; nothing where it lacks one of BACKGROUND and NAMED."""

    def __init__(self, table: ItemTable) -> None:
        self._rows = table.rows
        self._known = {BACKGROUND, *NAMED} <= {*table.columns}
        self._of_split: dict[tuple[str, str], tuple[str, ...]] = {}

    def background_only(
        self, kind: str, targets: Collection[str], split: str, gallery: Iterable[str]
    ) -> tuple[str, ...] | None:
        """Return the images whose background has the requested colour, and which do not have it themselves.

        Args:
            kind: The query's kind.
            targets: Its right answers, all of the requested colour.
            split: The split whose images the gallery is.
            gallery: These images.

        Returns:
            Their ids; None where the query requests no colour or the table does not know.
        """
        if not self._known or kind != COLOUR:
            return None
        colours = {self._rows[item][COLOUR] for item in targets}
        if len(colours) != 1:
            return None
        (colour,) = colours
        if (split, colour) not in self._of_split:
            self._of_split[split, colour] = tuple(item for item in gallery if self._is_background_only(item, colour))
        return self._of_split[split, colour]

    def _is_background_only(self, item: str, colour: str) -> bool:
        row = self._rows[item]
        return row[BACKGROUND] == colour and colour not in (row[COLOUR], row[SECOND_COLOUR])

    def old_value_named(self, reference: str, texts: Iterable[str], targets: Collection[str]) -> tuple[int, ...]:
        """Return the positions of the texts that exclude, by its name, a value of the reference that no answer has."""
        if not self._known:
            return ()
        old = {
            self._rows[reference][column]
            for column in NAMED
            if all(self._rows[item][column] != self._rows[reference][column] for item in targets)
        }
        names = {name for value in old if value.strip("-?") for name in (value, value.replace("-", " "))}
        return tuple(at for at, text in enumerate(texts) if any(excludes(text, name) for name in names))
