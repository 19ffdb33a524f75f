"""How the tests are spread, what is run again with other kernels, and what was skipped.

The files that take longest begin first, so that no worker is left with one at the end.
"""

import functools
import sys
from collections import Counter

import pytest

LONGEST = [
    "test_road.py",
    "test_export.py",
    "test_train_kill.py",
    "test_backbones.py",
    "test_train.py",
    "test_public_protocols.py",
    "test_page.py",
    "test_shop_road.py",
    "test_export_methods.py",
    "test_parallel.py",
    "test_untrained.py",
    "test_ablations.py",
    "test_benchmarks.py",
    "test_comparison.py",
    "test_gpu_benchmark.py",
    "test_data_catalogue.py",
    "test_baselines.py",
    "test_runtime_gallery_kill.py",
]


# Files whose tests compute nothing that a kernel could round; all others are marked `numerics` and run twice.
EXACT = {
    *("test_page.py", "test_public_protocols.py", "test_cli.py", "test_config.py", "test_deploy.py"),
    *("test_docs_code.py", "test_examples.py", "test_gpu_benchmark.py", "test_kernels.py", "test_notices.py"),
    *("test_public_names.py", "test_readme.py", "test_site.py", "test_submission.py", "test_terminal.py"),
    *("test_data_drawing.py", "test_data_phrasing.py", "test_data_public.py", "test_data_queryset.py"),
    *("test_data_retelling.py", "test_data_sources.py", "test_runtime_bad_images.py", "test_runtime_bundle.py"),
    *("test_runtime_gallery_kill.py", "test_runtime_images.py", "test_runtime_intake.py", "test_runtime_memory.py"),
    *("test_runtime_metrics.py", "test_runtime_report.py", "test_runtime_text.py", "test_server_app.py"),
    *("test_server_guard.py", "test_server_pictures.py", "test_server_stop.py"),
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        if item.path.name not in EXACT:
            item.add_marker(pytest.mark.numerics)


def pytest_terminal_summary(terminalreporter):
    """Count what was skipped, by reason: a test that is never run is no test."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in _skipped(terminalreporter))
    if reasons:
        terminalreporter.section("skipped, by reason")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4} {reason}")


def _skipped(terminalreporter):
    return [report for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple | list)]


def pytest_runtest_setup():
    """From the second export on, torch need not read the source of its ONNX functions again, a second each time."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    apis = getattr(exporter, "onnxscript_apis", None)
    if apis and not hasattr(apis.get_torchlib_ops, "cache_info"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
