"""Commands to get started and to find out what is wrong: info, doctor, demo."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nsfse.cli.arguments import BundleOption, Json


def info(
    path: Annotated[str, typer.Argument(metavar="PATH|URL", help="A run, a bundle or a gallery.")],
    as_json: Json = False,
) -> None:
    """Describe a run, a bundle or a gallery.

    \b
    Examples:
      nsfse info my.gallery
      nsfse info runs/mine --json
    """
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.cli.info import describe

    print_result(describe(path), format_tree, as_json)


def doctor(
    bundle: BundleOption = None,
    full: Annotated[bool, typer.Option("--full", help="Print paths, too.")] = False,
    as_json: Json = False,
) -> None:
    """Check this installation; what a bug report needs.

    \b
    Examples:
      nsfse doctor
      nsfse doctor -b BUNDLE --json
    """
    from nsfse.cli.doctor import collect
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import doctor_text

    report = collect(bundle, full=full)
    print_result(report, doctor_text, as_json)
    raise typer.Exit(3 if report["problems"] else 0)


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Folder for all it makes; a cache by default, with --train demo."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="The port; the first free one from 8000 on.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, where there is one.")] = True,
    train: Annotated[
        bool, typer.Option("--train", help="Do every step instead: draw, train, export, index, query and score.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the search page over photos of clothes and over drawings, each with a small model.

    No torch, training or network: all comes with the package. The first start indexes the images, which takes a
    while. The models know clothes and drawings alone. Ctrl-C ends it.

    \b
    Examples:
      nsfse demo
      nsfse demo -o shop --port 8080 --no-browser
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import demo_page_text, demo_text

    if train:
        if port is not None or not browser:
            raise typer.BadParameter("--port and --no-browser are of the page, which --train does not show")
        from nsfse.demo.pipeline import run_demo

        print_result(run_demo(out or Path("demo")), demo_text, as_json)
        return
    from nsfse.demo.app import open_browser, open_demo
    from nsfse_runtime.server.serve import run, url_of

    ready = open_demo(out, port)
    with ready.listener as listener:
        url = url_of(listener)
        print_result({"url": url, "galleries": ready.galleries}, demo_page_text, as_json)
        sys.stdout.flush()
        if browser:
            open_browser(url)
        run(ready.service, listener)
