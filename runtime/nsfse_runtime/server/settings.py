"""The settings of a server, and the limits of a request."""

import ipaddress
import os
import random
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.regular_files import read_regular
from nsfse_runtime.stores.open import gallery_name, is_store_url

MAX_IMAGE_BYTES = 20_000_000
# A body is its images and a megabyte of everything else.
MAX_BODY_BYTES = 21_000_000
MAX_JSON_BYTES = 1_000_000
# Those that still send their body among them.
MAX_CONCURRENT_REQUESTS = 256
# Of one address, where there is a limit per client at all: connections, requests, and bytes of their bodies.
MAX_CLIENT_CONNECTIONS, MAX_CLIENT_REQUESTS, MAX_CLIENT_BYTES = 128, 64, 256_000_000
# An address with too many of them waits about so long for a refusal: coming again at once, it would cost others time.
REFUSAL_SECONDS = 1.0
# A body may come no slower, once its time of grace has passed: bytes a second.
MIN_BODY_RATE = 10_000
MAX_SIDE, THUMBNAIL_SIDE = 1024, 256
_MIN_TOKEN_LENGTH = 16
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?", re.ASCII)
_ROOT_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def refusal_delay() -> float:
    """Return for how many seconds a refusal waits: not all as long, so that the refused do not return together."""
    return random.uniform(0.5, 1.5) * REFUSAL_SECONDS


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One server's settings.

    Attributes:
        host: the address to listen on.
        port: 0 takes a free one.
        write_tokens: one of them opens every route; required where others than this machine reach `host`.
        read_tokens: one of them opens every route but those that change images.
        allow_origins: sites whose pages may send requests: https://shop.example.
        root_path: the prefix under which a proxy serves it: /images.
        allow_hosts: host names of the server besides `host` and those of loopback.
        queue: how many queries may be accepted and not yet answered.
        per_client: how many of them may be of one address; 0 for no limit of one address at all.
        batch: how many queries the model answers at a time, at most.
        deadline: seconds after which a query is given up.
        body_seconds: seconds in which a body must arrive.
        body_grace: seconds for which a body may come slower than MIN_BODY_RATE.
        canary_seconds: between two queries that the server sends to itself, on which readiness depends.
        shutdown_delay: seconds for which the server goes on after the signal to stop, not ready.
        traces: whether each request is traced by OpenTelemetry.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    write_tokens: tuple[str, ...] = ()
    read_tokens: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    root_path: str = ""
    allow_hosts: tuple[str, ...] = ()
    queue: int = 64
    per_client: int = 32
    batch: int = 16
    deadline: float = 10.0
    body_seconds: float = 30.0
    body_grace: float = 5.0
    canary_seconds: float = 15.0
    shutdown_delay: float = 0.0
    traces: bool = False

    def check(self) -> None:
        """Raise UsageError for an address that others reach without a token, and for values out of form."""
        for token in (*self.write_tokens, *self.read_tokens):
            if len(token) < _MIN_TOKEN_LENGTH:
                raise UsageError(f"a token has {len(token)} characters; use {_MIN_TOKEN_LENGTH} or more, at random")
        if set(self.write_tokens) & set(self.read_tokens):
            raise UsageError("the same token is to read and to write; give others to those who only read")
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(f"{origin!r} is no origin; write it as browsers do: https://shop.example")
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise UsageError(f"{self.root_path!r} is no prefix of a path; write it as /images")
        if not (self.write_tokens or self.read_tokens) and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached by others, and there is no token; "
                "give one with --token-file or NSFSE_TOKEN, or listen on 127.0.0.1"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """The host names of this server, in lower case."""
        return frozenset(name.lower().strip("[]") for name in (*_LOOPBACK, self.host, *self.allow_hosts))


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load_tokens(file: Path | None, variable: str) -> tuple[str, ...]:
    """Return the tokens of `file`, one a line, or else the one of the environment's `variable`.

    Raises NotFoundError or UsageError.
    """
    if file is None:
        text, where = os.environ.get(variable, ""), variable
        if not text:
            return ()
    else:
        text, where = _read_secret(file), str(file)
    tokens = tuple(text.split("\n"))
    if not all(token and token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise UsageError(f"{where} holds no token: one word of plain characters, {_MIN_TOKEN_LENGTH} or more")
    return tokens


def _read_secret(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        if os.name == "posix" and stat.S_ISREG(mode) and mode & (stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
            raise UsageError(f"others may read or write the token in {file}; take their rights: chmod 600 {file}")
        text = read_regular(file).decode("utf-8")
        return "\n".join(line.strip() for line in text.strip().splitlines())
    except FileNotFoundError:
        raise NotFoundError(f"no token at {file}; write one there, {_MIN_TOKEN_LENGTH} characters or more") from None
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{file} cannot be read as a token: {error}") from error


def named_galleries(arguments: Sequence[str]) -> dict[str, str]:
    """Return galleries by name, from arguments [NAME=]GALLERY, paths or URLs. Raises UsageError.

    The default is the file's name, or that of the gallery in the database.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if is_store_url(argument):
            name, path = gallery_name(argument), argument
        elif not path or Path(argument).exists():
            name, path = Path(argument).stem, argument
        if not name or len(name) > 64 or not all(letter.isalnum() or letter in "._-" for letter in name):
            raise UsageError(f"{name!r} cannot name a gallery; use letters, digits, dots and dashes: -g NAME=GALLERY")
        if name in named:
            raise UsageError(f"two galleries are called {name}; give one of them another name: -g NAME=GALLERY")
        named[name] = path
    return named
