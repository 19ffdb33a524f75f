"""TensorRT on the command line: what `export --trt` takes and prints, and `engines add` and `list`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperCommand

from nsfse.cli.arguments import Json

if TYPE_CHECKING:
    from nsfse_export import EngineTarget
    from nsfse_export.tensorrt import EnginesReport
    from nsfse_runtime.inference.tensorrt.cache import Sidecar
    from nsfse_runtime.inference.tensorrt.pack import AddedEngines

TrtOption = Annotated[
    Literal["auto", "tensorrt", "rtx"] | None,
    typer.Option(
        "--trt",
        metavar="[=tensorrt|rtx]",
        help="Build TensorRT engines: for this GPU into a cache, or a pack for others. rtx: TensorRT for RTX.",
    ),
]
CapabilityOption = Annotated[
    str | None,
    typer.Option(
        metavar="X.Y,X.Y",
        help="With --trt: build a pack beside the bundle for GPUs of these: 8.9,12.0. No GPU is needed.",
    ),
]
PackKeyOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A file with the key that seals the pack, not this user's.")
]


class ExportCommand(TyperCommand):
    """`--trt` alone is `--trt=auto`: typer has no option whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See TyperCommand."""
        return super().parse_args(ctx, ["--trt=auto" if part == "--trt" else part for part in args])


def engine_target(trt: str, compute_capability: str | None, pack_key: Path | None) -> "EngineTarget":
    """Return what the options of `export --trt` ask for. Raises what nsfse_export.engine_target does."""
    from nsfse_export import engine_target as find_target
    from nsfse_runtime.inference.tensorrt.pack import read_key
    from nsfse_runtime.inference.tensorrt_library import LibraryName

    capabilities = [part.strip() for part in (compute_capability or "").split(",")]
    if compute_capability is None:
        if pack_key:
            raise typer.BadParameter("--pack-key seals a pack; add --compute-capability")
        capabilities = []
    library = None if trt == "auto" else cast(LibraryName, trt)
    return find_target(library, capabilities, read_key(pack_key) if pack_key else None)


def engines_text(report: "EnginesReport") -> str:
    """Return what was built as lines."""
    from nsfse.cli.formatting import columns, format_tree

    rows = [
        (capability, graph, engine.state, f"{engine.bytes / 1e6:.1f}", engine.seconds)
        for capability, graphs in report.engines.items()
        for graph, engine in graphs.items()
    ]
    facts = {"bundle": report.bundle, "engines": report.folder, "library": report.library, "gpu": report.gpu}
    cosines = {"least cosine beside ONNX Runtime": report.least_cosine, "note": report.note}
    table = columns(("capability", "graph", "state", "MB", "seconds"), rows)
    return "\n".join(part for part in (format_tree(facts), table, format_tree(cosines)) if part)


def add(
    pack: Annotated[
        Path, typer.Argument(metavar="PACK", help="Folder of the pack: BUNDLE.engines, with engines.json in it.")
    ],
    pack_key: Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the key that sealed it.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Take it whoever sealed it; engines are native code.")] = False,
    as_json: Json = False,
) -> None:
    """Take an engine pack into this machine's cache, for --device tensorrt.

    \b
    Examples:
      nsfse engines add BUNDLE.engines --trust
    """
    from nsfse.cli.formatting import print_result
    from nsfse_runtime.inference.tensorrt.pack import add_pack

    print_result(add_pack(pack, pack_key, trust=trust), _added_text, as_json)


def _added_text(added: "AddedEngines") -> str:
    from nsfse.cli.formatting import columns, format_tree

    rows = [(capability, *item) for capability, graphs in added.engines.items() for item in graphs.items()]
    facts = {"pack": added.pack, "cache": added.cache, "library": added.library, "note": added.note}
    return f"{format_tree(facts)}\n{columns(('capability', 'graph', 'state'), rows)}"


def list_engines(as_json: Json = False) -> None:
    """List the engines in this machine's cache.

    \b
    Examples:
      nsfse engines list --json
    """
    from nsfse.cli.formatting import print_result
    from nsfse_runtime.inference.tensorrt.cache import EngineCache

    cache = EngineCache.open()
    engines = [_row(sidecar) for sidecar in cache.sidecars()]
    print_result({"cache": cache.folder, "engines": engines}, _listed_text, as_json)


def _row(sidecar: "Sidecar") -> dict[str, Any]:
    key = sidecar.key
    return {
        "graph": key.graph,
        "library": key.library,
        "version": key.version,
        "capability": key.capability,
        "gpu": key.gpu,
        "precision": key.precision,
        "name": key.name,
    }


def _listed_text(listed: dict[str, Any]) -> str:
    from nsfse.cli.formatting import columns

    if not listed["engines"]:
        return f"no engines in {listed['cache']}; build some with: nsfse export BUNDLE --trt"
    rows = [
        (row["graph"][:12], row["library"], row["version"], row["capability"], row["gpu"] or "-", row["precision"])
        for row in listed["engines"]
    ]
    return columns(("graph", "library", "version", "capability", "gpu", "precision"), rows)
