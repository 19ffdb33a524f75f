"""Connections to a gallery in PostgreSQL, one for each thread, and the server's errors as nsfse's own."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nsfse_runtime.errors import InputError, NsfseError, OutputError, VersionError
from nsfse_runtime.escaping import printable
from nsfse_runtime.stores import postgres_tables as sql

_OLDEST = (0, 8)  # pgvector, which searches on where a filter leaves too little


class PostgresConnections:
    """Gives each thread a connection of its own to the schema `name`, opened at first use and after it broke."""

    def __init__(self, conninfo: str, name: str, url: str) -> None:
        self._conninfo, self._name, self._url = conninfo, name, url
        self._local, self._opening = threading.local(), threading.Lock()
        self._open: list[Any] = []
        self.version = ""

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            import psycopg
            from pgvector.psycopg import register_vector

            # Without prepared statements each query is planned for its own filter, and a pooler may stand between.
            connection = psycopg.connect(
                self._conninfo, autocommit=True, prepare_threshold=None, client_encoding="utf8"
            )
            self._local.connection = connection
            with self._opening:
                self._open = [other for other in self._open if not other.closed] + [connection]
            connection.execute(sql.SEARCH_PATH.format(schema=self._name))
            if (found := connection.execute(sql.EXTENSION).fetchone()) is not None:
                self._check_version(str(found[0]))
                register_vector(connection)
                connection.execute(sql.SETTINGS)
        return connection

    def _check_version(self, version: str) -> None:
        self.version = version
        if tuple(map(int, version.split(".")[:2])) < _OLDEST:
            raise VersionError(f"{self._url} has pgvector {version}; nsfse needs 0.8 or newer: upgrade the extension")

    @contextmanager
    def translated(self) -> Iterator[Any]:
        """Yield this thread's connection, and turn its errors into one line of nsfse's."""
        import psycopg
        from psycopg import errors

        try:
            yield self._connection()
        except NsfseError:
            raise
        except errors.DiskFull as error:
            raise OutputError(f"{self._url}: the server's disk is full; make space there") from error
        except psycopg.OperationalError as error:
            if getattr(self._local, "connection", None) is not None:
                self._local.connection.close()
            raise InputError(f"{self._url} cannot be reached: {_line(error)}; check the URL and the server") from error
        except errors.ReadOnlySqlTransaction as error:
            raise OutputError(f"{self._url} is a replica, which cannot be written; name the primary") from error
        except psycopg.Error as error:
            raise OutputError(
                f"{self._url}: the server refuses: {_line(error)}; check its log and the rights"
            ) from error

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; return its rows."""
        with self.translated() as connection, connection.cursor(binary=True) as cursor:
            cursor.execute(statement, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
            return rows

    def close(self) -> None:
        """Close the connections of all threads; a later use opens them again."""
        with self._opening:
            while self._open:
                self._open.pop().close()


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:300])
