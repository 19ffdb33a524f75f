"""Commands on galleries: index, query."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from nsfse.cli.arguments import (
    BundleOption,
    DeferIndex,
    DeviceOption,
    Json,
    ProviderOption,
    ProviderSettings,
    RayOption,
    conditions,
    provider_options,
)
from nsfse_runtime.errors import InputError, UsageError
from nsfse_runtime.escaping import printable


def index(
    gallery: Annotated[
        str,
        typer.Argument(
            metavar="GALLERY|URL|FOLDER",
            help="The gallery, a file or in a database, made when absent. FOLDER alone gets FOLDER.gallery beside it.",
        ),
    ],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER|SHARD...", help="A folder of images, or shards: .tar, .parquet; after GALLERY."),
    ] = None,
    bundle: BundleOption = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="CSV", help="A table with a column id or file, and others.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="A glob of files or folders to leave out, remembered for the next time; '' for none. Repeatable.",
        ),
    ] = None,
    allow_removals: Annotated[
        bool, typer.Option("--allow-removals", help="Let most images, or most metadata, go from the gallery.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads that decode; one a core by default.")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Of N processes this is the I-th, from 0: it takes every N-th shard.")
    ] = "0/1",
    defer_index: DeferIndex = False,
    ray: RayOption = None,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    provider_option: ProviderSettings = None,
    as_json: Json = False,
) -> None:
    """Make a gallery equal to a folder of images, or index shards into it.

    New images are encoded and changed ones encoded again. Renamed ones get their new names, deleted ones are
    removed. A file that is not a readable image is skipped and listed with its reason. Folders of systems
    (@eaDir, $RECYCLE.BIN, node_modules ...) and hidden ones are left out.

    Shards are tars as img2dataset writes them, and Parquet files. One that was indexed before is not read again.

    \b
    Examples:
      nsfse index photos/
      nsfse index my.gallery photos/ -b BUNDLE
      nsfse index my.gallery photos/ --metadata items.csv --exclude 'drafts/*'
      nsfse index postgresql://me@db/images photos/ -b BUNDLE
      nsfse index postgresql://me@db/images shards/{00..99}.tar --shard 0/4
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.gallery_reports import index_text
    from nsfse.cli.index_support import check_options, check_ray, part_of, source_kind
    from nsfse.defaults import gallery_beside
    from nsfse.index import index_folder, index_shards
    from nsfse.open import resolve_device
    from nsfse.progress import indexing_bar, print_status
    from nsfse.ray_index import index_on_ray
    from nsfse_runtime.gallery.sync import check_is_folder
    from nsfse_runtime.stores.open import is_store_url

    if not sources:
        if is_store_url(gallery):
            raise UsageError("name the folder of images after the URL: nsfse index URL FOLDER")
        sources = [Path(gallery)]
        check_is_folder(sources[0])
        gallery = str(gallery_beside(sources[0]))
        print_status(f"nsfse: the gallery is {printable(gallery)}")
    kind, part = source_kind(sources), part_of(shard)
    if ray is not None:
        check_ray(kind, part)
    of_folders = {"--metadata": metadata, "--exclude": exclude, "--allow-removals": allow_removals}
    check_options(kind, part, of_folders)
    on = resolve_device(device, provider, provider_options(provider_option))
    with indexing_bar() as progress:
        if ray is not None:
            report, count = index_on_ray(
                gallery,
                sources,
                bundle,
                on,
                ray_workers=ray,
                workers=workers or 1,
                defer_index=defer_index,
                progress=progress,
            )
        elif kind == "shards":
            report, count = index_shards(
                gallery, sources, bundle, on, part=part, workers=workers, defer_index=defer_index, progress=progress
            )
        else:
            report, count = index_folder(
                gallery,
                sources[0],
                bundle,
                on,
                metadata=metadata,
                exclude=exclude,
                allow_removals=allow_removals,
                workers=workers,
                defer_index=defer_index,
                progress=progress,
            )
    print_result(asdict(report), index_text, as_json)
    where = sources[0] if kind == "folder" else "the shards"
    if not count and not report.failed:
        print_status(f"nsfse: the gallery is empty: {where} holds no images")
    if report.failed and not count:
        raise InputError(f"none of the {len(report.failed)} files in {where} could be taken; see the reasons above")


