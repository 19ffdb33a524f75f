from pathlib import Path
from typing import NamedTuple

import pytest


class Exported(NamedTuple):
    run: Path
    bundle: Path
    report: object


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    """A random tiny run with non-square pictures and its bundle, exported once for all tests."""
    for name in ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime"):
        pytest.importorskip(name)
    from nsfse.config import ModelConfig
    from nsfse_export import export_bundle
    from tests.random_run import write_random_run

    folder = tmp_path_factory.mktemp("export")
    run = write_random_run(folder / "run", ModelConfig(width=4, dim=16, image_size=(32, 48), max_words=12))
    return Exported(run, folder / "bundle", export_bundle(run, folder / "bundle"))
