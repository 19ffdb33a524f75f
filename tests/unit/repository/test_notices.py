"""What is said of others' work is what their packages say, and goes along in the wheel."""

import tomllib
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_notices_are_those_of_the_packages():
    for package in ("faiss", "onnxruntime", "starlette", "torch", "transformers", "onnx", "onnxslim"):
        if not find_spec(package):
            pytest.skip(f"{package} is not here to be asked")
    written = run_path(str(ROOT / "docs" / "write_notices.py"))["page"]()
    assert (ROOT / "THIRD_PARTY_NOTICES.md").read_text("utf-8") == written, "run: python docs/write_notices.py"


def test_every_extra_that_users_install_is_told_of():
    page = (ROOT / "THIRD_PARTY_NOTICES.md").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    script = run_path(str(ROOT / "docs" / "write_notices.py"))
    assert {*script["SERVED"], *script["TRAINED"]} == set(extras) - {"dev", "docs"}
    assert " see there |" not in page, "find its licence out, and say it in KNOWN"


def test_licence_and_notices_go_into_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["license-files"] == ["LICENSE", "THIRD_PARTY_NOTICES.md"]
    assert all((ROOT / name).is_file() for name in project["license-files"])
