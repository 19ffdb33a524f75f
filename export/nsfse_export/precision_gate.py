"""Does a bundle in a lower precision still find what its float32 form finds? R@10 decides, not a cosine."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from nsfse.config import DataConfig
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.registry import open_source
from nsfse.evaluation.datasets import evaluate_query_set
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.evaluation.features import Progress
from nsfse.evaluation.results import Evaluation
from nsfse.models.checkpoint import write_file
from nsfse_export.options import ExportOptions
from nsfse_export.quantization import HALF_TYPES, emulate_half, reduce_graph
from nsfse_runtime.errors import DataError, IntegrityError, NsfseError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import TOKENIZER, Manifest, Precision, write_manifest
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.types import Scorer

MAX_POINTS: Mapping[str, float] = {"int8": 0.5, "fp16": 0.1, "bf16": 0.1}
"""By how many points of R@10, up or down, a precision may differ from float32."""

METRICS = ("R@1", "R@10")

Evaluator = Callable[[Scorer], Evaluation]


def evaluator_for(options: ExportOptions, trained_on: DataConfig, progress: Progress | None = None) -> Evaluator | None:
    """Return what scores a model: on a query set, or on the validation protocols of the run's data.

    None for float32, and where the precision stays unverified.

    Raises:
        UsageError: The options contradict each other.
        DataError: There are no queries; and the errors of a query set.
    """
    precision, queries, skip_verification = options.precision, options.verify_on, options.skip_verification
    if queries is not None and skip_verification:
        raise UsageError("--verify-on and --skip-verification contradict each other; give one of them")
    if precision == "fp32" and (queries is not None or skip_verification):
        raise UsageError(
            "--verify-on and --skip-verification are about a --precision of int8, fp16 or bf16; leave them out"
        )
    if precision == "fp32" or skip_verification:
        return None
    if queries is not None:
        QuerySetSource(queries)  # its errors, before anything is exported
        return lambda scorer: evaluate_query_set(scorer, queries, progress=progress)
    folder = Path(trained_on.folder) if trained_on.folder else None
    try:
        source = open_source(trained_on.source, folder, **trained_on.options)
        protocols = [p for p in source.protocols(trained_on.validation) if any(query.targets for query in p.queries)]
    except NsfseError as error:
        raise _no_data(str(error)) from error
    if not protocols:
        raise _no_data(f"{source.name} has no queries with answers on its split {trained_on.validation!r}")
    return lambda scorer: evaluate_source(scorer, source, protocols, progress=progress)


def reduce_bundle(
    folder: Path,
    manifest: Manifest,
    precision: Precision,
    evaluator: Evaluator | None,
    report_scores: Callable[[str], None],
) -> Manifest:
    """Put a float32 bundle into a lower precision, compare both by `evaluator`, and return the new manifest.

    Raises:
        UsageError: The precision does nothing for any graph.
        IntegrityError: The reduced bundle does not find what the float32 bundle finds.
    """
    files = {name: reduce_graph(name, (folder / f"{name}.onnx").read_bytes(), precision) for name in manifest.graphs}
    if not any(files.values()):
        raise UsageError(
            f"this model gains nothing from {precision}: its weights are too few, or of kinds that stay float32; "
            "export it without --precision"
        )
    reference = evaluator(OnnxScorer(Bundle.open(folder))) if evaluator else None
    for name, data in files.items():
        if data is not None:
            write_file(folder / f"{name}.onnx", data)
    graphs: dict[str, Precision] = {name: precision if data else "fp32" for name, data in files.items()}
    manifest = msgspec.structs.replace(manifest, precision=precision, graphs=graphs, retrieval={"verified": False})
    manifest = write_manifest(folder, manifest)
    if not evaluator or not reference:
        return manifest
    with _runnable_on_cpu(folder, manifest) as runnable:
        retrieval = compare(precision, reference, evaluator(OnnxScorer(Bundle.open(runnable))))
    report_scores(format_scores(precision, retrieval))
    check_recall(precision, retrieval)
    return write_manifest(folder, msgspec.structs.replace(manifest, retrieval=retrieval))


@contextmanager
def _runnable_on_cpu(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield the bundle `folder` in a form that a CPU can run: itself, or one that emulates its half type."""
    if manifest.precision not in HALF_TYPES:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        runnable = Path(temporary)
        write_file(runnable / TOKENIZER, (folder / TOKENIZER).read_bytes())
        for name, kind in manifest.graphs.items():
            data = (folder / f"{name}.onnx").read_bytes()
            write_file(runnable / f"{name}.onnx", emulate_half(data) if kind in HALF_TYPES else data)
        write_manifest(runnable, msgspec.structs.replace(manifest, precision="fp32"))
        yield runnable


def compare(precision: str, reference: Evaluation, reduced: Evaluation) -> dict[str, Any]:
    """Return, for the manifest, the scores of both by protocol, with the protocol's version and sizes."""
    protocols = {}
    for original, lowered in zip(reference.results, reduced.results, strict=True):
        scores = {
            metric: {"fp32": original.scores[metric], precision: lowered.scores[metric]}
            for metric in METRICS
            if metric in original.scores
        }
        protocols[original.protocol.name] = {
            "version": original.protocol.version,
            "queries": original.scores["queries"],
            "gallery": len(original.protocol.gallery),
            **scores,
        }
    return {"verified": True, "most_points": MAX_POINTS[precision], "protocols": protocols}


def format_scores(precision: str, retrieval: Mapping[str, Any]) -> str:
    """Return the scores of both as lines."""
    lines = [f"{'R@10 on':<24} {'queries':>8} {'fp32':>8} {precision:>8} {'apart':>8}"]
    for name, protocol in retrieval["protocols"].items():
        before, after = protocol["R@10"].values()
        lines.append(f"{name:<24} {protocol['queries']:>8} {before:>8.2f} {after:>8.2f} {after - before:>+8.2f}")
    return "\n".join(lines)


def check_recall(precision: str, retrieval: Mapping[str, Any]) -> None:
    """Raise IntegrityError where the R@10 of a protocol is further from float32's than `precision` may be."""
    max_points, failures = retrieval["most_points"], []
    for name, protocol in retrieval["protocols"].items():
        before, after = protocol["R@10"].values()
        if not round(abs(before - after), 4) <= max_points:  # a NaN is refused, too
            failures.append(f"{name} {before:.2f} → {after:.2f}")
    if failures:
        raise IntegrityError(
            f"{precision} moves R@10 by more than {max_points} points ({', '.join(failures)}); nothing was written: "
            "export in another precision, or verify on more queries with --verify-on"
        )


def _no_data(why: str) -> DataError:
    return DataError(
        f"no queries to verify the precision on ({why}); name a query set with --verify-on, or pass --skip-verification"
    )
