"""From a checkpoint to a verified bundle; `out` is untouched until torch and the bundle agree."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnxslim
import torch

import nsfse
from nsfse.evaluation.features import Progress
from nsfse.evaluation.reference_head import HeadConstants
from nsfse.models.baselines import Baseline
from nsfse.models.checkpoint import Checkpoint, load_checkpoint, write_file
from nsfse.models.nsfse import NSFSE
from nsfse.models.torch_scorer import TorchScorer
from nsfse.models.training_free import TrainingFree
from nsfse_export.atomic_folder import new_bundle
from nsfse_export.graphs import Graph, Shape, build_graphs
from nsfse_export.model_card import format_card, training_scores
from nsfse_export.options import ExportOptions
from nsfse_export.precision_gate import evaluator_for, reduce_bundle
from nsfse_export.verify import Sample, draw_sample, verify
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import CARD, TOKENIZER, AttributeBlock, Manifest, Precision, write_manifest
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.regular_files import read_regular
from nsfse_runtime.types import RankingMode

OPSET = 23
"""Has Attention and bfloat16 convolutions. Beside 18, whose text graph masks by IsNaN and Where, texts of three words
took 0.93 of the time; images the same."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: Folder of the bundle.
        fingerprint: SHA-256 over the bundle.
        files: Size of each file in bytes.
        scores: Validation scores of the exported weights while training.
        verified: Differences of ONNX Runtime and numpy from torch.
        precision: Precision of the bundle.
        graphs: Precision of each graph.
        retrieval: Scores of fp32 and the precision by protocol, where it is not fp32.
    """

    path: Path
    fingerprint: str
    files: dict[str, int]
    scores: dict[str, Any]
    verified: dict[str, Any]
    precision: Precision
    graphs: dict[str, Precision]
    retrieval: dict[str, Any]


def export_bundle(
    run: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    sample: Sample | None = None,
    progress: Progress | None = None,
    report_scores: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Export a run as a bundle and verify it against torch.

    A precision under fp32 is verified on retrieval, too. A bundle at `out` is replaced whole; on any
    error `out` is as it was. The confidence of hits was fitted to the last weights, so that a bundle
    of the best weights has none.

    Args:
        run: Folder of the run.
        out: Folder of the bundle; absent, empty or an older bundle.
        options: Weights, precision and how it is verified; by default the last weights in fp32.
        sample: Images and texts to compare torch and bundle on. By default images are drawn and texts
            are made of the model's own vocabulary.
        progress: Called with stage, done and total while a precision is verified on retrieval.
        report_scores: Called once with the scores of fp32 and the precision, as lines of a table.

    Returns:
        Where the bundle is, its files with sizes in bytes, and how far it is from torch.

    Raises:
        NotFoundError: There is no such run.
        UsageError: No bundle can hold this model, or the precision does nothing for it.
        DataError: There are no queries to verify the precision on.
        OutputError: `out` cannot be written, or is something else.
        IntegrityError: The run is damaged, the graphs do not agree with torch, or the precision does not
            find what fp32 finds.
    """
    options = options or ExportOptions()
    checkpoint = load_checkpoint(run, options.which)
    _refuse_unservable(run, checkpoint.model)
    evaluator = evaluator_for(options, checkpoint.config.data, progress)
    scores = training_scores(run, options.which)
    tokenizer = read_regular(run / TOKENIZER)
    with new_bundle(out) as folder:
        graphs = build_graphs(checkpoint.model)
        for name, graph in graphs.items():
            write_file(folder / f"{name}.onnx", to_onnx(name, graph))
        write_file(folder / TOKENIZER, tokenizer)
        draft = write_manifest(folder, _manifest(out.absolute().name, checkpoint, graphs, scores))
        sample = sample or draw_sample(draft.image_size, tokenizer, draft.max_words)
        verified = verify(
            TorchScorer(checkpoint.model, checkpoint.tokenizer),
            OnnxScorer(Bundle.open(folder)),
            HeadConstants.of(draft) if draft.mode is RankingMode.TWO_STAGE else None,
            sample,
        )
        manifest = write_manifest(folder, msgspec.structs.replace(draft, verified=verified))
        if options.precision != "fp32":
            manifest = reduce_bundle(folder, manifest, options.precision, evaluator, report_scores)
        write_file(folder / CARD, format_card(manifest, graphs).encode())
        fingerprint = Bundle.open(folder).fingerprint
    sizes = {name: entry.size for name, entry in manifest.files.items()}
    return ExportReport(
        out, fingerprint, sizes, scores, verified, manifest.precision, manifest.graphs, manifest.retrieval
    )


