"""The second pass of the tests is really one with other kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests import kernels

SCRIPT = Path(kernels.__file__)


def asked(*arguments: str, **environment: str) -> dict[str, str]:
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, ""), "a library warns of what is asked of it"
    split = "=" if arguments else " "
    return {name: value.strip() for name, _, value in (line.partition(split) for line in found.stdout.splitlines())}


def test_the_plainest_kernels_are_those_in_use_where_they_are_asked_for() -> None:
    environment = asked("plain")
    assert environment == kernels.plain()
    here, there = kernels.report(), asked(**environment)
    assert ", DEFAULT, " in there["torch"]
    assert "its baseline" in there["numpy"]
    assert here["processor"] == there["processor"]
    if kernels.openblas() and "OPENBLAS_CORETYPE" in environment:
        core = there["numpy"].rpartition(" ")[2]
        assert core != kernels.openblas() and core in (environment["OPENBLAS_CORETYPE"], "Katmai")
    assert all(f"{name}={value}" in there["variables"] for name, value in environment.items())


def test_one_of_both_passes_has_bfloat16_on() -> None:
    states = {asked(**more)["bfloat16"].partition(";")[0] for more in ({}, kernels.plain())}
    assert states == {"on", "off"}
