"""The command line: a command parses, calls one library function, prints. Heavy imports live inside the commands."""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast

import typer

import nsfse
from nsfse.cli.errors import report
from nsfse_runtime.errors import InputError, UsageError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Draw a data set, or check one.")
app.add_typer(data, name="data")
bench = typer.Typer(help="Measure, and write tables.")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print JSON with a schema_version instead of text.")]
BundleOption = Annotated[Path | None, typer.Option("-b", "--bundle", help="The bundle; a gallery remembers its own.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt"] | None,
    typer.Option(
        help="Where graphs run; tensorrt: engines of export --trt. By default CUDA where ONNX Runtime has it."
    ),
]
ProviderOption = Annotated[
    str | None, typer.Option(help="Another provider of ONNX Runtime, by its name; a plug-in as NAME=LIBRARY.")
]


class Mode(StrEnum):
    """What a query is made of (a list of choices has to be an enum)."""

    COMPOSED = "composed"
    IMAGE_ONLY = "image-only"
    TEXT_ONLY = "text-only"


@app.callback(invoke_without_command=True)
def tour(context: typer.Context, version: Annotated[bool, typer.Option("--version")] = False) -> None:
    """Composed image retrieval: find images by an image and a few words."""
    from nsfse.cli.formatting import WELCOME

    if version or context.invoked_subcommand is None:
        typer.echo(nsfse.__version__ if version else WELCOME, nl=version)
        raise typer.Exit()


