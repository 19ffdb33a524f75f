"""Open a store by its URL; an engine's packages are imported only when its URL is used."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from nsfse_runtime.errors import UsageError

if TYPE_CHECKING:
    from nsfse_runtime.stores.protocol import GalleryStore, StoreFacts

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_store_url(gallery: str) -> bool:
    """Tell whether a gallery is named by a URL and not by its file."""
    return _SCHEME.match(gallery) is not None


def gallery_name(url: str) -> str:
    """Return the name of the gallery in a database."""
    return dict(parse_qsl(urlsplit(url).query)).get("gallery", "gallery")


def open_store(gallery: str, create: "StoreFacts | None" = None) -> "GalleryStore":
    """Open a gallery behind the one protocol: a file by its path, or a database by its URL.

    Args:
        gallery: A path, postgresql://USER@HOST/DATABASE?gallery=NAME, milvus://HOST:PORT/DATABASE?gallery=NAME,
            or qdrant://HOST:PORT?gallery=NAME.
        create: Make the gallery where there is none, with these facts.

    Raises:
        NotFoundError: There is no such gallery, and `create` is None.
        VersionError: It is of another format, or of another model than `create`.
        UsageError: The URL is of no engine that nsfse knows.
        MissingExtraError: The engine's extra is not installed.
        InputError: The server cannot be reached.
    """
    scheme = _SCHEME.match(gallery)
    if scheme is None:
        from nsfse_runtime.stores.file import FileStore

        return FileStore(Path(gallery), create)
    engine = scheme[1].lower()
    if engine in ("postgresql", "postgres"):
        from nsfse_runtime.stores.postgres import PostgresStore

        return PostgresStore(gallery, create)
    if engine == "milvus":
        from nsfse_runtime.stores.milvus import MilvusStore

        return MilvusStore(gallery, create)
    if engine == "qdrant":
        from nsfse_runtime.stores.qdrant import QdrantStore

        return QdrantStore(gallery, create)
    raise UsageError(f"nsfse knows no engine {engine}://; use postgresql://, milvus://, qdrant:// or a gallery file")
