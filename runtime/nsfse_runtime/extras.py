"""Optional dependencies: present, or one line that says how to bring them."""

from importlib import metadata
from importlib.util import find_spec

from nsfse_runtime.errors import MissingExtraError


def installed(module: str) -> bool:
    """Tell whether `module` can be found, without importing it (but for its parents)."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent is missing
        return False


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed package, by its name on the package index; None without it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def need(module: str, extra: str, hint: str = "") -> None:
    """Raise MissingExtraError, naming the `pip install`, if `module` of the extra `extra` is not installed.

    `hint` says where else to look if pip cannot bring it.
    """
    if not installed(module):
        raise MissingExtraError(f'{module} is not installed; run: pip install "nsfse[{extra}]"{hint and "; " + hint}')
