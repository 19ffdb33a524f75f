"""The benchmark of CLIP-size training runs at toy size where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "on"])
def test_the_toy_tells_three_rates_and_parts_have_the_loss_of_the_whole(amp):
    paths = os.pathsep.join([*(str(ROOT / room) for room in (".", "export", "runtime")), *filter(None, sys.path)])
    told = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--toy"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "NSFSE_BF16_AUTOCAST": amp},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    found = json.loads(told.stdout)
    assert found["bfloat16"].startswith(f"{amp}; NSFSE_BF16_AUTOCAST is {amp}")
    assert all(found[name]["images_per_second"] > 0 for name in ("plain", "nsfse", "nsfse_in_4_parts"))
    assert found["nsfse"]["last_loss"] == pytest.approx(found["nsfse_in_4_parts"]["last_loss"], rel=2e-3)


@pytest.mark.slow
def test_serving_is_measured_in_every_way_and_what_is_not_here_says_why(monkeypatch, tmp_path):
    """The smoke run: tiny sizes, the golden bundle, the CPU in place of the GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu
    import gpu_serving

    monkeypatch.setattr(gpu_serving, "TYPES", {"float32": gpu_serving.TYPES["float32"]})
    bundle = ROOT / "tests" / "golden" / "bundle"
    found = gpu_serving.measure(smoke=True, bundle=bundle, minutes=60)
    rows = {(row["part"], row["size"], row["way"]): row for row in found["rows"]}
    for batch in gpu_serving.SMOKE["batches"]:
        ways = {way for part, size, way in rows if (part, size) == ("encoder", batch)}
        assert ways == set(gpu_serving.WAYS)
    here = [(part, way) for (part, _, way), row in rows.items() if row.get("ms", 0) > 0]
    assert {("encoder", "torch eager"), ("encoder", "ONNX Runtime"), ("stage 1", "torch")} <= set(here)
    assert {("stage 1", "ONNX Runtime"), ("re-rank", "numpy"), ("query", "ONNX Runtime")} <= set(here)
    away = {row["left_out"] for (_, _, way), row in rows.items() if way == "TensorRT"}
    assert len(away) == 1 and {"GPU", "installed"} & set(away.pop().split())
    gpu.write(found, tmp_path)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == found["rows"]
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == 4 + len(rows) and "SMOKE RUN" in gpu.table(found)


def test_a_tower_of_clip_costs_what_is_known_of_it(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_serving

    assert gpu_serving.flops(gpu_serving.TOWERS["ViT-B/32"]) == pytest.approx(8.8e9, rel=0.02)
    assert gpu_serving.flops(gpu_serving.TOWERS["ViT-L/14"]) == pytest.approx(162e9, rel=0.02)
