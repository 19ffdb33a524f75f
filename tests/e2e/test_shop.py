"""From a German table and a folder of images to a bundle that answers in German, as docs/data.md tells."""

import csv
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from PIL import Image

from nsfse.cli import app
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse_runtime import open_model

COLOURS = {
    **{"red": "Rot", "green": "Grün", "blue": "Blau", "yellow": "Gelb"},
    **{"purple": "Lila", "brown": "Braun", "black": "Schwarz", "white": "Weiß"},
}
ARTICLES = {"shirt": "Hemd", "dress": "Kleid", "trousers": "Hose", "bag": "Tasche", "shoe": "Schuh", "mug": "Tasse"}
SHOP = """
[data]
source = "catalogue"
options = { attributes = ["Farbe", "Artikel"], templates = "de", negation_ratio = 0.1, triplets = 64 }

[model]
image_size = [32, 32]
width = 16
dim = 32

[train]
epochs = 1
batch = 32
candidates = 4
"""


def nsfse(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        app.main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return json.loads(out)


def write_shop(folder):
    drawn = DrawnSource(DrawnOptions("easy", items=48))
    (folder / "images").mkdir(parents=True)
    with (folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "Farbe", "Artikel"])
        for item in drawn.items("train"):
            found = drawn.describe(item)
            writer.writerow([item, COLOURS[found["colour"]], ARTICLES[found["category"]]])
            Image.fromarray(drawn.load(item, (40, 40))).save(folder / "images" / f"{item}.jpg")


@pytest.mark.slow
def test_from_a_table_to_answers(tmp_path, capsys):
    shop, run, bundle, gallery = (tmp_path / name for name in ("shop", "run", "bundle", "shop.gallery"))
    write_shop(shop)
    (tmp_path / "shop.toml").write_text(SHOP)
    nsfse(capsys, "train", "--config", tmp_path / "shop.toml", "--data", shop, "-o", run)
    nsfse(capsys, "export", run, "-o", bundle)
    assert nsfse(capsys, "index", gallery, shop / "images", "-b", bundle)["added"] == 48
    tokenizer = open_model(bundle, "cpu").tokenizer
    colour = next(word for word in COLOURS.values() if tokenizer.knows(word))
    found = nsfse(capsys, "query", shop / "images/train-000003.jpg", f"lieber in {colour}", "-g", gallery, "-k", 3)
    assert len(found["hits"]) == 3
    assert [word["word"] for word in found["hits"][0]["evidence"]] == ["lieber", "in", colour]
