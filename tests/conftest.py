"""How the tests are spread, what is run again with other kernels, and what was skipped.

The files that take longest begin first, so that no worker is left with one at the end.
"""

import functools
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.offline import block_network

TESTS = Path(__file__).parent

LONGEST = [
    "e2e/test_train_to_query.py",
    "parity/test_export.py",
    "promises/test_p08_training_resume.py",
    "unit/models/test_backbones.py",
    "unit/training/test_loop.py",
    "e2e/test_public_protocols.py",
    "e2e/test_page.py",
    "e2e/test_shop.py",
    "parity/test_export_methods.py",
    "unit/training/test_distributed.py",
    "unit/models/test_zero_shot.py",
    "unit/training/test_fit_without_labels.py",
    "unit/training/test_ablations.py",
    "unit/repository/test_benchmarks.py",
    "unit/benchmark/test_compare.py",
    "unit/repository/test_gpu_benchmark.py",
    "unit/data/test_catalogue.py",
    "unit/models/test_baselines.py",
    "promises/test_p01_kill.py",
]


# Files whose tests compute nothing that a kernel could round; all others are marked `numerics` and run twice.
EXACT = {
    "promises/test_p17_bad_images.py",
    "promises/test_p20_offline.py",
    "promises/test_p01_kill.py",
    "promises/test_p02_power_loss.py",
    "promises/test_p03_bit_rot.py",
    "promises/test_p04_full_disk.py",
    "promises/test_p05_concurrency.py",
    "promises/test_p06_resume.py",
    "promises/test_p07_incremental.py",
    "promises/test_p15_stop.py",
    "e2e/test_page.py",
    "e2e/test_public_protocols.py",
    "unit/cli/test_app.py",
    "unit/cli/test_rich_output.py",
    "unit/data/test_augmentation.py",
    "unit/data/test_datasets.py",
    "unit/data/test_exclusions.py",
    "unit/data/test_free_texts.py",
    "unit/data/test_query_set.py",
    "unit/data/test_registry.py",
    "unit/data/test_render.py",
    "unit/data/test_templates.py",
    "unit/data/test_wardrobe.py",
    "unit/evaluation/test_cirr_submission.py",
    "unit/evaluation/test_metrics.py",
    "unit/repository/test_deploy.py",
    "unit/repository/test_docs_code.py",
    "unit/repository/test_examples.py",
    "unit/repository/test_gpu_benchmark.py",
    "unit/repository/test_kernels.py",
    "unit/repository/test_notices.py",
    "unit/repository/test_public_names.py",
    "unit/repository/test_readme.py",
    "unit/repository/test_site.py",
    "unit/runtime/test_bundle.py",
    "unit/runtime/test_decode.py",
    "unit/runtime/test_hostile_bundles.py",
    "unit/runtime/test_hostile_galleries.py",
    "unit/runtime/test_memory.py",
    "unit/runtime/test_reader.py",
    "unit/runtime/test_stores.py",
    "unit/runtime/test_tokenizer.py",
    "unit/runtime/test_visualize.py",
    "unit/server/test_app.py",
    "unit/server/test_beneath.py",
    "unit/server/test_images.py",
    "unit/server/test_middleware.py",
    "unit/server/test_page_javascript.py",
    "unit/server/test_start.py",
    "unit/test_config.py",
}


def pytest_addoption(parser):
    """Add the database whose promises unit/runtime/test_stores.py tests; a new schema there for each."""
    parser.addoption("--gallery", help="URL of a database: postgresql://USER@HOST/DATABASE?sslmode=prefer")


@pytest.fixture(scope="session", autouse=True)
def offline():
    """The whole suite runs without a network."""
    block_network()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(_name(item), len(place)))
    for item in items:
        if _name(item) not in EXACT:
            item.add_marker(pytest.mark.numerics)


def _name(item):
    return item.path.relative_to(TESTS).as_posix()


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
