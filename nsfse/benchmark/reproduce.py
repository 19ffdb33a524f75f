"""A published benchmark from one recipe: train, score by its protocol, and put what came next to what was expected."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from nsfse.config import Config, load_config
from nsfse.data import Source
from nsfse.data.registry import open_source
from nsfse.progress import print_status, stages_bar, training_bar
from nsfse.suggest import did_you_mean
from nsfse_runtime.errors import DataError, NotFoundError, UsageError
from nsfse_runtime.json_schema import SCHEMA_VERSION

FOLDER = Path(__file__).parent / "recipes"
RECIPES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))

Figure = float | Literal["not known"]


class Needed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a recipe needs on disk, and where it is to be had."""

    annotations: str
    image_source: str
    layout: tuple[str, ...]


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Published figures in percent by protocol (or group of categories) and metric, and where they are from."""

    source: str
    scores: dict[str, dict[str, Figure]]
    note: str = ""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a table of results: settings, protocol, data, and the figures to expect."""

    title: str
    dataset: str
    split: str
    weights: str
    protocol: tuple[str, ...]
    data: Needed
    expected: Expected
    config: dict[str, Any]
    pretrained: dict[str, Any] = {}
    """Settings that only the recipe's own backbone has."""
    submission: str = ""
    """The split whose answers are on a test server."""


def load_recipe(name: str) -> Recipe:
    """Return a recipe by name. Raises UsageError for a name that is none."""
    if name not in RECIPES:
        nearest = did_you_mean(name, RECIPES, 0.4) or ";"
        raise UsageError(f"no recipe {name!r}{nearest} there are: {', '.join(RECIPES)}")
    return msgspec.convert(tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8")), Recipe)


def describe_recipe(name: str, data: Path | None = None, images: Path | None = None) -> dict[str, Any]:
    """Return what a recipe needs, does and expects; with `data`, also what of that is there."""
    recipe = load_recipe(name)
    description: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "recipe": name,
        "title": recipe.title,
        "data": {**msgspec.structs.asdict(recipe.data), "counts": dict(_official(recipe.dataset))},
        "weights": recipe.weights,
        "protocol": recipe.protocol,
        "settings": {**recipe.config, "pretrained": recipe.pretrained},
        "expected": msgspec.structs.asdict(recipe.expected),
    }
    if data is not None:
        source = _open(recipe, data, images)
        splits = [split for split in ("train", recipe.split, recipe.submission) if split]
        description["there"] = {f"{split}.found": len(source.items(split)) for split in splits}
        description["there"]["missing images"] = len(source.missing)
    return description


def reproduce(
    name: str,
    data: Path | None,
    out: Path,
    *,
    images: Path | None = None,
    weights: str = "",
    overrides: Sequence[str] = (),
    steps: int = 0,
) -> dict[str, Any]:
    """Train by a recipe, or continue that training, and score it.

    Args:
        name: The recipe.
        data: Folder of the data set.
        out: Folder of the run.
        images: Folder of the images where it is another.
        weights: Weights to start from, where the recipe needs some.
        overrides: Further settings, `section.key=value`.
        steps: After how many steps training stops; 0 for all.

    Returns:
        Scores beside the expected ones, and what they depend on, as JSON.

    Raises:
        NotFoundError: There are no images; it names their source.
        UsageError: `data`, or weights to start from, are not named.
        KeyboardInterrupt: Training was stopped.
    """
    recipe = load_recipe(name)
    if data is None:
        raise UsageError(
            f"name the data set's folder with --data; `nsfse reproduce {name} --dry-run` lists what it needs"
        )
    source = _open(recipe, data, images)
    _refuse_without_images(name, recipe, source, data)
    config = _settings(name, recipe, data, images, weights, overrides)
    print_status(f"{recipe.title}: training in {out}")
    from nsfse.training.loop import train

    with training_bar() as follow:
        trained = train(config, out, progress=follow, steps=steps)
    if trained.interrupted:
        raise KeyboardInterrupt
    return _scored(name, recipe, source, out, steps)


