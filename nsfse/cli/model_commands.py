"""Commands that make a model: train, import-clip, export."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from nsfse.cli.arguments import Json, SettingsOption
from nsfse.cli.engine_commands import CapabilityOption, PackKeyOption, TrtOption, engine_target, engines_text


def train(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run; the same command continues it.")
    ],
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A named recipe: drawn-easy, drawn, products ...")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="TOML", help="A file of settings, on top of the preset.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data set.")] = None,
    override: SettingsOption = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start again instead of continuing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model, or continue its training.

    Several processes train one model together: torchrun --standalone --nproc-per-node=2 -m nsfse train ...

    \b
    Examples:
      nsfse train -o runs/mine --preset products --data DIR
      nsfse train -o runs/mine --config mine.toml --set train.epochs=3
    """
    from nsfse.config import load_config

    settings = load_config(preset, config, override or (), data)
    from nsfse.cli.formatting import print_result
    from nsfse.cli.reports import training_text
    from nsfse.progress import first_process, training_bar
    from nsfse.training.loop import train

    with training_bar() as progress:
        result = train(settings, out, resume=not no_resume, progress=progress)
    fields = {"run": result.path, "metrics": result.metrics, "interrupted": result.interrupted}
    if first_process():
        print_result(fields, training_text, as_json)
    raise typer.Exit(130 if result.interrupted else 0)


def import_clip(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the bundle.")],
    weights: Annotated[
        str,
        typer.Option(
            metavar="DIR|hub:OWNER/NAME",
            help="Folder of a dual encoder of transformers or OpenCLIP, or a name to fetch.",
        ),
    ],
    backbone: Annotated[str, typer.Option(metavar="NAME", help="What encodes images and texts.")] = "clip",
    method: Annotated[
        str, typer.Option(metavar="NAME", help="How they are composed: slerp, sum, image-only or text-only.")
    ] = "slerp",
    text_share: Annotated[float, typer.Option(min=0, max=1, metavar="0..1", help="How much the text counts.")] = 0.5,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Fit the evidence of words and the confidence to these images, unlabelled."),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="With --images, what the model reads before each word.")
    ] = "a photo of",
    as_json: Json = False,
) -> None:
    """Make a bundle from a CLIP, SigLIP or other dual encoder, without training.

    \b
    Examples:
      nsfse import-clip -o clip --weights hub:openai/clip-vit-base-patch32
      nsfse import-clip -o clip --weights clip-folder --images photos
    """
    from nsfse_runtime.extras import need

    for module in ("torch", "transformers", "onnx"):
        need(module, "clip,export")
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.models.zero_shot import untrained_run
    from nsfse.progress import print_status
    from nsfse.training.add_evidence import add_evidence, evidence_line
    from nsfse_export import export_bundle

    with untrained_run(weights, backbone=backbone, method=method, text_share=text_share) as run:
        if images:
            print_status(evidence_line(*add_evidence(run, images, prompt)))
        else:
            print_status("no evidence of words and no confidence; give --images DIR to fit them to a folder of images")
        print_result(asdict(export_bundle(run, out)), format_tree, as_json)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run to export; with --trt it may be a bundle.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder of the bundle.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best weights on validation, not the last.")] = False,
    precision: Annotated[
        Literal["fp32", "int8", "fp16", "bf16"], typer.Option(help="int8 for CPUs, fp16 or bf16 for GPUs.")
    ] = "fp32",
    verify_on: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Compare the precision with fp32 on this query set, not the run's validation."
        ),
    ] = None,
    skip_verification: Annotated[
        bool, typer.Option("--skip-verification", help="Do not compare the precision with fp32.")
    ] = False,
    trt: TrtOption = None,
    compute_capability: CapabilityOption = None,
    pack_key: PackKeyOption = None,
    as_json: Json = False,
) -> None:
    """Turn a run into a bundle, verified, that needs no torch.

    A precision under fp32 must find what fp32 finds: R@10 within 0.5 points for int8, 0.1 for fp16 and bf16.

    \b
    Examples:
      nsfse export runs/mine -o bundle --precision int8
      nsfse export bundle --trt
    """
    from nsfse.cli.formatting import format_tree, print_result
    from nsfse.progress import print_status, stages_bar
    from nsfse_export import ExportOptions

    options = ExportOptions(
        which="best" if best else "last",
        precision=precision,
        verify_on=verify_on,
        skip_verification=skip_verification,
    )
    if trt:
        from nsfse_export import build_engines, bundle_for_engines  # and no more: torch may be absent

        target = engine_target(trt, compute_capability, pack_key)  # what is missing is reported before the export
        with stages_bar() as progress:
            bundle = bundle_for_engines(run, out, options, target=target, progress=progress, report_scores=print_status)
        print_result(build_engines(bundle, target), engines_text, as_json)
        return
    if compute_capability or pack_key:
        raise typer.BadParameter("--compute-capability and --pack-key are for engines; add --trt")
    if out is None:
        raise typer.BadParameter("a run is exported to a folder; name it with -o BUNDLE")
    from nsfse_export import export_bundle

    with stages_bar() as progress:
        report = export_bundle(run, out, options, progress=progress, report_scores=print_status)
    print_result(asdict(report), format_tree, as_json)
