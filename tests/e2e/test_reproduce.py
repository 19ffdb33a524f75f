"""Recipes at toy size: a part of the real annotations, one image drawn for each real id, the tiny backbone."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from nsfse.cli import app
from nsfse.models.checkpoint import load_tensors

ANNOTATIONS = Path(os.environ.get("NSFSE_ANNOTATIONS", Path(__file__).parents[3] / "shared/data/annotations"))
TINY = (
    *("model.backbone=tiny", "model.image_size=[32, 32]", "model.width=16", "model.dim=32"),
    *("train.batch=16", "train.candidates=4", "data.validation_queries=0", "data.fitting_queries=20"),
)

official = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the official annotations are not here")
pytestmark = pytest.mark.slow


def reproduce(capsys, name, folder, *more):
    overrides = [part for setting in TINY for part in ("--set", setting)]
    with pytest.raises(SystemExit) as stop:
        app.main(["reproduce", name, "--data", str(folder), "-o", str(folder / "run"), *overrides, *more])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return out


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 32), tuple(hashlib.sha256(path.name.encode()).digest()[:3])).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read(*parts):
    return json.loads(ANNOTATIONS.joinpath(*parts).read_text())


@official
def test_fashioniq(tmp_path, capsys):
    for category in ("dress", "shirt", "toptee"):
        for split, count in (("train", 20), ("val", 12)):
            pairs = read("fashioniq", "captions", f"cap.{category}.{split}.json")[:count]
            ids = list(dict.fromkeys(pair[role] for pair in pairs for role in ("candidate", "target")))
            write(tmp_path / f"captions/cap.{category}.{split}.json", pairs)
            write(tmp_path / f"image_splits/split.{category}.{split}.json", ids)
            for item in ids:
                draw(tmp_path / f"images/{item}.png")
    folder = tmp_path / "images"
    folder.rename(tmp_path.with_name(tmp_path.name + "-elsewhere"))
    images = ("--images", str(tmp_path.with_name(tmp_path.name + "-elsewhere")))
    found = json.loads(reproduce(capsys, "fashioniq-resnet50", tmp_path, "--steps", "2", *images, "--json"))
    rows = {(row["protocol"], row["metric"]): row for row in found["rows"]}
    assert len(rows) == 8 and rows["fashioniq-original", "R@10"]["expected"] == 29.21
    got = [rows[f"fashioniq-original-{c}", "R@10"]["got"] for c in ("dress", "shirt", "toptee")]
    assert rows["fashioniq-original", "R@10"]["got"] == pytest.approx(sum(got) / 3, abs=1e-3)
    assert (found["steps"], found["incomplete"]) == (2, {})
    assert int(load_tensors(tmp_path / "run/state.safetensors")["step"]) == 2


@official
def test_cirr_and_its_test_server_files(tmp_path, capsys):
    for split, source, start, count in (("train", "val", 0, 20), ("val", "val", 20, 12), ("test1", "test1", 0, 60)):
        pairs = read("cirr", "captions", f"cap.rc2.{source}.json")[start : start + count]
        ids = list(dict.fromkeys(item for pair in pairs for item in pair["img_set"]["members"]))
        ids = list(dict.fromkeys([*ids, *(pair["target_hard"] for pair in pairs if "target_hard" in pair)]))
        write(tmp_path / f"captions/cap.rc2.{split}.json", pairs)
        write(tmp_path / f"image_splits/split.rc2.{split}.json", {item: f"./dev/{item}.png" for item in ids})
        for item in ids:
            draw(tmp_path / f"img_raw/dev/{item}.png")
    assert len(json.loads((tmp_path / "image_splits/split.rc2.test1.json").read_text())) > 50
    text = reproduce(capsys, "cirr-clip", tmp_path, "--steps", "1")
    assert text.index("protocol:") < text.index("training was ended after 1 steps") < text.index("expected")
    assert "not known" in text and "headline" in text
    for name in ("recall", "recall_subset"):
        sent = json.loads((tmp_path / f"run/submission/{name}.json").read_text())
        assert len(sent) == 60 + 2 and f"{name}.json" in text


def test_fashion200k_to_the_end(tmp_path, capsys):
    captions = [f"{colour} {cloth} dress" for colour in ("red", "blue", "green") for cloth in ("silk", "wool")]
    for split in ("train", "test"):
        items = [(f"women/dresses/x/{split}{i}/{split}{i}_0.jpeg", captions[i % 6]) for i in range(36)]
        (tmp_path / "labels").mkdir(exist_ok=True)
        lines = "".join(f"{item}\t0.9\t{caption}\n" for item, caption in items)
        (tmp_path / f"labels/dress_{split}_detect_all.txt").write_text(lines)
        for item, _ in items:
            draw(tmp_path / item)
    (tmp_path / "test_queries.txt").write_text(f"{items[0][0]} {items[2][0]}\n{items[1][0]} {items[3][0]}\n")
    text = reproduce(capsys, "fashion200k-resnet50", tmp_path, "--set", "train.epochs=1")
    last = [line.split() for line in text.splitlines() if line.startswith("fashion200k-tirg")]
    assert [line[1:4] for line in last] == [[f"R@{k}", "not", "known"] for k in (1, 10, 50)]
    assert all(0 <= float(line[4]) <= 100 for line in last) and "no reproduction" not in text
    assert text.rstrip().splitlines()[-1].startswith("note: For orientation")