def _refuse_unservable(run: Path, model: NSFSE | TrainingFree | Baseline) -> None:
    reason = ""
    if isinstance(model, Baseline) and model.mode is not RankingMode.ONE_STAGE:
        reason = f"of the method {model.config.method}, which has no vector for a query"
    elif model.config.words != "each":
        reason = "of model.words = 'sentence', which has no evidence for each word"
    if reason:
        raise UsageError(f"{run} is {reason}: no bundle holds it; score the run itself with `nsfse evaluate {run}`")


def to_onnx(name: str, graph: Graph) -> bytes:
    """Return `graph` as one whole ONNX file, slimmed. Raises IntegrityError where a varying dimension became fixed."""
    with _quiet():
        program = torch.onnx.export(
            graph.module,
            kwargs=graph.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=_dimensions(graph.inputs),
            verbose=False,
        )
        if program is None:
            raise IntegrityError(f"torch made no {name} graph; update torch and onnxscript and export again")
        model: onnx.ModelProto = onnxslim.slim(program.model_proto)
    _strip(model)
    _check_shapes(name, model, graph)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def head_constants(model: NSFSE | TrainingFree) -> HeadConstants:
    """Return the numbers of the pair head that the features do not hold."""
    head = model.head
    w_global, w_cross, w_visual = head.fusion_weights().tolist()
    return HeadConstants(
        t_c=head.cross_boundary.t,
        t_v=head.visual_boundary.t,
        gamma=head.gamma,
        attention_scale=head.scale,
        w_global=w_global,
        w_cross=w_cross,
        w_visual=w_visual,
        views=head.global_tokens,
        blocks=_blocks(model),
    )


def _blocks(model: NSFSE | TrainingFree) -> tuple[AttributeBlock, ...]:
    if not model.blocks:
        return ()
    shares, weights = model.blocks.shares().tolist(), model.blocks.agreement_weights.tolist()
    described = zip(model.config.attributes.items(), shares, weights, strict=True)
    return tuple(AttributeBlock(name, values, share, weight) for (name, values), share, weight in described)


def _manifest(name: str, checkpoint: Checkpoint, graphs: dict[str, Graph], scores: dict[str, Any]) -> Manifest:
    model, boundary = checkpoint.model, {}
    if not isinstance(model, Baseline):
        boundary = {f"{key}_c": value for key, value in model.head.cross_boundary.summary().items()}
        boundary |= {f"{key}_v": value for key, value in model.head.visual_boundary.summary().items()}
    return Manifest(
        name=name,
        method=model.config.method,
        mode=model.mode,
        created_with=nsfse.__version__,
        image_size=model.config.image_size,
        dim=model.config.dim,
        regions=int(graphs["image"].outputs["regions"][1]),
        max_words=model.config.max_words,
        boundary=boundary,
        head=head_constants(model).to_dict() if not isinstance(model, Baseline) else {},
        blocks=_blocks(model) if not isinstance(model, Baseline) else (),
        decision=msgspec.to_builtins(checkpoint.decision) if checkpoint.decision else {},
        graphs=dict.fromkeys(graphs, "fp32"),
        trained_on=checkpoint.info.get("trained_on", {}),
        scores=scores,
    )


def _dimensions(inputs: dict[str, Shape]) -> dict[str, dict[int, Any]]:
    dimensions: dict[str, Any] = {}

    def dimension(size: str) -> Any:
        base, plus, offset = size.partition("+")
        variable = dimensions.setdefault(base, torch.export.Dim(base))
        return variable + int(offset) if plus else variable

    return {
        name: {axis: dimension(size) for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in inputs.items()
    }


def _strip(model: onnx.ModelProto) -> None:
    # The exporter writes down the Python file and line of every node: paths of this machine.
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:]
    for message in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        message.doc_string = ""
        del message.metadata_props[:]


def _check_shapes(name: str, model: onnx.ModelProto, graph: Graph) -> None:
    for values, expected in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
        shapes = {
            value.name: tuple(
                d.dim_param.replace(" ", "") if d.HasField("dim_param") else d.dim_value
                for d in value.type.tensor_type.shape.dim
            )
            for value in values
        }
        if shapes != expected:
            raise IntegrityError(f"the {name} graph has shapes {shapes}, not {expected}; update torch and export again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's advice to its own developers, and pause the garbage collector: a sixth of its time."""
    log = logging.getLogger("torch.onnx")
    level, collecting = log.level, gc.isenabled()
    log.setLevel(logging.ERROR)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        if collecting:
            gc.enable()
