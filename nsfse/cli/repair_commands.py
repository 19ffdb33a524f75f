"""Commands that check, copy, repair and finish a gallery: gallery verify, copy, repair, build-index."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nsfse.cli.arguments import BundleOption, DeviceOption, Json
from nsfse_runtime.errors import IntegrityError


def verify(
    gallery: Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery file.")], as_json: Json = False
) -> None:
    """Read and check all of a gallery: its pages, and the checksum of every row.

    Prints what is wrong and where, a line each, and exits with 5 where there is anything.

    \b
    Examples:
      nsfse gallery verify my.gallery
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.gallery_reports import verification_text
    from nsfse_runtime.gallery.repair import verify as look

    found = look(gallery)
    print_result({"images": len(found.entries), "faults": found.faults}, verification_text, as_json)
    if found.faults:
        raise IntegrityError(f"{gallery} is damaged; see: nsfse gallery repair --help")


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A gallery file, or the URL of one in a database.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same, made when absent.")],
    as_json: Json = False,
) -> None:
    """Copy a gallery between a file and a database, without encoding anything.

    What else TO holds stays. The same command goes on after an interruption. It needs no bundle.

    \b
    Examples:
      nsfse gallery copy my.gallery 'postgresql://me@db.example/images?gallery=shoes'
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.gallery_reports import copy_text
    from nsfse.progress import bar
    from nsfse_runtime.stores.copy import copy_gallery

    with bar("copying") as advance:
        report = copy_gallery(source, target, lambda done, total: advance(done, total, ""))
    print_result(asdict(report), copy_text, as_json)


def build_index(
    gallery: Annotated[str, typer.Argument(metavar="GALLERY|URL", help="A file, or the URL of one in a database.")],
) -> None:
    """Build the index of vectors where it is not there yet: once, after all has been loaded.

    `nsfse index --defer-index` leaves it to this command. Searches go on meanwhile; writers wait.

    \b
    Examples:
      nsfse gallery build-index 'postgresql://me@db.example/images?gallery=web'
    """
    from contextlib import closing

    from nsfse.progress import print_status
    from nsfse_runtime.stores.open import open_store

    with closing(open_store(gallery)) as store:
        store.build_index()
        print_status(f"nsfse: the index of {store.url} is built")


def repair(
    gallery: Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery file.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="The folder of its images; a gallery remembers its own.")
    ] = None,
    bundle: BundleOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Make a damaged gallery whole: keep all that checks, encode the rest again from the folder.

    Says what is gone. The damaged file is kept beside the gallery as GALLERY.damaged.

    \b
    Examples:
      nsfse gallery repair my.gallery
      nsfse gallery repair my.gallery photos/ -b BUNDLE
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.gallery_reports import repair_text
    from nsfse.index import repair_gallery
    from nsfse.open import resolve_device

    report = repair_gallery(gallery, folder, bundle, resolve_device(device, None, None))
    print_result(asdict(report), repair_text, as_json)
