"""The public surface: what can be imported from the top of each package, and that importing it costs nothing."""

import subprocess
import sys

import pytest

import nsfse
import nsfse_runtime
from nsfse_runtime import errors

HEAVY = ("numpy", "torch", "PIL", "onnxruntime", "tokenizers")


def test_the_runtime_offers_these_names():
    names = ["Bundle", "Gallery", "Hit", "NsfseError", "Query", "Result", "Retriever", "Snapshot", "open_model"]
    assert sorted(nsfse_runtime.__all__) == names
    for name in nsfse_runtime.__all__:
        assert getattr(nsfse_runtime, name).__name__ == name


def test_nsfse_offers_these_names():
    pytest.importorskip("torch")
    functions = {
        "evaluate_dataset",
        "evaluate_query_set",
        "load_checkpoint",
        "load_config",
        "open_scorer",
        "open_source",
    }
    assert set(nsfse.__all__) == functions | {"__version__"}
    for name in functions:
        assert getattr(nsfse, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nsfse.nothing


@pytest.mark.parametrize("package", ["nsfse", "nsfse_runtime"])
def test_importing_a_package_imports_nothing_heavy(package):
    path = f"import sys; sys.path[:0] = {[entry for entry in sys.path if entry]}; "
    code = path + f"import {package}; sys.exit(' '.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_every_error_of_the_family_is_documented():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "errors.md").read_text("utf-8")
    family = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.NsfseError)]
    assert len(family) > 8
    for error in family:
        row = f"| {error.exit_code} |" if error is not errors.NsfseError else ""
        line = next(line for line in page.splitlines() if f"`{error.__name__}`" in line)
        assert line.startswith(row), f"docs/errors.md gives {error.__name__} another exit code"


def test_the_python_page_names_every_public_name():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "python.md").read_text("utf-8")
    table = page[: page.index("## Open a model")]
    assert all(f"`{name}`" in table for name in nsfse_runtime.__all__)
    assert all(f"`{name}`" in page for name in nsfse.__all__ if name != "__version__")
    for name in ("open_model", "Gallery", "NsfseError", "Query", "Retriever"):
        assert f"import {name}" in page or f", {name}" in page, f"nothing on the page uses {name}"


@pytest.mark.parametrize("name", nsfse_runtime.__all__)
def test_every_public_name_and_all_that_it_offers_is_described(name):
    found = getattr(nsfse_runtime, name)
    assert len(found.__doc__ or "") > 30
    for each, member in vars(found).items():
        if not each.startswith("_") and (callable(member) or isinstance(member, property | classmethod)):
            assert getattr(member, "__doc__", None), f"{name}.{each}"


@pytest.mark.parametrize("name", ["evaluate_dataset", "evaluate_query_set", "load_checkpoint", "open_source"])
def test_paths_may_be_strings(name, tmp_path):
    pytest.importorskip("torch")
    nowhere = str(tmp_path / "nowhere")
    arguments = {
        "evaluate_dataset": (None, "cirr", "val", nowhere),
        "evaluate_query_set": (None, nowhere),
        "load_checkpoint": (nowhere,),
        "open_source": ("queryset", nowhere),
    }
    with pytest.raises(errors.NotFoundError, match="nowhere"):
        getattr(nsfse, name)(*arguments[name])
