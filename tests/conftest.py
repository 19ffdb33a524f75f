"""How the tests are spread: the files that take longest begin first, so that no worker is left with one at the end."""

import functools
import sys

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


def pytest_collection_modifyitems(items):
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_runtest_setup():
    """From the second export on, torch need not read the source of its ONNX functions again, a second each time."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    apis = getattr(exporter, "onnxscript_apis", None)
    if apis and not hasattr(apis.get_torchlib_ops, "cache_info"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
