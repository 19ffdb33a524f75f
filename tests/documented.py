"""The folder in which the documents' code is run: the names they use, made of the golden bundle and its images."""

import csv
import json
import re
import shutil
from pathlib import Path

from nsfse.demo.app import PHOTOS, open_gallery
from nsfse_runtime import Gallery, open_model
from tests.demo_images import cut

GOLDEN = Path(__file__).parent / "golden"
README = Path(__file__).parents[1] / "README.md"
IMAGES = sorted((GOLDEN / "images").glob("*.png"))
COPIES = ("dress.jpg", "coat.jpg", "other.jpg", "a.jpg", "b.jpg", "c.jpg")
QUERY = {"protocol": "colours", "reference": "2-brown-dress", "texts": ["make it white"], "targets": ["3-white-dress"]}
SHOP = (19.5, "M", "yes", "own")


def lay(folder):
    """Lay out `folder`: bundles, images with a table, a query set of one query, and some photos of the demo."""
    named = re.findall(r"[a-z-]+-\d{3}", README.read_text("utf-8"))
    photos = cut(PHOTOS, folder, 20, *(f"/{name}.avif" for name in named))
    open_gallery(photos, folder / "shop", open_model(photos.bundle)).close()
    for name in ("bundle", "BUNDLE", "demo/bundle"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(GOLDEN / "bundle", folder / name)
    for place in ("photos", "QUERY_SET/images"):
        (folder / place).mkdir(parents=True)
        for image in IMAGES:
            shutil.copy(image, folder / place)
    for image, name in zip(IMAGES, COPIES, strict=True):
        shutil.copy(image, folder / name)
    for table in ("items.csv", "QUERY_SET/items.csv"):
        with (folder / table).open("w", encoding="utf-8", newline="") as file:
            rows = [(each.stem, *each.stem.split("-")[1:], *SHOP) for each in IMAGES]
            csv.writer(file).writerows([("id", "colour", "category", "price", "size", "sale", "brand"), *rows])
    (folder / "QUERY_SET/queries.jsonl").write_text(json.dumps(QUERY) + "\n")


def index(folder):
    """Index what `lay` has laid out, with its table, as my.gallery."""
    with Gallery.open(folder / "my.gallery", open_model(folder / "bundle"), create=True) as gallery:
        gallery.sync(folder / "photos", metadata=folder / "items.csv")


def parse(words):
    """Parse the words after `nsfse` as the program does, without doing it. Raises its UsageError."""
    import typer.main

    from nsfse.cli import app

    command, words = typer.main.get_command(app.app), list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command.make_context("nsfse", words).params
