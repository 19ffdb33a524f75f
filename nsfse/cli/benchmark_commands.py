"""Commands that score: evaluate, reproduce, data draw, prepare and check, bench accuracy and speed."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nsfse.cli.arguments import (
    DeviceOption,
    ImagesOption,
    Json,
    ModeOption,
    ProviderOption,
    ProviderSettings,
    SettingsOption,
    folders,
    numbers,
    provider_options,
    query_modes,
)
from nsfse_runtime.errors import UsageError


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run or a bundle.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A query set, or the folder of --dataset.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A public data set: fashioniq, cirr, circo, genecis ...")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="The split: val by default with --dataset, else all.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the images of --dataset, when elsewhere.")
    ] = None,
    join: Annotated[
        str | None, typer.Option(metavar="RULE", help="How FashionIQ's two captions become a text: clip4cir ...")
    ] = None,
    mode: Annotated[
        list[ModeOption] | None,
        typer.Option(metavar="MODE", help="composed (default), image-only or text-only. Repeatable."),
    ] = None,
    rerank: Annotated[int, typer.Option(min=0, metavar="N", help="How many candidates stage 2 scores.")] = 100,
    submission: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files of CIRR's or CIRCO's test server.")
    ] = None,
    only: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score only these queries of --dataset: ids, one a line.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page: figures, best and worst queries, boundaries.")
    ] = None,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    provider_option: ProviderSettings = None,
    as_json: Json = False,
) -> None:
    """Score a model on a query set or public data set.

    \b
    Examples:
      nsfse evaluate bundle QUERY_SET
      nsfse evaluate runs/mine FashionIQ/ --dataset fashioniq --html scores.html
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import scores_text
    from nsfse.evaluation.datasets import evaluate_dataset, evaluate_query_set
    from nsfse.evaluation.html_report import write_report
    from nsfse.open import open_scorer
    from nsfse.progress import stages_bar
    from nsfse_runtime.output_files import PAGE, check_output

    if join and not dataset:
        raise UsageError("--join sets how FashionIQ's captions become a text; it goes with --dataset fashioniq")
    if only and not dataset:
        raise UsageError("--only lists queries of a public data set; name it with --dataset")
    if html:
        check_output(html, PAGE)
    scorer = open_scorer(model, device, provider, provider_options(provider_option))
    with stages_bar() as progress:
        if dataset:
            reader_options: dict[str, Any] = {"images": images, "join": join}
            evaluation = evaluate_dataset(
                scorer,
                dataset,
                split or "val",
                folder,
                modes=query_modes(mode),
                rerank=rerank,
                submission=submission,
                only=only,
                progress=progress,
                diagnostics=html is not None,
                **{name: value for name, value in reader_options.items() if value},
            )
        else:
            evaluation = evaluate_query_set(
                scorer,
                folder,
                split=split,
                modes=query_modes(mode),
                rerank=rerank,
                progress=progress,
                diagnostics=html is not None,
            )
    if html:
        write_report(evaluation, html)
        evaluation = replace(evaluation, files=(*evaluation.files, html))
    print_result(evaluation.to_json(), scores_text, as_json)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe: fashioniq-resnet50, cirr-clip ...")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data set.")] = None,
    images: ImagesOption = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run; runs/NAME by default.")
    ] = None,
    weights: Annotated[str, typer.Option(metavar="FILE", help="The weights that the backbone starts from.")] = "",
    override: SettingsOption = None,
    steps: Annotated[int, typer.Option(min=0, metavar="N", help="End training after so many steps; 0 for all.")] = 0,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only print what is needed, done and expected.")] = False,
    as_json: Json = False,
) -> None:
    """Train and score a published benchmark: expected against got.

    \b
    Examples:
      nsfse reproduce fashioniq-resnet50 --dry-run
      nsfse reproduce fashioniq-resnet50 --data FashionIQ/
    """
    from nsfse.benchmark.reproduce import describe_recipe, reproduce
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import recipe_text, reproduced_text

    if dry:
        print_result(describe_recipe(name, data, images), recipe_text, as_json)
        raise typer.Exit()
    run = out or Path("runs") / name
    report = reproduce(name, data, run, images=images, weights=weights, overrides=override or (), steps=steps)
    print_result(report, reproduced_text, as_json)


def draw(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the query set.")],
    items: Annotated[int, typer.Option(metavar="N", help="How many images.")] = 4000,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, another set.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=2048, metavar="N", help="Width and height in pixels.")] = 128,
    level: Annotated[Literal["standard", "easy"], typer.Option(help="standard is meant not to saturate.")] = "standard",
    as_json: Json = False,
) -> None:
    """Draw the project's own benchmark as a query set.

    \b
    Examples:
      nsfse data draw drawn --items 400 --size 64
    """
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.data.synthetic.draw import draw_query_set

    counts = draw_query_set(folder, items=items, seed=seed, size=size, level=level)
    print_result({"folder": folder, **counts}, format_tree, as_json)


