"""What a sync reports: its progress after each commit, and its counts at the end."""

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
    """Counts of images, `encoded` those the model has seen; `failed` (path, reason) is every file not taken.

    `excluded` are images that were in the gallery and are left out now, by a rule; `left_out` counts files and folders
    by the rule that left them out of this sync, a folder as one. `unmatched` are keys of the metadata table that name
    no image, or several; `loose` (key, id) those that name one by a part of its path or name. `device` is what encoded,
    in batches of up to `batch`, with `workers` threads that decoded; `seconds` is the time of reading, encoding and
    committing, and `images_per_second` how many images were encoded in it. `ann` tells of the gallery's index, where it
    has one.
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
    excluded: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    device: str = ""
    workers: int = 0
    batch: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    ann: dict[str, float] | None = None
