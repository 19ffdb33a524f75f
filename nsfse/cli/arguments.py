"""What several commands share: their options, and the parsing of lists and pairs."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from nsfse_runtime.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print JSON with a schema_version instead of text.")]
BundleOption = Annotated[Path | None, typer.Option("-b", "--bundle", help="The bundle; a gallery remembers its own.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt"] | None,
    typer.Option(
        help="Where graphs run; tensorrt: engines of export --trt. By default CUDA where ONNX Runtime has it."
    ),
]
ProviderOption = Annotated[
    str | None,
    typer.Option(help="Another provider of ONNX Runtime, by its name; a plug-in as NAME=LIBRARY or NAME=PACKAGE."),
]
ProviderSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option", help="An option of --provider, as its documentation names it: KEY=VALUE. Repeatable."
    ),
]
SettingsOption = Annotated[list[str] | None, typer.Option("--set", help="One setting: train.epochs=3. Repeatable.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of its images, when elsewhere.")]


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


def conditions(pairs: Sequence[str]) -> dict[str, str]:
    """Parse the COLUMN=VALUE pairs of --where. Raises UsageError, also for a column that is given twice."""
    value_of: dict[str, str] = {}
    for pair in pairs:
        column, equals, value = (part.strip() for part in pair.partition("="))
        compared = column[-1:] in ("<", ">", "!", "~") or value.startswith("=")
        if compared or (not equals and not {"<", ">", "!", "~"}.isdisjoint(pair)):
            raise UsageError(f"--where compares by = alone: COLUMN=VALUE[,VALUE], not {pair!r}")
        if not equals or not column:
            raise UsageError(f"--where takes COLUMN=VALUE, not {pair!r}; for example --where category=dress")
        if column in value_of:
            example = f"--where {column}={value_of[column]},{value}"
            raise UsageError(f"--where names {column} twice; give its values together: {example}")
        value_of[column] = value
    return value_of


def numbers(text: str) -> list[int]:
    """Parse whole numbers between commas. Raises UsageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not a list of whole numbers; for example 10000,100000") from None
