"""What a sync reports: its progress after each commit, and its counts at the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """What is committed: `ids` are in the gallery, `failed` (path, reason) are not; `done` of `total` files."""

    done: int
    total: int
    ids: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class SyncReport:
    """What a sync did, mostly as counts of images.

    Attributes:
        added: Images that are new.
        updated: Images whose content changed.
        renamed: Images that were moved.
        removed: Images whose files are gone.
        unchanged: Images that are as before.
        encoded: Images that the model has seen.
        failed: (path, reason) of every file that was not taken.
        unmatched: Keys of the metadata table that name no image, or several.
        loose: (key, id) of those that name an image by a part of its path or name.
        metadata_changed: Images, known before, of which a table or a request changed the metadata.
        columns_changed: Of how many of them each column was set or removed.
        metadata_kept: Images with metadata that no row of the table names: theirs stay.
        excluded: Images that were in the gallery and are left out now, by a rule.
        left_out: Files and folders left out, counted by the rule, a folder as one.
        device: What encoded.
        workers: Threads that decoded.
        batch: Images encoded at a time, at most.
        seconds: The time of reading, encoding and committing.
        images_per_second: Images encoded in that time.
        shards: Shards that were indexed now.
        shards_before: Shards that are as they were when they were indexed before.
        ann: The gallery's index, where it has one: entries, depth, recall.
    """

    added: int = 0
    updated: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0
    encoded: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    loose: list[tuple[str, str]] = field(default_factory=list)
    metadata_changed: int = 0
    columns_changed: dict[str, int] = field(default_factory=dict)
    metadata_kept: int = 0
    excluded: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    device: str = ""
    workers: int = 0
    batch: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    shards: int = 0
    shards_before: int = 0
    ann: dict[str, float] | None = None

    def count_changes(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Count the columns of an image that differ."""
        self.metadata_changed += 1
        for column in sorted({*before, *after}):
            if before.get(column) != after.get(column):
                self.columns_changed[column] = self.columns_changed.get(column, 0) + 1