@app.command()
def train(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; the same command continues it.")],
    preset: Annotated[str | None, typer.Option(help="A named recipe: drawn-easy, drawn, products ...")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file, on top of the preset.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="One setting: train.epochs=3. Repeatable.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again instead of continuing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model, or continue its training.

    Several processes train one model together: torchrun --standalone --nproc-per-node=2 -m nsfse train ...
    """
    from nsfse.config import load_config

    settings = load_config(preset, config, override or (), data)
    from nsfse.cli.formatting import training_text
    from nsfse.progress import first_process, training_bar
    from nsfse.training.loop import train

    with training_bar() as follow:
        result = train(settings, out, resume=not fresh, progress=follow)
    done = {"run": result.path, "metrics": result.metrics, "interrupted": result.interrupted}
    if first_process():
        _print(done, training_text, as_json)
    raise typer.Exit(130 if result.interrupted else 0)


@app.command()
def init(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the bundle.")],
    weights: Annotated[str, typer.Option(help="A CLIP: a folder saved by transformers, or hub:OWNER/NAME to fetch.")],
    backbone: Annotated[str, typer.Option(help="What knows images and words.")] = "clip",
    method: Annotated[str, typer.Option(help="How they are composed: slerp, sum, image-only or text-only.")] = "slerp",
    text_share: Annotated[float, typer.Option(min=0, max=1, help="How much the text counts.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Make a bundle without training, from a CLIP."""
    from nsfse_runtime.extras import need

    for module in ("torch", "transformers", "onnx"):
        need(module, "clip,export")
    from nsfse.cli.formatting import format_tree
    from nsfse.models.zero_shot import untrained_run
    from nsfse_export import export_bundle

    with untrained_run(weights, backbone=backbone, method=method, text_share=text_share) as run:
        _print(asdict(export_bundle(run, out)), format_tree, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run to export; with --trt it may be a bundle.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the bundle.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best weights on validation, not the last.")] = False,
    precision: Annotated[
        Literal["fp32", "int8", "fp16", "bf16"], typer.Option(help="int8 for CPUs, fp16 or bf16 for GPUs.")
    ] = "fp32",
    verify_on: Annotated[
        Path | None, typer.Option(help="Hold the precision against fp32 on this query set, not the run's validation.")
    ] = None,
    unverified: Annotated[bool, typer.Option("--unverified", help="Do not hold the precision against fp32.")] = False,
    trt: Annotated[bool, typer.Option("--trt", help="Build TensorRT engines for this GPU, in a cache.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a run into a bundle, verified, that needs no torch.

    A precision under fp32 must find what fp32 finds: R@10 within 0.5 points for int8, 0.1 for fp16 and bf16.
    """
    from nsfse.cli.formatting import format_tree
    from nsfse.progress import print_status, stages_bar

    options: dict[str, Any] = {"which": "best" if best else "last", "precision": precision}
    options |= {"verify_on": verify_on, "unverified": unverified}
    if trt:
        from nsfse_export import build_engines, bundle_for_engines  # and no more: there may be no torch

        with stages_bar() as follow:
            bundle = bundle_for_engines(run, out, **options, progress=follow, tell=print_status)
        _print(asdict(build_engines(bundle)), format_tree, as_json)
        return
    if out is None:
        raise typer.BadParameter("a run is exported to a folder; name it with -o BUNDLE")
    from nsfse_export import export_bundle

    with stages_bar() as follow:
        done = export_bundle(run, out, **options, progress=follow, tell=print_status)
    _print(asdict(done), format_tree, as_json)


@app.command()
def index(
    gallery: Annotated[Path, typer.Argument(help="The gallery file; made when absent.")],
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    bundle: BundleOption = None,
    metadata: Annotated[Path | None, typer.Option(help="A CSV with a column id or file, and any others.")] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="A glob of files or folders to leave out, kept for the next time; '' for none. Repeatable."),
    ] = None,
    allow_removals: Annotated[
        bool, typer.Option("--allow-removals", help="Let most images, or most metadata, go from the gallery.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode; one a core by default.")] = None,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    as_json: Json = False,
) -> None:
    """Bring a gallery in step with a folder of images.

    New images are encoded, changed ones anew, renamed ones kept, deleted ones removed. A file that is not a readable
    image is skipped and listed with its reason. Folders of systems (@eaDir, $RECYCLE.BIN, node_modules ...) and
    hidden ones are left out.
    """
    from nsfse.cli.formatting import index_text
    from nsfse.open import index_folder, resolve_device
    from nsfse.progress import indexing_bar, print_status

    options: dict[str, Any] = {"metadata": metadata, "workers": workers}
    options |= {"exclude": exclude, "allow_removals": allow_removals}
    with indexing_bar() as follow:
        where = resolve_device(device, provider)
        done, count = index_folder(gallery, folder, bundle, where, **options, progress=follow)
    _print(asdict(done), index_text, as_json)
    if not count and not done.failed:
        print_status(f"nsfse: the gallery is empty: {folder} holds no images")
    if done.failed and not count:
        raise InputError(f"none of the {len(done.failed)} files in {folder} could be taken; the gallery is empty")


@app.command()
def query(
    image: Annotated[str, typer.Argument(help="An image, or the id of one in the gallery.")],
    gallery: Annotated[Path, typer.Option("-g", "--gallery", help="The gallery file.")],
    text: Annotated[
        str | None, typer.Argument(help="What should be different; may be left out at --balance 0.")
    ] = None,
    more: Annotated[list[str] | None, typer.Option("--and", help="What else should be different. Repeatable.")] = None,
    and_like: Annotated[
        list[str] | None, typer.Option("--and-like", help="Another image to be like. Repeatable.")
    ] = None,
    exclude_text: Annotated[
        list[str] | None, typer.Option("--exclude-text", help="What must not be there: stripes. Repeatable.")
    ] = None,
    exclude_image: Annotated[list[str] | None, typer.Option(help="An image not to be like. Repeatable.")] = None,
    balance: Annotated[
        float, typer.Option(min=0, max=1, help="0 like the image alone, 0.5 both, 1 like the words alone.")
    ] = 0.5,
    bundle: BundleOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many images.")] = 10,
    where: Annotated[list[str] | None, typer.Option(help="Only images with COLUMN=VALUE[,VALUE]. Repeatable.")] = None,
    rerank: Annotated[int, typer.Option(min=0, help="How many candidates stage 2 looks at.")] = 100,
    min_confidence: Annotated[float, typer.Option(min=0, max=1, help="Leave out hits of a lower confidence.")] = 0,
    search: Annotated[
        Literal["auto", "exact", "ann"], typer.Option(help="Stage 1: exact, or by an index above 200,000 images.")
    ] = "auto",
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="With --json: where in a hit each word is found.")
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Write a contact sheet.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that can be mailed.")] = None,
    preview: Annotated[
        bool | None,
        typer.Option("--preview/--no-preview", help="Show the images in a terminal that can; by default they are."),
    ] = None,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    as_json: Json = False,
) -> None:
    """Find images: like IMAGE, but as TEXT says."""
    from nsfse.cli.formatting import query_text, write_sheets
    from nsfse.cli.rich_output import in_colour, show_query
    from nsfse.open import (
        check_references,
        check_sheets,
        conditions,
        image_file,
        open_retriever,
        resolve_device,
        why_empty,
    )

    retriever = open_retriever(gallery, bundle, resolve_device(device, provider), search)
    check_sheets(retriever.gallery, [image, *(and_like or ()), *(exclude_image or ())], png, html)
    options: dict[str, Any] = {
        "k": k,
        "where": conditions(where or ()),
        "rerank": rerank,
        "min_confidence": min_confidence,
    }
    options |= {
        "negative_texts": exclude_text or (),
        "negative_images": exclude_image or (),
        "balance": balance,
        "heatmaps": heatmaps,
    }
    texts = [each for each in (text, *(more or ())) if each is not None]
    references = [image, *(and_like or ())]
    check_references(retriever.gallery, [*references, *(exclude_image or ())], texts, balance)
    result = retriever.query(references, texts, **options)
    said = "; ".join([*texts, *(f"without {each}" for each in exclude_text or ())])
    others = [("and like", each) for each in and_like or ()] + [("not like", each) for each in exclude_image or ()]
    write_sheets(retriever.gallery, image, said, result, png, html, others)
    if not as_json and not result.hits and result.has_match is None and all(text.whole for text in result.texts):
        typer.echo(why_empty(retriever.gallery, options["where"]))
        return
    if not as_json and in_colour():
        show_query(result, image_file(retriever.gallery, image), preview)
        return
    _print(result, query_text, as_json)


@app.command()
def serve(
    gallery: Annotated[list[str], typer.Option("-g", "--gallery", help="[NAME=]GALLERY. Repeatable.")],
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that requests must bring; else NSFSE_TOKEN.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name that the server is called by. Repeatable.")
    ] = None,
    bundle: BundleOption = None,
    queue: Annotated[int, typer.Option(min=1, help="How many queries may wait.")] = 64,
    per_client: Annotated[int, typer.Option(min=0, help="How many of one address; 0 for no such limit.")] = 32,
    batch: Annotated[int, typer.Option(min=1, max=64, help="How many queries are answered at a time, at most.")] = 16,
    deadline: Annotated[float, typer.Option(min=0.1, help="After how many seconds a query is given up.")] = 10,
    shutdown_delay: Annotated[
        float, typer.Option(min=0, help="Seconds to go on after a signal to stop, not ready, for a balancer to notice.")
    ] = 0,
    device: DeviceOption = None,
    provider: ProviderOption = None,
) -> None:
    """Serve galleries over HTTP, with a page to ask them by."""
    from nsfse.open import open_services, resolve_device

    settings: dict[str, Any] = {"host": host, "port": port, "allow_hosts": tuple(allow_host or ())}
    settings |= {"queue": queue, "per_client": per_client, "batch": batch, "deadline": deadline}
    settings["shutdown_delay"] = shutdown_delay
    service = open_services(gallery, bundle, resolve_device(device, provider), token_file, settings)
    from nsfse_runtime.server.serve import listen, run, url_of

    with listen(service.settings) as listener:
        typer.echo(url_of(listener))
        sys.stdout.flush()
        run(service, listener)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run or a bundle.")],
    folder: Annotated[Path, typer.Argument(help="A query set, or the folder of --dataset.")],
    dataset: Annotated[str | None, typer.Option(help="A public data set: fashioniq, cirr, fashion200k, shoes.")] = None,
    split: Annotated[str | None, typer.Option(help="The split: val by default with --dataset, else all.")] = None,
    images: Annotated[Path | None, typer.Option(help="Where the images of --dataset lie, when elsewhere.")] = None,
    join: Annotated[str | None, typer.Option(help="How FashionIQ's two captions become a text: clip4cir ...")] = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="composed by default. Repeatable.")] = None,
    rerank: Annotated[int, typer.Option(min=0, help="How many candidates stage 2 looks at.")] = 100,
    submission: Annotated[Path | None, typer.Option(help="Folder for CIRR's test-server files.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page: figures, best and worst queries, where the boundaries lie.")
    ] = None,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    as_json: Json = False,
) -> None:
    """Score a model on a query set or public data set."""
    from nsfse.cli.formatting import scores_text
    from nsfse.evaluation.datasets import evaluate_dataset, evaluate_query_set
    from nsfse.evaluation.html_report import write_report
    from nsfse.models.torch_scorer import open_scorer
    from nsfse.progress import stages_bar
    from nsfse_runtime.output_files import PAGE, check_output

    if join and not dataset:
        raise UsageError("--join says how FashionIQ's captions become a text; it goes with --dataset fashioniq")
    if html:
        check_output(html, PAGE)
    scorer = open_scorer(model, device, provider)
    modes = cast(tuple[Literal["composed", "image-only", "text-only"], ...], tuple(mode or [Mode.COMPOSED]))
    reader: dict[str, Any] = {name: value for name, value in (("images", images), ("join", join)) if value}
    with stages_bar() as follow:
        if dataset:
            evaluation = evaluate_dataset(
                scorer,
                dataset,
                split or "val",
                folder,
                modes=modes,
                rerank=rerank,
                submission=submission,
                progress=follow,
                diagnostics=html is not None,
                **reader,
            )
        else:
            evaluation = evaluate_query_set(
                scorer,
                folder,
                split=split,
                modes=modes,
                rerank=rerank,
                progress=follow,
                diagnostics=html is not None,
            )
    if html:
        write_report(evaluation, html)
        evaluation = replace(evaluation, files=(*evaluation.files, html))
    _print(evaluation.to_json(), scores_text, as_json)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="The recipe: fashioniq-resnet50, cirr-clip ...")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    images: Annotated[Path | None, typer.Option(help="Where its images lie, when elsewhere.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run; runs/NAME by default.")] = None,
    weights: Annotated[str, typer.Option(help="The weights that the backbone starts from.")] = "",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="One setting: train.batch=64. Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="End training after so many steps; 0 for all.")] = 0,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only tell what is needed, done and expected.")] = False,
    as_json: Json = False,
) -> None:
    """Train and score a published benchmark: expected against got."""
    from nsfse.benchmark.reproduce import describe_recipe, reproduce
    from nsfse.cli.formatting import recipe_text, reproduced_text

    if dry:
        _print(describe_recipe(name, data, images), recipe_text, as_json)
        raise typer.Exit()
    run = out or Path("runs") / name
    found = reproduce(name, data, run, images=images, weights=weights, overrides=override or (), steps=steps)
    _print(found, reproduced_text, as_json)


@data.command()
def draw(
    folder: Annotated[Path, typer.Argument(help="Where to write the query set.")],
    items: Annotated[int, typer.Option(help="How many images.")] = 4000,
    seed: Annotated[int, typer.Option(help="Another seed, another set.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=2048, help="Width and height in pixels.")] = 128,
    level: Annotated[Literal["standard", "easy"], typer.Option(help="standard is meant not to saturate.")] = "standard",
    as_json: Json = False,
) -> None:
    """Draw the project's own benchmark as a query set."""
    from nsfse.cli.formatting import format_tree
    from nsfse.data.synthetic.draw import draw_query_set

    _print(
        {"folder": folder, **draw_query_set(folder, items=items, seed=seed, size=size, level=level)},
        format_tree,
        as_json,
    )


@data.command()
def check(
    name: Annotated[str, typer.Argument(help="The data set: fashioniq, cirr, fashion200k, shoes, queryset ...")],
    folder: Annotated[Path, typer.Argument(help="Its folder.")],
    images: Annotated[Path | None, typer.Option(help="Where its images lie, when elsewhere.")] = None,
    as_json: Json = False,
) -> None:
    """Count a data set against the official numbers."""
    from nsfse.cli.formatting import printable_lines
    from nsfse.data.check import check_dataset, report_json, report_lines

    found = check_dataset(name, folder, **({"images": images} if images else {}))
    _print(report_json(found) if as_json else report_lines(found), printable_lines, as_json)
    raise typer.Exit(0 if found.ok else 3)


@bench.command()
def accuracy(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the table; the same command continues it.")],
    protocols: Annotated[str, typer.Option(help="Protocols, by commas; each starts with its preset's name.")] = "drawn",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, by commas; nsfse:gamma=0 is an ablation, tirg:facts learns from facts, tirg:minutes trains "
            "as long as the first (docs/benchmarks.md). [default: nsfse,image-only,text-only,sum,tirg,combiner,"
            "artemis; in blocks nsfse,tirg,artemis,combiner,sum]"
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Fair tables, by commas: right-answers, facts, minutes. They spell the methods themselves."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings of each method.")] = 3,
    data: Annotated[list[str] | None, typer.Option(help="A preset's folder: products=DIR. Repeatable.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="One setting for every training: train.epochs=3. Repeatable.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so long; 0 for no limit.")] = 0,
    as_json: Json = False,
) -> None:
    """Train methods alike and compare their scores."""
    from nsfse.benchmark.blocks import COMPARED, METHODS
    from nsfse.benchmark.compare import compare
    from nsfse.cli.formatting import comparison_text
    from nsfse.open import folders

    settings: dict[str, Any] = {"seeds": seeds, "data": folders(data or ()), "overrides": override or ()}
    named = methods.split(",") if methods else METHODS if blocks else COMPARED
    settings |= {"minutes": minutes, "blocks": blocks.split(",") if blocks else ()}
    found = compare(protocols.split(","), named, out, **settings)
    _print(asdict(found), comparison_text, as_json)
    raise typer.Exit(130 if found.interrupted else 0)


@bench.command()
def speed(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for speed.md, speed.json and speed.svg.")],
    run: Annotated[
        Path | None, typer.Argument(help="A run; by default a CLIP ViT-B/32 of random weights is measured.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Images of the galleries, by commas.")] = "10000,100000",
    photos: Annotated[Path | None, typer.Option(help="A folder of images to index, too.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds in which the ways take turns.")] = 7,
    minutes: Annotated[float, typer.Option(min=0, help="Begin nothing more after so long, and say what is left.")] = 15,
    dim: Annotated[int, typer.Option(min=8, help="d of the default model.")] = 128,
    cells: Annotated[int, typer.Option(min=0, help="Its cells a side (model.pool_grid).")] = 4,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure torch.compile, too: minutes more.")] = False,
    as_json: Json = False,
) -> None:
    """Time the parts of a query and the whole of it beside PyTorch."""
    from nsfse.open import numbers
    from nsfse.progress import print_status
    from nsfse_export.benchmark.report import markdown
    from nsfse_export.benchmark.speed import measure

    settings: dict[str, Any] = {"rounds": rounds, "minutes": minutes, "sizes": numbers(sizes), "photos": photos}
    model: dict[str, Any] = {"dim": dim, "cells": cells, "compiled": compiled}
    _print(measure(out, run, **settings, **model, tell=print_status), markdown, as_json)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A run, a bundle or a gallery.")],
    as_json: Json = False,
) -> None:
    """Tell what a run, a bundle or a gallery is."""
    from nsfse.cli.formatting import format_tree
    from nsfse.cli.info import describe

    _print(describe(path), format_tree, as_json)


@app.command()
def doctor(
    bundle: BundleOption = None,
    full: Annotated[bool, typer.Option("--full", help="Tell paths, too.")] = False,
    as_json: Json = False,
) -> None:
    """Check this installation; what a bug report needs."""
    from nsfse.cli.doctor import collect
    from nsfse.cli.formatting import doctor_text

    found = collect(bundle, full=full)
    _print(found, doctor_text, as_json)
    raise typer.Exit(3 if found["problems"] else 0)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for all it makes; a cache by default, with --train demo.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port; the first free one from 8000 on.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, where there is one.")] = True,
    train: Annotated[
        bool, typer.Option("--train", help="Do every step instead: draw, train, export, index, query and score.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the page, with a small model and drawn images.

    No torch, training or network: both lie in the box. The model knows drawings alone. Ctrl-C ends it.
    """
    if train:
        if port is not None or not browser:
            raise typer.BadParameter("--port and --no-browser are of the page, which --train does not show")
        from nsfse.cli.formatting import demo_text
        from nsfse.demo.pipeline import run_demo

        _print(run_demo(out or Path("demo")), demo_text, as_json)
        return
    from nsfse.cli.formatting import boxed_text
    from nsfse.demo.app import open_demo, show
    from nsfse_runtime.server.serve import run, url_of

    ready = open_demo(out, port)
    with ready.listener as listener:
        address = url_of(listener)
        facts = {"url": address, "images": ready.images, "gallery": ready.gallery, "bundle": ready.bundle}
        _print(facts, boxed_text, as_json)
        sys.stdout.flush()
        if browser:
            show(address)
        run(ready.service, listener)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code (docs/errors.md)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = app(args=arguments, prog_name="nsfse", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except SystemExit:  # typer's own, when the reader of a pipe has left
        code = 141
    except Exception as error:
        code = report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _print(value: Any, text: Callable[[Any], str], as_json: bool) -> None:
    """Print a result as text, or as JSON with the version of its form."""
    from nsfse.cli.formatting import to_json

    typer.echo(to_json(value) if as_json else text(value))


if __name__ == "__main__":
    main()
