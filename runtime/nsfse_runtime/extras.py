"""Optional dependencies: present, or one line that says how to bring them."""

from importlib.util import find_spec

from nsfse_runtime.errors import MissingExtraError


def need(module: str, extra: str) -> None:
    """Raise MissingExtraError, naming the `pip install`, if `module` of the extra `extra` is not installed."""
    if find_spec(module) is None:
        raise MissingExtraError(f'{module} is not installed; run: pip install "nsfse[{extra}]"')
