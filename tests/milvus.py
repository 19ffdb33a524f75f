"""A real Milvus for the tests: the standalone server from the wheel of the package milvus."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

WHY_NOT = "no Milvus: pymilvus or the server of the package milvus is not installed, or another one runs here"
_ETCD = 2379  # the port of the etcd inside, which no setting of the package moves


def available() -> bool:
    """Tell whether a server can be started for the tests."""
    if not all(map(find_spec, ("milvus", "pymilvus"))):
        return False
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", _ETCD)) != 0


@contextmanager
def milvus_server() -> Iterator[str]:
    """Start a server, which listens on all interfaces; yield its URL."""
    from milvus import MilvusServer

    with tempfile.TemporaryDirectory(prefix="nsfse-milvus-", ignore_cleanup_errors=True) as folder:
        server = MilvusServer()
        server.set_base_dir(folder)
        try:
            server.start()
            yield f"milvus://127.0.0.1:{server.listen_port}"
        finally:
            server.stop()
