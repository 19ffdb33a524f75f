"""From a run to a bundle that serves without torch, `export_bundle(run, out)`, and on to TensorRT's engines.

Names are imported when they are first used: engines are built where there may be no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsfse_export.export import ExportReport, export_bundle
    from nsfse_export.options import ExportOptions
    from nsfse_export.tensorrt import EngineTarget, build_engines, bundle_for_engines, engine_target
    from nsfse_export.verify import Sample

_MODULES = {
    "ExportOptions": "options",
    "ExportReport": "export",
    "Sample": "verify",
    "EngineTarget": "tensorrt",
    "build_engines": "tensorrt",
    "bundle_for_engines": "tensorrt",
    "engine_target": "tensorrt",
    "export_bundle": "export",
}

__all__ = [
    "EngineTarget",
    "ExportOptions",
    "ExportReport",
    "Sample",
    "build_engines",
    "bundle_for_engines",
    "engine_target",
    "export_bundle",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"nsfse_export.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
