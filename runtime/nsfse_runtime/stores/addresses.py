"""What the URL of a gallery on a server says: ENGINE://USER:PASSWORD@HOST:PORT/DATABASE?gallery=NAME&secure=true."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from nsfse_runtime.errors import UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.stores.protocol import check_name

_HOST = re.compile(r"[\w.:%-]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gallery is.

    Attributes:
        http: Where the server is, as a URL of HTTP.
        user: "" where there is none.
        password: "" where there is none.
        database: "" for the default one.
        name: The gallery's name.
        shown: The URL without a password.
    """

    http: str
    user: str
    password: str
    database: str
    name: str
    shown: str


def parse(url: str, port: int) -> Address:
    """Return what `url` says; `port` is the engine's own. Raises UsageError."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    name, secure = options.pop("gallery", "gallery"), options.pop("secure", "false")
    check_name(name)
    try:
        host, port = parts.hostname, parts.port or port
    except ValueError:
        host = None
    if not host or not _HOST.fullmatch(host) or options or secure not in ("true", "false"):
        raise UsageError(
            printable(f"no host, a port that is none, or options {[*options]}; use {parts.scheme}://HOST?gallery=NAME")
        )
    user, database = unquote(parts.username or ""), parts.path.strip("/")
    host = f"[{host}]" if ":" in host else host
    return Address(
        http=f"{'https' if secure == 'true' else 'http'}://{host}:{port}",
        user=user,
        password=unquote(parts.password or ""),
        database=database,
        name=name,
        shown=printable(f"{parts.scheme}://{user}{'@' if user else ''}{host}:{port}/{database}?gallery={name}"),
    )