def query(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE", help="An image, or the id of one in the gallery; without one, words to search by."
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What should be different; none for more of the same.")
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(
            "-g",
            "--gallery",
            metavar="GALLERY|URL",
            help="The gallery, a file or in a database; by default the file in this folder, or beside it.",
        ),
    ] = None,
    words: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="The same as TEXT, also without IMAGE.")
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("--and", metavar="TEXT", help="What else should be different. Repeatable.")
    ] = None,
    and_like: Annotated[
        list[str] | None, typer.Option("--and-like", metavar="IMAGE", help="Another image to be like. Repeatable.")
    ] = None,
    exclude_text: Annotated[
        list[str] | None,
        typer.Option("--exclude-text", metavar="TEXT", help="What must not be there: stripes. Repeatable."),
    ] = None,
    exclude_image: Annotated[
        list[str] | None, typer.Option(metavar="IMAGE", help="An image not to be like. Repeatable.")
    ] = None,
    balance: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="0..1", help="0 like the image alone, 0.5 both, 1 like the words alone."),
    ] = 0.5,
    bundle: BundleOption = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images.")] = 10,
    offset: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many of the best to skip, for further pages.")
    ] = 0,
    fields: Annotated[
        str | None, typer.Option(metavar="COLUMN,COLUMN", help="Columns of metadata to show. All in JSON.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A column of which only the best image of each value is shown.")
    ] = None,
    fold_duplicates: Annotated[
        float | None,
        typer.Option(metavar="COSINE", help="Show of images as alike as this, such as 0.98, only the best."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="How much each text counts, up to 4, 1 as trained: TEXT, then each --and."),
    ] = None,
    exclude_weights: Annotated[
        str | None, typer.Option(metavar="N,N", help="The same for each --exclude-text.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Only images with COLUMN=VALUE[,VALUE], 'COLUMN<NUMBER' (also <= > >= !=), 'COLUMN in A,B', or a "
            "filter in JSON. Repeatable: all must hold.",
        ),
    ] = None,
    rerank: Annotated[int, typer.Option(min=0, metavar="N", help="How many candidates stage 2 scores.")] = 100,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, metavar="0..1", help="Leave out hits of a lower confidence.")
    ] = 0,
    search: Annotated[
        Literal["auto", "exact", "ann"], typer.Option(help="Stage 1: exact, or by an index above 200,000 images.")
    ] = "auto",
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="With --json: where in a hit each word is found.")
    ] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a contact sheet.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that can be mailed.")] = None,
    preview: Annotated[
        bool | None,
        typer.Option("--preview/--no-preview", help="Show the images in a terminal that can; by default they are."),
    ] = None,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    provider_option: ProviderSettings = None,
    as_json: Json = False,
) -> None:
    """Find images by an image and words: like IMAGE, but as TEXT says.

    Either may be left out. A single argument that names no image is words.

    \b
    Examples:
      nsfse query "red dress"
      nsfse query dress.jpg "make it red" -g my.gallery
      nsfse query "red dress" -g my.gallery --where 'price<30' --png hits.png
      nsfse query dress.jpg "with dots" -g my.gallery --exclude-text stripes
    """
    from nsfse.cli.formatting import print_result
    from nsfse.cli.query_support import check_references, check_sheets, image_and_text, numbers, why_empty, write_sheets
    from nsfse.cli.reports import query_text
    from nsfse.cli.rich_output import in_colour, show_query
    from nsfse.defaults import nearest_gallery
    from nsfse.open import image_file, open_retriever, resolve_device
    from nsfse_runtime.retrieval.query import Query

    retriever = open_retriever(
        gallery or nearest_gallery(),
        bundle,
        resolve_device(device, provider, provider_options(provider_option)),
        search,
    )
    others = [("and like", name) for name in and_like or ()] + [("not like", name) for name in exclude_image or ()]
    with retriever.reading() as view:
        image, text = image_and_text(view, image, text, words, alone=not (more or and_like))
    references = tuple(name for name in (image, *(and_like or ())) if name is not None)
    columns = tuple(name.strip() for name in fields.split(",")) if fields else ()
    request = Query(
        references=references,
        texts=tuple(part for part in (text, *(more or ())) if part is not None),
        negative_texts=tuple(exclude_text or ()),
        negative_images=tuple(exclude_image or ()),
        balance=balance,
        k=k,
        where=conditions(where or ()),
        rerank=rerank,
        min_confidence=min_confidence,
        heatmaps=heatmaps,
        offset=offset,
        fields=columns,
        group_by=group_by,
        fold_duplicates=fold_duplicates,
        text_weights=numbers(weights, "--weights"),
        negative_text_weights=numbers(exclude_weights, "--exclude-weights"),
    )
    images = [*references, *(exclude_image or ())]
    check_references(images)
    check_sheets(view, images, png, html)
    [result] = retriever.answer([request])
    if isinstance(result, Exception):
        raise result
    write_sheets(view, image, request, result, png, html, others)
    if not as_json and not result.hits and result.has_match is None and all(text.whole for text in result.texts):
        typer.echo(why_empty(retriever, where or (), result))
    elif not as_json and in_colour():
        show_query(result, image_file(view, image) if image else None, preview, offset, columns)
    else:
        print_result(result, lambda found: query_text(found, offset, columns), as_json)