def prepare(
    name: Annotated[Literal["wardrobe"], typer.Argument(help="The data set: wardrobe.")],
    clone: Annotated[Path, typer.Argument(metavar="CLONE", help="A clone of the collection, or its folder of images.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the query set.")],
    as_json: Json = False,
) -> None:
    """Make a query set of the annotations in the package and of photos that are elsewhere (docs/wardrobe.md).

    \b
    Examples:
      nsfse data prepare wardrobe clothing-dataset/ wardrobe
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import prepared_text
    from nsfse.data.prepare import prepare_wardrobe
    from nsfse.progress import stages_bar

    with stages_bar() as progress:
        made = prepare_wardrobe(clone, out, progress)
    print_result({"dataset": name, **asdict(made)}, prepared_text, as_json)


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The data set: fashioniq, cirr, fashion200k, shoes, wardrobe ...")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Its folder.")],
    images: ImagesOption = None,
    as_json: Json = False,
) -> None:
    """Count a data set against the official numbers.

    \b
    Examples:
      nsfse data check fashioniq FashionIQ/
    """
    from nsfse.cli.formatting import print_result, printable_lines
    from nsfse.data.check import check_dataset, report_json, report_lines

    report = check_dataset(name, folder, **({"images": images} if images else {}))
    if as_json:
        print_result(report_json(report), printable_lines, as_json)
    else:
        print_result(report_lines(report), printable_lines, as_json)
    raise typer.Exit(0 if report.ok else 3)


def accuracy(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the table; the same command continues it.")
    ],
    protocols: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Protocols; each starts with its preset's name.")
    ] = "drawn",
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Methods; nsfse:gamma=0 is an ablation, tirg:facts learns from facts, tirg:minutes trains "
            "as long as the first (docs/benchmarks.md). [default: nsfse,image-only,text-only,sum,tirg,combiner,"
            "artemis; in blocks nsfse,tirg,artemis,combiner,sum]",
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Fair tables: right-answers, facts, minutes. They spell the methods themselves."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many trainings of each method.")] = 3,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=DIR", help="A preset's folder. Repeatable.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="One setting for every training: train.epochs=3. Repeatable."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, metavar="MINUTES", help="Stop after so long; 0 for no limit.")] = 0,
    as_json: Json = False,
) -> None:
    """Train methods alike and compare their scores.

    \b
    Examples:
      nsfse bench accuracy -o table --methods nsfse,tirg --seeds 1
      nsfse bench accuracy -o table --protocols products-instance --data products=DIR
    """
    from nsfse.benchmark.blocks import COMPARED, METHODS
    from nsfse.benchmark.compare import compare
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import comparison_text

    comparison = compare(
        protocols.split(","),
        methods.split(",") if methods else METHODS if blocks else COMPARED,
        out,
        seeds=seeds,
        data=folders(data or ()),
        overrides=override or (),
        minutes=minutes,
        blocks=blocks.split(",") if blocks else (),
    )
    print_result(asdict(comparison), comparison_text, as_json)
    raise typer.Exit(130 if comparison.interrupted else 0)


def speed(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for speed.md, speed.json and speed.svg.")
    ],
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run; by default a CLIP ViT-B/32 of random weights is measured."),
    ] = None,
    sizes: Annotated[str, typer.Option(metavar="N,N", help="Images of the galleries.")] = "10000,100000",
    photos: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder of images to index, too.")] = None,
    rounds: Annotated[int, typer.Option(min=3, metavar="N", help="Rounds of interleaved timing.")] = 7,
    minutes: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Begin nothing more after so long, and say what is left.")
    ] = 15,
    dim: Annotated[int, typer.Option(min=8, metavar="N", help="d of the default model.")] = 128,
    cells: Annotated[int, typer.Option(min=0, metavar="N", help="Its cells a side (model.pool_grid).")] = 4,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure torch.compile, too: minutes more.")] = False,
    as_json: Json = False,
) -> None:
    """Time the parts of a query and the whole of it beside PyTorch.

    \b
    Examples:
      nsfse bench speed -o speed
      nsfse bench speed runs/mine -o speed --sizes 10000
    """
    from nsfse.cli.formatting import print_result
    from nsfse.progress import print_status
    from nsfse_export.benchmark.report import markdown
    from nsfse_export.benchmark.speed import measure

    report = measure(
        out,
        run,
        rounds=rounds,
        minutes=minutes,
        sizes=numbers(sizes),
        photos=photos,
        dim=dim,
        cells=cells,
        compiled=compiled,
        report_progress=print_status,
    )
    print_result(report, markdown, as_json)
