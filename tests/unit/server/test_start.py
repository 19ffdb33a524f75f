"""What keeps a server from starting, each in one line; what it never logs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from tests.serving import BUNDLE, PATIENCE, TOKEN, open_served, running


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    open_served(folder)
    return folder / "shop.gallery"


@pytest.mark.parametrize(
    "options, code, words",
    [
        (["--host", "0.0.0.0"], 2, "there is no token"),
        (["-g", "shop=nowhere.gallery"], 2, "two galleries are called shop"),
        (["-g", "nowhere.gallery"], 3, "no gallery at nowhere.gallery"),
        (["--token-file", "nowhere"], 3, "no token at nowhere"),
        (["-b", str(BUNDLE.parent)], 3, "not a bundle"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(gallery, capsys, monkeypatch, options, code, words):
    from nsfse.cli import app

    monkeypatch.delenv("NSFSE_TOKEN", raising=False)
    with pytest.raises(SystemExit) as stop:
        app.main(["serve", "-g", str(gallery), "--port", "0", *options])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (code, "")
    assert words in err and err.count("\n") == 1


def test_too_few_open_files_keep_it_from_starting(gallery, capsys, monkeypatch):
    """Broken once: `check_file_limit` not called."""
    from nsfse.cli import app
    from nsfse_runtime.server import connections

    monkeypatch.setattr(connections, "max_connections", lambda: 44)
    with pytest.raises(SystemExit) as stop:
        app.main(["serve", "-g", str(gallery), "--port", "0"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "ulimit -n 320" in error and error.count("\n") == 1


def test_a_damaged_gallery_ends_it_with_its_error(tmp_path):
    import sqlite3

    served = open_served(tmp_path)
    served.gallery.close()
    with sqlite3.connect(tmp_path / "shop.gallery") as connection:
        connection.execute("UPDATE contents SET crc = crc + 1")
    connection.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "nsfse", "serve", "-g", str(tmp_path / "shop.gallery"), "--port", "0"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert found.returncode == 5
    assert "is damaged" in found.stderr.splitlines()[-1] and "Traceback" not in found.stderr


def test_a_missing_extra_is_named(monkeypatch, gallery):
    from nsfse.open import open_services
    from nsfse_runtime import extras
    from nsfse_runtime.errors import MissingExtraError
    from nsfse_runtime.inference.devices import ON_CPU
    from nsfse_runtime.server.settings import Settings

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "nsfse\[serve\]"'):
        open_services([str(gallery)], None, ON_CPU, Settings())


def test_a_server_in_a_thread_logs_no_token(gallery, tmp_path):
    with running(open_served(tmp_path), token=TOKEN) as server:
        assert server.json("GET", "/healthz")[0] == 200
        assert Path(server.services.galleries["shop"].gallery.path).exists()
        assert TOKEN not in json.dumps(server.lines)
