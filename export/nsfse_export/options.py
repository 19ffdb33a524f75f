"""Options of an export; importing them needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nsfse_runtime.inference.manifest import Precision


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a run becomes a bundle.

    Attributes:
        which: The weights to export: the last ones, or the best ones on validation.
        precision: What the graphs compute in.
        verify_on: A folder with a query set to verify a precision under fp32 on; by default the run's own validation.
        skip_verification: Do not verify a precision under fp32 on retrieval.
    """

    which: Literal["last", "best"] = "last"
    precision: Precision = "fp32"
    verify_on: Path | None = None
    skip_verification: bool = False
