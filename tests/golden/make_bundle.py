"""Make tests/golden/{bundle, images, torch_scores.json}: a tiny model of drawn images, for tests without torch.

    python tests/golden/make_bundle.py

Run it again when the bundle's format or the model changes. It trains for half a minute: what it knows is little, but
its boundaries and weights are those of a trained model. `torch_scores.json` is what torch says about the images.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nsfse.config import Config, DataConfig, ModelConfig, TrainConfig
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.open import open_scorer
from nsfse.training.loop import train
from nsfse_export import export_bundle
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.inference.bundle import Bundle

HERE = Path(__file__).parent
MOST_BYTES = 200_000
OPTIONS = {"level": "easy", "items": 400, "triplets": 3200}
CONFIG = Config(
    data=DataConfig(source="drawn", options=OPTIONS, validation_queries=100),
    model=ModelConfig(image_size=(32, 48), width=3, dim=16, max_words=16, alpha=1.0),
    train=TrainConfig(
        epochs=10,
        batch=64,
        lr=3e-3,
        ema_decay=0.98,
        bf16_autocast="off",
        augment_strength=0.0,
        head_share=1.0,
        threads=1,
    ),
)
TEXTS = ("change it to yellow", "turn it into trousers", "in green")
SIZES = ((48, 64), (64, 48), (32, 96), (56, 56), (90, 60), (32, 48))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(CONFIG, Path(folder) / "run")
        shutil.rmtree(HERE / "bundle", ignore_errors=True)
        report = export_bundle(Path(folder) / "run", HERE / "bundle")
        write_images(HERE / "images")
        found = torch_scores(Path(folder) / "run", sorted((HERE / "images").iterdir()))
    (HERE / "torch_scores.json").write_text(json.dumps(found, indent=1) + "\n")
    size = sum(path.stat().st_size for name in ("bundle", "images") for path in (HERE / name).iterdir())
    print(f"{size} bytes; {report.scores}; {report.verified}")
    if not min(Bundle.open(HERE / "bundle").manifest.head[name] for name in ("t_c", "t_v")) > 0:
        raise SystemExit("a boundary is still 0, so that nothing would be mismatched; train longer")
    if size > MOST_BYTES:
        raise SystemExit(f"{size} bytes are more than {MOST_BYTES}; make the model smaller")


def torch_scores(run: Path, images: list[Path]) -> list[dict[str, Any]]:
    """Return each query's scores of all images, by torch."""
    scorer = open_scorer(run)
    gallery = scorer.encode_images(np.stack([load_image(path, scorer.image_size) for path in images]))
    queries = scorer.compose(gallery.take(range(len(TEXTS))), TEXTS)
    pairs = [scorer.score_pairs(query, gallery) for query in queries]
    return [
        {"reference": path.name, "text": text, "scores": pair.score.tolist(), "words": pair.word_scores.tolist()}
        for path, text, pair in zip(images, TEXTS, pairs, strict=False)
    ]


def write_images(folder: Path) -> None:
    """Draw six images of different sizes, (height, width), named by what is in them."""
    folder.mkdir(exist_ok=True)
    source = DrawnSource(DrawnOptions(**OPTIONS))
    items = source.items("test")
    chosen = items[:: len(items) // len(SIZES)]
    for number, (item, size) in enumerate(zip(chosen, SIZES, strict=False), 1):
        about = source.describe(item)
        name = f"{number}-{about['colour']}-{about['category']}.png"
        Image.fromarray(source.load(item, size)).save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
