"""Commands on models that are elsewhere: push, pull, use."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nsfse.cli.arguments import Json

HubName = Annotated[str, typer.Argument(metavar="hub:OWNER/NAME", help="The model's name; @REVISION picks a commit.")]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run or a bundle.")],
    name: HubName,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run or a bundle with its card to the Hugging Face Hub.

    \b
    Examples:
      nsfse push bundle hub:OWNER/NAME
    """
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.hub import push as upload

    print_result(asdict(upload(folder, name, public=public)), format_tree, as_json)


def pull(
    name: HubName,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="A new folder.")],
    as_json: Json = False,
) -> None:
    """Fetch a run or a bundle from the Hugging Face Hub, and check it.

    Only files of a model are fetched: JSON, safetensors, ONNX and the card.

    \b
    Examples:
      nsfse pull hub:OWNER/NAME -o bundle
    """
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.hub import pull as fetch

    print_result(asdict(fetch(name, out)), format_tree, as_json)


def use(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="hub:OWNER/NAME[@REVISION], a bundle's folder, or box.")],
    as_json: Json = False,
) -> None:
    """Set the model of new galleries of which no bundle is named; box is the one in the package.

    A model of a hub is fetched once; its commit and its hash are remembered.

    \b
    Examples:
      nsfse use hub:OWNER/NAME
      nsfse use box
    """
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.defaults import use_model

    print_result(asdict(use_model(name)), format_tree, as_json)
