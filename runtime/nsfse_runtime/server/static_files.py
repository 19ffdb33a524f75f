"""The files of the page, read once at the start: a request never reaches the disk."""

import hashlib
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response

from nsfse_runtime.server.errors import HTTPError

_FOLDER = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)


class PageFiles:
    """The page's files by their names relative to its folder."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _TYPES)
        self._files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self._etags = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in self._files.items()}

    def reply(self, name: str, headers: Headers) -> Response:
        """Return a file. Raises HTTPError where there is none of that name."""
        if name not in self._files:
            raise HTTPError(404, "not_found", "there is no such file; the page is at /")
        reply_headers = {"etag": self._etags[name], "cache-control": "no-cache", "content-security-policy": _POLICY}
        if headers.get("if-none-match") == self._etags[name]:
            return Response(status_code=304, headers=reply_headers)
        return Response(self._files[name], media_type=_TYPES[Path(name).suffix], headers=reply_headers)
