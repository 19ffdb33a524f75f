"""nsfse: composed image retrieval. An image and a few words in, the image you meant out.

Training, evaluation and the command line live here; `nsfse_export` turns a checkpoint into a bundle and
`nsfse_runtime` serves it without torch. Names below are imported when first used, so `import nsfse` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "evaluate_dataset": "nsfse.evaluation.datasets",
    "evaluate_query_set": "nsfse.evaluation.datasets",
    "load_checkpoint": "nsfse.models.checkpoint",
    "load_config": "nsfse.config",
    "open_scorer": "nsfse.open",
    "open_source": "nsfse.data.registry",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its home; raise AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nsfse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
