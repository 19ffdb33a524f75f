"""The whole pipeline in one call, on drawn images: draw, train, export, index, evaluate, draw a contact sheet.

It needs no data beside the package: of the photos in `nsfse demo`, those to train on do not ship.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from nsfse.demo.contact_sheet import write_contact_sheet
from nsfse.progress import indexing_bar, print_status, stages_bar, training_bar
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.output_files import check_folder

PRESET = "drawn-easy"
PROTOCOL = "drawn"
MODES: tuple[Literal["composed", "image-only", "text-only"], ...] = ("composed", "image-only", "text-only")
IMAGE, SEED = 128, 0
SHEET_QUERIES = 8
_STAGES = ("draw", "train", "export", "index", "evaluate", "sheet")


def run_demo(
    out: Path, *, preset: str | None = PRESET, items: int | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Run every step in one folder; the same call continues an interrupted one.

    Args:
        out: The folder.
        preset: The preset to train by.
        items: How many images are drawn; by default those of the benchmark's test split.
        overrides: Settings that change the training's configuration.

    Returns:
        Scores, files and seconds, as JSON.

    Raises:
        NsfseError: A stage failed.
        KeyboardInterrupt: Training was stopped.
    """
    seconds: dict[str, float] = {}
    stage = _stages(seconds)
    catalogue, run, bundle, gallery = (out / name for name in ("catalogue", "run", "bundle", "easy.gallery"))
    check_folder(out, (), ("catalogue",))
    out.mkdir(parents=True, exist_ok=True)
    with stage("draw", "images to search in, and queries whose right answers are known"):
        from nsfse.data.synthetic.draw import draw_query_set
        from nsfse.data.synthetic.items import LEVELS

        items = items or LEVELS["easy"].gallery
        if not (catalogue / "queries.jsonl").exists():
            draw_query_set(catalogue, items=items, seed=SEED, size=IMAGE, level="easy")
    with stage("train", preset or "by the given settings"), training_bar() as follow:
        from nsfse.config import load_config
        from nsfse.training.loop import train

        trained = train(load_config(preset, None, overrides, None), run, progress=follow)
    if trained.interrupted:
        raise KeyboardInterrupt
    with stage("export", "to ONNX, verified against torch"):
        from nsfse_export import export_bundle

        export_bundle(run, bundle)
    with stage("index", "with the bundle, without torch"):
        _index(gallery, bundle, catalogue)
    with stage("evaluate", "with torch, then with ONNX Runtime"):
        torch, runtime = _scores(run, catalogue), _scores(bundle, catalogue)
    with stage("sheet", f"{SHEET_QUERIES} queries chosen by a fixed seed"):
        write_contact_sheet(
            gallery, bundle, catalogue, out / "sheet", protocol=PROTOCOL, queries=SHEET_QUERIES, seed=SEED
        )
    return _summary(out, torch, runtime, seconds)


def _stages(seconds: dict[str, float]) -> Any:
    @contextmanager
    def stage(name: str, description: str) -> Iterator[None]:
        print_status(f"[{_STAGES.index(name) + 1}/{len(_STAGES)}] {name}: {description}")
        started = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - started, 1)
        print_status(f"      {seconds[name]:.1f} s")

    return stage


def _index(gallery: Path, bundle: Path, catalogue: Path) -> None:
    from nsfse_runtime.gallery.gallery import Gallery
    from nsfse_runtime.inference.open import open_model

    model = open_model(bundle, "cpu")
    gallery.unlink(missing_ok=True)  # the demo's own file; a new training makes features of another model
    with Gallery.open(gallery, model, create=True) as opened, indexing_bar() as follow:
        opened.sync(catalogue / "images", metadata=catalogue / "items.csv", progress=follow)


def _scores(model: Path, catalogue: Path) -> dict[str, dict[str, Any]]:
    """Return mode → scores of the protocol over all queries."""
    from nsfse.data.datasets.query_set import QuerySetSource
    from nsfse.evaluation.evaluate import evaluate_source
    from nsfse.open import open_scorer

    source = QuerySetSource(catalogue)
    protocols = [protocol for protocol in source.protocols("test") if protocol.name == PROTOCOL]
    with stages_bar() as follow:
        evaluation = evaluate_source(open_scorer(model), source, protocols, modes=MODES, progress=follow)
    return {result.mode: dict(result.scores) for result in evaluation.results}


def _summary(out: Path, torch: Any, runtime: Any, seconds: dict[str, float]) -> dict[str, Any]:
    pairs = [(torch[mode][name], runtime[mode][name]) for mode in MODES for name in ("R@1", "R@10", "R@50")]
    return {
        "schema_version": SCHEMA_VERSION,
        "torch": torch,
        "runtime": runtime,
        "largest_difference": max(abs(a - b) for a, b in pairs),
        "files": {name: str(out / name) for name in ("sheet.png", "sheet.html", "bundle", "easy.gallery")},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }
