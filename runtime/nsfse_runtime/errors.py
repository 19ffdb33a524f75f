"""Every error a user can meet, one family.

    NsfseError                      exit code
    ├── UsageError (ValueError)             2   a wrong option or combination of options
    ├── MissingExtraError (ImportError)     2   an optional dependency is not installed
    ├── InputError (ValueError)             3   a problem with what was given
    │   ├── NotFoundError (FileNotFoundError)
    │   ├── ImageError                          an image that cannot be read safely
    │   ├── TextError                           a modification text that cannot be used
    │   ├── DataError                           a data set or table that is not in its form
    │   └── OutputError (OSError)               a place that cannot be written
    ├── VersionError (RuntimeError)         4   another format, or a gallery of another bundle
    └── IntegrityError (ValueError)         5   a damaged file, or an export that does not agree

A message is one line and says what, where and what to do next.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NsfseError(Exception):
    """The root of the family; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(NsfseError, ValueError):
    """A wrong option or combination of options."""

    exit_code = 2


class MissingExtraError(NsfseError, ImportError):
    """An optional dependency is not installed; the message names the `pip install` that brings it."""

    exit_code = 2


class InputError(NsfseError, ValueError):
    """A problem with what was given: a file, a text, a table."""

    exit_code = 3


class NotFoundError(InputError, FileNotFoundError):
    """A file, folder or gallery id that is not there."""

    def __str__(self) -> str:
        """Return the message alone (OSError would add an errno)."""
        return str(self.args[0]) if self.args else ""


class ImageError(InputError):
    """An image that cannot be read safely."""


class TextError(InputError):
    """A modification text that cannot be used."""


class DataError(InputError):
    """A data set, table or configuration that is not in its form."""


class OutputError(InputError, OSError):
    """A place that cannot be written."""

    def __str__(self) -> str:
        """Return the message alone (OSError would add an errno)."""
        return str(self.args[0]) if self.args else ""


class VersionError(NsfseError, RuntimeError):
    """A format this version does not read, or a gallery made with another bundle."""

    exit_code = 4


class IntegrityError(NsfseError, ValueError):
    """A damaged file, or an export that does not agree with its model."""

    exit_code = 5


def capture_error(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | NsfseError:
    """Return what `function` returns, or its error in its place."""
    try:
        return function(*args, **options)
    except NsfseError as error:
        return error
