"""What several commands share: their options, and the parsing of lists and pairs."""

import json
import math
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from nsfse_runtime.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print JSON with a schema_version instead of text.")]
BundleOption = Annotated[
    Path | None, typer.Option("-b", "--bundle", metavar="BUNDLE", help="The bundle; a gallery remembers its own.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt"] | None,
    typer.Option(
        help="Where graphs run; tensorrt: engines of export --trt. By default CUDA where ONNX Runtime has it."
    ),
]
ProviderOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Another provider of ONNX Runtime; a plug-in as NAME=LIBRARY or NAME=PACKAGE."),
]
ProviderSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option", metavar="KEY=VALUE", help="An option of --provider, as it names them. Repeatable."
    ),
]
DeferIndex = Annotated[
    bool, typer.Option("--defer-index", help="In a database, leave the index of vectors to gallery build-index.")
]
RayOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Index shards into a database by N workers on a Ray cluster.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting: train.epochs=3. Repeatable."),
]
ImagesOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of its images, when elsewhere.")]

_COMPARISONS = {"<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}
_JSON_EXAMPLE = """--where '{"$or": [{"price": {"$lt": 30}}, {"sale": true}]}'"""


class ModeOption(StrEnum):
    """What a query is made of (a list of choices has to be an enum)."""

    COMPOSED = "composed"
    IMAGE_ONLY = "image-only"
    TEXT_ONLY = "text-only"


def query_modes(modes: Sequence[ModeOption] | None) -> tuple[Literal["composed", "image-only", "text-only"], ...]:
    """Return the values of --mode, `composed` without any."""
    return tuple(mode.value for mode in modes or [ModeOption.COMPOSED])


def folders(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse the NAME=DIR pairs of --data. Raises UsageError."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UsageError(f"--data takes NAME=DIR, not {pair!r}; for example --data products=photos")
    return {name: Path(folder) for name, folder in (pair.split("=", 1) for pair in pairs)}


def provider_options(pairs: Sequence[str] | None) -> dict[str, str]:
    """Parse the KEY=VALUE pairs of --provider-option. Raises UsageError."""
    for pair in pairs or ():
        if not all(pair.partition("=")[:2]):
            raise UsageError(f"--provider-option takes KEY=VALUE, not {pair!r}; for example device_id=1")
    return dict(pair.split("=", 1) for pair in pairs or ())


def conditions(texts: Sequence[str]) -> dict[str, object]:
    """Return the filter of --where: all of its conditions (docs/queries.md §9).

    Raises UsageError, also for a column of which two values are required.
    """
    filters = [_condition(text) for text in texts]
    keys = [key for part in filters for key in part]
    if len(set(keys)) == len(keys):
        return {key: value for part in filters for key, value in part.items()}
    values: dict[str, str] = {}
    for part in filters:
        for column, value in part.items():
            if isinstance(value, str):
                if column in values:
                    example = f"--where {column}={values[column]},{value}"
                    raise UsageError(f"--where names {column} twice; give its values together: {example}")
                values[column] = value
    return {"$and": filters}


def _condition(text: str) -> dict[str, object]:
    """Return the filter of one --where. Raises UsageError."""
    if text.lstrip().startswith("{"):
        return _json_object(text)
    symbols = re.fullmatch(r"(.*?)(<=|>=|!=|<|>|=)(.*)", text, re.DOTALL)
    words = None if symbols else re.fullmatch(r"(.+?)\s+((?:not\s+)?in)\s+(.+)", text, re.DOTALL)
    match = symbols or words
    column, operator, value = (part.strip() for part in match.groups()) if match else ("", "", "")
    if not column or column[-1] in "!~" or (operator == "=" and value.startswith("=")):
        raise UsageError(
            "--where takes COLUMN=VALUE[,VALUE], COLUMN<NUMBER (or <= > >= !=), 'COLUMN in A,B' or JSON, "
            f"not {text!r}; for example --where 'price<30'"
        )
    if operator in _COMPARISONS:
        from nsfse_runtime.gallery.columns import read_number

        number = read_number(value)
        return {column: {_COMPARISONS[operator]: value if math.isnan(number) else number}}
    return {column: value} if operator in ("=", "in") else {"$not": {column: value}}


def _json_object(text: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise UsageError(f"--where names {repeated[0]} twice; join the two with $and")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (RecursionError, json.JSONDecodeError) as error:
        raise UsageError(f"--where is not JSON: {error}; for example {_JSON_EXAMPLE}") from None
    if not isinstance(value, dict):
        raise UsageError(f"--where is not a JSON object; for example {_JSON_EXAMPLE}")
    return value


def numbers(text: str) -> list[int]:
    """Parse whole numbers between commas. Raises UsageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not a list of whole numbers; for example 10000,100000") from None
