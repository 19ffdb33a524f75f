"""The benchmark of CLIP-size training runs at toy size where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_toy_tells_three_rates_and_parts_have_the_loss_of_the_whole():
    paths = os.pathsep.join([*(str(ROOT / room) for room in (".", "export", "runtime")), *filter(None, sys.path)])
    told = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--toy"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    found = json.loads(told.stdout)
    assert all(found[name]["pictures_per_second"] > 0 for name in ("plain", "nsfse", "nsfse_in_4_parts"))
    assert found["nsfse"]["last_loss"] == pytest.approx(found["nsfse_in_4_parts"]["last_loss"], rel=2e-3)
