"""A connection to Milvus: the server's errors as nsfse's own, and how new what is read must be."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nsfse_runtime.errors import InputError, OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.stores.addresses import Address

_TIMEOUT = 60.0  # seconds; only ends what hangs
# Seconds. Bounded staleness reads what is at most five seconds old, as a server is set by default.
_FRESH = 10.0
_UNREACHABLE = ("connect", "unavailable", "deadline")  # what a lost server is called in errors


class Freshness:
    """Chooses the consistency of each reading, so that all is seen that was written before the store was opened.

    Strong reading waits until the server has taken in all that was written, some tenths of a second. It is needed for
    a while after opening and after writing; bounded staleness covers what is older.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Read strongly from now on, until bounded staleness covers what is written now."""
        self._until = time.monotonic() + _FRESH

    @property
    def level(self) -> str:
        """Return the level that the next reading needs, in Milvus's words."""
        return "Strong" if time.monotonic() < self._until else "Bounded"


class MilvusConnection:
    """Calls the methods of one pymilvus client, which threads share; opened at first use and after it was closed."""

    def __init__(self, address: Address) -> None:
        self._address, self._opening = address, threading.Lock()
        self._client: Any = None

    def call(self, method: str, *args: Any, timeout: float = _TIMEOUT, **options: Any) -> Any:
        """Call a method of the client. Raises InputError or OutputError for what the server says."""
        with self._translated():
            return getattr(self._opened(), method)(*args, timeout=timeout, **options)

    def _opened(self) -> Any:
        from pymilvus import MilvusClient

        with self._opening:
            if self._client is None:
                logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it would log each error with a traceback
                own = self._address
                password = own.password or os.environ.get("MILVUS_PASSWORD", "")
                self._client = MilvusClient(
                    uri=own.http, user=own.user, password=password, db_name=own.database, timeout=10
                )
            return self._client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            line, url = printable(" ".join(str(error.message).split())[:300]), self._address.shown
            if any(word in line.lower() for word in _UNREACHABLE):
                raise InputError(f"{url} cannot be reached: {line}; check the URL and the server") from error
            raise OutputError(f"{url}: the server refuses: {line}; check its log and the rights") from error

    def close(self) -> None:
        """Close the client; a later use opens it again."""
        with self._opening:
            if self._client is not None:
                self._client.close()
                self._client = None
