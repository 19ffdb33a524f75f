"""Qdrant's client in its in-process mode, for the tests: there is no server that could be installed with them."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from nsfse_runtime.stores import qdrant

WHY_NOT = "no Qdrant: qdrant-client is not installed"


def available() -> bool:
    """Tell whether the client is here."""
    return find_spec("qdrant_client") is not None


class _Shared:
    """One client in the place of each: a call at a time, as the in-process mode knows no threads, and never closed."""

    def __init__(self, client: Any) -> None:
        self._client, self._lock = client, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Payload indexes have no effect|Local mode performs exact")
                return getattr(self._client, name)(*args, **options)

        return call

    def close(self) -> None:
        """Keep what is in memory."""


@contextmanager
def qdrant_in_process() -> Iterator[str]:
    """Put a client in process in the place of those of servers; yield a URL."""
    from qdrant_client import QdrantClient

    shared, connect = _Shared(QdrantClient(":memory:")), qdrant.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdrant, "connect", lambda address: shared if "in-process" in address.http else connect(address))
        yield "qdrant://in-process"
