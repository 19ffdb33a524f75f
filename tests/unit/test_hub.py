"""Models on a hub, against a hub on loopback: pushed, pulled and checked, and used where no bundle is named."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from nsfse.cli import app
from nsfse.hub import parse_name
from nsfse_runtime.errors import UsageError
from nsfse_runtime.inference.bundle import Bundle
from tests.fake_hub import fake_hub
from tests.galleries import save_image

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle"
NAME = "shop/shoes"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with fake_hub(monkeypatch) as hub:
        yield hub


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return stop.value.code, *capsys.readouterr()


def test_a_bundle_is_pushed_and_pulled_whole_and_nothing_else_comes(hub, capsys, tmp_path):
    code, out, _ = run(capsys, "push", str(BUNDLE), f"hub:{NAME}", "--json")
    assert (code, json.loads(out)["kind"], hub.private[NAME]) == (0, "bundle", True)
    assert json.loads(out)["revision"] == hub.commit_of(NAME)
    hub.repositories[NAME]["pickle.bin"] = b"not to be fetched"
    code, out, _ = run(capsys, "pull", f"hub:{NAME}", "-o", "pulled", "--json")
    assert (code, json.loads(out)["revision"]) == (0, hub.commit_of(NAME))
    names = {path.name for path in (tmp_path / "pulled").iterdir()}
    assert names == {path.name for path in BUNDLE.iterdir()} & names and "manifest.json" in names
    assert not any("pickle.bin" in request for request in hub.requests)
    assert Bundle.open(tmp_path / "pulled").fingerprint == Bundle.open(BUNDLE).fingerprint
    code, _, err = run(capsys, "pull", f"hub:{NAME}", "-o", "pulled")
    assert code == 3 and "has something in it" in err


def test_a_damaged_or_foreign_repository_leaves_nothing(hub, capsys, tmp_path):
    run(capsys, "push", str(BUNDLE), f"hub:{NAME}")
    hub.repositories[NAME]["text.onnx"] = b"other"
    hub.repositories["shop/clip"] = {"config.json": b"{}"}
    for name, code, words in (
        (NAME, 5, "text.onnx is damaged"),
        ("shop/clip", 3, "neither a run nor a bundle of nsfse; of a CLIP"),
        ("shop/none", 3, "cannot pull hub:shop/none"),
    ):
        found, out, err = run(capsys, "pull", f"hub:{name}", "-o", "pulled")
        assert (found, out, err.count("\n")) == (code, "", 1) and words in err
        assert not list(tmp_path.glob("*pulled*"))


def test_the_model_in_use_is_fetched_once_and_held_to_its_hash(hub, capsys, tmp_path):
    run(capsys, "push", str(BUNDLE), f"hub:{NAME}")
    commit = hub.commit_of(NAME)
    code, out, _ = run(capsys, "use", f"hub:{NAME}", "--json")
    assert (code, json.loads(out)["name"]) == (0, f"hub:{NAME}@{commit}")
    save_image(tmp_path / "photos" / "a.png", 1)
    hub.requests.clear()
    code, _, err = run(capsys, "index", "photos")
    assert code == 0 and f"new galleries use hub:{NAME}@{commit}" in err and "the gallery is photos.gallery" in err
    assert hub.requests == [], "no network but in `use`, `push` and `pull`"
    code, out, _ = run(capsys, "query", "red", "--json")
    assert code == 0 and [hit["id"] for hit in json.loads(out)["hits"]] == ["a.png"]
    graph = next((tmp_path / "data").rglob("text.onnx"))
    graph.write_bytes(graph.read_bytes() + b"x")
    code, _, err = run(capsys, "index", "new.gallery", "photos")
    assert code == 5 and err.count("\n") == 1 and not (tmp_path / "new.gallery").exists()
    shutil.rmtree(graph.parent)
    code, _, err = run(capsys, "index", "new.gallery", "photos")
    assert code == 3 and f"nsfse use hub:{NAME}@{commit}" in err
    code, out, _ = run(capsys, "use", "box")
    assert code == 0 and "photos of clothes" in out


def test_a_run_is_pushed_with_a_card_and_without_its_state(hub, capsys, tmp_path):
    pytest.importorskip("torch")
    from nsfse.config import ModelConfig
    from tests.random_run import write_random_run

    write_random_run(tmp_path / "run", ModelConfig(method="sum", dim=8, width=8, image_size=(16, 16)))
    (tmp_path / "run" / "state.safetensors").write_bytes(b"x")
    code, _, err = run(capsys, "push", str(tmp_path / "run"), f"hub:{NAME}", "--public")
    assert (code, err) == (0, "")
    files = hub.repositories[NAME]
    assert "state.safetensors" not in files and f"nsfse pull hub:{NAME}".encode() in files["README.md"]
    assert run(capsys, "pull", f"hub:{NAME}", "-o", "pulled")[0] == 0
    digests = [
        hashlib.sha256((tmp_path / each / "model.safetensors").read_bytes()).digest() for each in ("run", "pulled")
    ]
    assert digests[0] == digests[1]


def test_names_have_one_form():
    assert parse_name("hub:a/b") == ("a/b", None) and parse_name("hub:a/b@v1") == ("a/b", "v1")
    for name in ("a/b", "hub:a", "hub:a/b/c", "hub:a/b@", "hub:../b c"):
        with pytest.raises(UsageError, match="hub:OWNER/NAME"):
            parse_name(name)
