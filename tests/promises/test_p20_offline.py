"""P20: nothing needs a network. The whole suite runs without one (tests/conftest.py), and so do the commands here."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.galleries import save_images
from tests.serving import BUNDLE, PATIENCE

CHILD = """
import sys
sys.path[:0] = {path}
from tests.offline import block_network
block_network()
from nsfse.cli.app import main
main(sys.argv[1:])
"""


def test_the_suite_has_no_network():
    """Broken once: `_check` returning before it looks at the host."""
    for host in ("192.0.2.1", "2001:db8::1", "example.org"):
        with pytest.raises(PermissionError, match="no network"):
            socket.create_connection((host, 80), timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(PermissionError):
        datagrams.sendto(b"x", ("192.0.2.1", 53))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=PATIENCE).close()


def test_commands_need_no_network(tmp_path):
    """Broken once: `index` with a look-up of example.org added."""
    names = save_images(tmp_path / "photos", 4)
    commands = (
        ["index", "g", "photos", "-b", BUNDLE],
        ["query", "-g", "g", names[0], "make it red", "--json"],
    )
    code = CHILD.format(path=[entry for entry in sys.path if entry])
    environment = {**os.environ, "HTTPS_PROXY": "http://192.0.2.1:9"}
    for command in commands:
        run = subprocess.run(
            [sys.executable, "-c", code, *map(str, command)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert run.returncode == 0, run.stderr
        assert "no network" not in run.stdout + run.stderr
        if "--json" in command:
            assert json.loads(run.stdout)["hits"]
