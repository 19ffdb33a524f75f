"""What a server is told when it starts, and what it grants a request."""

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nsfse_runtime.errors import NotFoundError, UsageError

IMAGE_BYTES = 20_000_000
# A body is its images and a megabyte of everything else.
BODY_BYTES = 21_000_000
JSON_BYTES = 1_000_000
# How many requests may be at work at once, those that still send their body among them.
MOST_REQUESTS = 256
LONGEST_SIDE, THUMBNAIL_SIDE = 1024, 256
_LEAST_TOKEN = 16
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One server's settings.

    `allow_hosts` are the names it may be called by besides those of loopback and `host`. At most `queue` queries wait,
    `per_client` of one address (0: no such limit), and none longer than `deadline` seconds; up to `batch` are answered
    at a time. A body must arrive within `body_seconds`. Told to stop, it goes on for `drain` seconds, not ready.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allow_hosts: tuple[str, ...] = ()
    queue: int = 64
    per_client: int = 32
    batch: int = 16
    deadline: float = 10.0
    body_seconds: float = 30.0
    drain: float = 0.0

    def check(self) -> None:
        """Raise UsageError for an address that others reach, without a token, and for a token too easily guessed."""
        if self.token is not None and len(self.token) < _LEAST_TOKEN:
            raise UsageError(f"the token has {len(self.token)} characters; use {_LEAST_TOKEN} or more, at random")
        if self.token is None and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached by others, and there is no token; "
                "give one with --token-file or NSFSE_TOKEN, or listen on 127.0.0.1"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """Return the names, in lower case, that a request may call this server by."""
        return frozenset(name.lower().strip("[]") for name in (*_LOOPBACK, self.host, *self.allow_hosts))


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(file: Path | None) -> str | None:
    """Return the token of `file`, or else of the environment's NSFSE_TOKEN. Raises NotFoundError or UsageError."""
    if file is None:
        token, where = os.environ.get("NSFSE_TOKEN", ""), "NSFSE_TOKEN"
        if not token:
            return None
    else:
        token, where = _first_word(file), str(file)
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{where} holds no token: one word of plain characters, {_LEAST_TOKEN} or more")
    return token


def _first_word(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except FileNotFoundError:
        raise NotFoundError(f"no token at {file}; write one there, {_LEAST_TOKEN} characters or more") from None
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{file} cannot be read as a token: {error}") from error


def named_galleries(arguments: Sequence[str]) -> dict[str, Path]:
    """Parse the [NAME=]GALLERY of -g; a gallery without a name is called as its file. Raises UsageError."""
    named: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path or Path(argument).exists():
            name, path = Path(argument).stem, argument
        if not name or len(name) > 64 or not all(each.isalnum() or each in "._-" for each in name):
            raise UsageError(f"{name!r} cannot name a gallery; use letters, digits, dots and dashes: -g NAME=GALLERY")
        if name in named:
            raise UsageError(f"two galleries are called {name}; give one of them another name: -g NAME=GALLERY")
        named[name] = Path(path)
    return named
