"""The command line: the list of commands, and what each run of the program does at its start and end.

A command parses, calls one library function, and prints. Heavy imports are inside the commands.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import nsfse
from nsfse.cli.benchmark_commands import accuracy, check, draw, evaluate, prepare, reproduce, speed
from nsfse.cli.engine_commands import ExportCommand, add, list_engines
from nsfse.cli.errors import report
from nsfse.cli.gallery_commands import index, query
from nsfse.cli.help_commands import demo, doctor, info
from nsfse.cli.hub_commands import pull, push, use
from nsfse.cli.model_commands import export, import_clip, train
from nsfse.cli.repair_commands import build_index, copy, repair, verify
from nsfse.cli.serve_command import serve

WELCOME = """\
nsfse finds images by an image and a few words: "this dress, but red".
  nsfse demo                                            a search page over photos of clothes, to try it
  nsfse index photos/                                   make a gallery of a folder of images
  nsfse query "red dress"                               search it, also: nsfse query dress.jpg "make it red"
  nsfse --help                                          all commands
"""

COMPLETION = "_NSFSE_COMPLETE"
"""Set by the script of --install-completion while a shell completes a command."""

WIDEST = 160
"""Columns of --help at most; in a narrower terminal it has that width."""

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)
data = typer.Typer(help="Draw a data set, prepare one, or check one.")
gallery = typer.Typer(help="Check, repair or copy a gallery, or build its index.")
engines = typer.Typer(help="TensorRT engines of this machine.")
bench = typer.Typer(help="Measure, and write tables.")


@app.callback(invoke_without_command=True)
def welcome(
    context: typer.Context,
    version: Annotated[bool, typer.Option("-V", "--version", help="Print the version and exit.")] = False,
) -> None:
    """Composed image retrieval: find images by an image and a few words.

    \b
    Examples:
      nsfse demo
      nsfse index photos/
      nsfse query "red dress"
    """
    if version or context.invoked_subcommand is None:
        typer.echo(f"nsfse {nsfse.__version__}" if version else WELCOME, nl=version)
        raise typer.Exit()


app.command()(train)
app.command("import-clip")(import_clip)
app.command(cls=ExportCommand)(export)
app.command()(index)
app.command()(query)
app.command(context_settings={"auto_envvar_prefix": "NSFSE_SERVE"})(serve)
app.command()(use)
app.command()(push)
app.command()(pull)
app.command()(evaluate)
app.command()(reproduce)
app.command()(info)
app.command()(doctor)
app.command()(demo)
app.add_typer(data, name="data")
data.command()(draw)
data.command()(prepare)
data.command()(check)
app.add_typer(gallery, name="gallery")
gallery.command()(verify)
gallery.command()(repair)
gallery.command()(copy)
gallery.command()(build_index)
app.add_typer(engines, name="engines")
engines.command()(add)
engines.command("list")(list_engines)
app.add_typer(bench, name="bench")
bench.command()(accuracy)
bench.command()(speed)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code (docs/errors.md)."""
    from nsfse_runtime.images.pillow_warnings import ignore_pillow_warnings

    ignore_pillow_warnings()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = app(args=arguments, prog_name="nsfse", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:  # typer's own: completion is done, or the reader of a pipe has left
        code = stop.code if os.environ.get(COMPLETION) or stop.code == 0 else 141
    except BaseException as error:  # a panic of a library in Rust is no Exception
        code = report(error)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