def _open(recipe: Recipe, data: Path, images: Path | None) -> Source:
    """Open the data set with the reader's options that training has."""
    options = {**recipe.config.get("data", {}).get("options", {}), **({"images": images} if images else {})}
    return open_source(recipe.dataset, data, **options)


def _official(dataset: str) -> dict[str, int]:
    from nsfse.data.datasets import cirr, fashion200k, fashioniq

    return dict({"fashioniq": fashioniq, "cirr": cirr, "fashion200k": fashion200k}[dataset].OFFICIAL)


def _refuse_without_images(name: str, recipe: Recipe, source: Source, data: Path) -> None:
    for split in ("train", recipe.split):
        if not source.items(split):
            raise NotFoundError(
                f"no images of {recipe.dataset}'s {split} split under {data}. "
                f"Where to get them: {recipe.data.image_source}. "
                f"Put them as {recipe.data.layout[-1]}, or name their folder with --images; "
                f"`nsfse reproduce {name} --dry-run` lists all that is needed"
            )


def _settings(
    name: str, recipe: Recipe, data: Path, images: Path | None, weights: str, overrides: Sequence[str]
) -> Config:
    """Return the run's configuration; what belongs to the recipe's own backbone goes where another one is named."""
    own = not any(text.partition("=")[0].strip() == "model.backbone" for text in overrides)
    named = [*overrides]
    if images:
        named.append(f"data.options.images={str(images)!r}")
    if weights:
        named.append(f"model.weights={weights!r}")
    elif own and not any(text.partition("=")[0].strip() == "model.weights" for text in overrides):
        raise UsageError(f"{name} starts from weights made elsewhere; name them with --weights: {recipe.weights}")
    bases = (recipe.config, recipe.pretrained) if own else (recipe.config,)
    return load_config(overrides=named, data=data, bases=bases)


def _scored(name: str, recipe: Recipe, source: Source, run: Path, steps: int) -> dict[str, Any]:
    from nsfse.evaluation.evaluate import evaluate_source
    from nsfse.open import open_run

    scorer = open_run(run)
    wanted = [protocol for protocol in source.protocols(recipe.split) if protocol.name in recipe.expected.scores]
    with stages_bar() as follow:
        evaluation = evaluate_source(scorer, source, wanted, progress=follow)
        files, refused = _for_the_server(recipe, scorer, source, run, follow)
    scores: dict[str, dict[str, Any]] = {result.protocol.name: dict(result.scores) for result in evaluation.results}
    scores |= evaluation.summary
    rows = [
        {"protocol": protocol, "metric": metric, "expected": figure, "got": scores.get(protocol, {}).get(metric)}
        for protocol, figures in recipe.expected.scores.items()
        for metric, figure in figures.items()
    ]
    entries = {result.protocol.name: result.to_json() for result in evaluation.results}
    report = evaluation.to_json()
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": name,
        "title": recipe.title,
        "protocol": recipe.protocol,
        "run": run,
        "steps": steps or None,
        "rows": rows,
        "source": recipe.expected.source,
        "note": recipe.expected.note,
        "incomplete": {name: entry["incomplete"] for name, entry in entries.items() if entry.get("incomplete")},
        "skipped": evaluation.skipped,
        "not_scored": report["not_scored"] | refused,
        "summary": report["summary"],
        "files": files,
    }


def _for_the_server(
    recipe: Recipe, scorer: Any, source: Source, run: Path, follow: Any
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Write the test server's files where the recipe has such a split; or return why none are written.

    Training is done by then: what is wrong with that split must not cost its scores.
    """
    from nsfse.evaluation.cirr_submission import check_split, write_submission
    from nsfse.evaluation.evaluate import evaluate_source, unlisted

    hidden = source.protocols(recipe.submission) if recipe.submission else []
    if not hidden:
        return [], {}
    name = hidden[0].name
    try:
        check_split(hidden[0], unlisted(source, hidden))
    except DataError as error:
        return [], {name: {"queries": 0, "reason": str(error).removeprefix(f"{name}: ")}}
    result = evaluate_source(scorer, source, hidden, progress=follow).results[0]
    return [str(path) for path in write_submission(result, run / "submission")], {}
