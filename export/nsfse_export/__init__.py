"""From a run to a bundle that serves without torch: `export_bundle(run, out)`."""

from nsfse_export.onnx import ExportReport, export_bundle
from nsfse_export.verify import Sample

__all__ = ["ExportReport", "Sample", "export_bundle"]
