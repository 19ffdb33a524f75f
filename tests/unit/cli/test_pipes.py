"""A pipe in the place of a file is an error in one line, and at once: no command waits for who would write to it.

Seen to hang with `read_bytes` for `read_regular` in `read_table` and `_read_toml`.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from nsfse.cli.app import main

GOLDEN = Path(__file__).parents[2] / "golden"
COMMANDS = [
    "index new photos -b bundle --metadata pipe",
    "index pipe photos -b bundle",
    "index g photos -b pipe",
    "index g photos -b piped",
    "index new pipe -b bundle",
    "query -g pipe red",
    "query -g g pipe red",
    "query -g g 1-green-bag red --and-like pipe",
    "query -g g 1-green-bag red --exclude-image pipe",
    "query -g g 1-green-bag red --bundle pipe",
    "query -g g 1-green-bag red --png pipe",
    "query -g g 1-green-bag red --html pipe",
    "gallery verify pipe",
    "gallery repair pipe",
    "serve -g g --token-file pipe",
    "serve -g pipe",
    "info pipe",
    "info piped",
    "evaluate pipe queries",
    "evaluate piped queries",
    "evaluate bundle piped-queries",
    "evaluate bundle queries --html pipe",
    "data check query-set piped-queries",
    "data draw pipe --items 4",
    "data draw piped-queries --items 4",
    "engines add pipe",
    "engines add bundle --pack-key pipe",
]
TINY = "--preset drawn-tiny --set data.options.items=40 --set data.options.triplets=40"
TORCH = [
    "train -o run --config pipe",
    f"train -o pipe {TINY}",
    f"train -o piped-run {TINY}",
    "train -o run --preset drawn-tiny --set data.options.language=pipe",
    "info piped-run",
    "export piped-run -o out",
]
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipes")
    shutil.copytree(GOLDEN / "bundle", place / "bundle")
    shutil.copytree(GOLDEN / "images", place / "photos")
    shutil.copy(GOLDEN / "galleries/format-3.gallery", place / "g")
    shutil.copytree(GOLDEN / "bundle", place / "piped")
    (place / "piped/text.onnx").unlink()
    for folder in ("queries", "piped-queries", "piped-run"):
        (place / folder).mkdir()
    (place / "queries/items.csv").write_text("id,category\n1-green-bag,bag\n2-brown-dress,dress\n")
    (place / "queries/images").symlink_to(place / "photos")
    (place / "queries/queries.jsonl").write_text(
        '{"protocol": "p", "reference": "1-green-bag", "texts": ["make it red"], "targets": ["2-brown-dress"]}\n'
    )
    pipes = ["pipe", "piped/text.onnx", "piped-queries/items.csv", "piped-queries/queries.jsonl"]
    pipes += [f"piped-run/{name}" for name in ("config.json", "metrics.jsonl", "tokenizer.json", "model.safetensors")]
    for name in pipes:
        os.mkfifo(place / name)
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_is_an_error_in_one_line(place, command, capsys, monkeypatch):
    run(place, command, capsys, monkeypatch)


@pytest.mark.parametrize("command", TORCH)
def test_a_pipe_is_an_error_in_one_line_where_models_are_made(place, command, capsys, monkeypatch):
    pytest.importorskip("torch")
    run(place, command, capsys, monkeypatch)


def run(place, command, capsys, monkeypatch):
    monkeypatch.chdir(place)
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # what hangs ends as by Ctrl-C, with exit code 130
    signal.alarm(60)
    try:
        with pytest.raises(SystemExit) as stop:
            main(command.split())
    finally:
        signal.alarm(0)
    error = capsys.readouterr().err
    assert stop.value.code in (2, 3, 5), error
    assert error.count("\n") == 1 and error.startswith("nsfse: ") and "bug" not in error
