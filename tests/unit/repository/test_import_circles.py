"""No module imports itself by way of others."""

import pytest

grimp = pytest.importorskip("grimp")


@pytest.mark.parametrize("package", ["nsfse_export", "nsfse_runtime"])
def test_a_package_has_no_import_circle(package: str) -> None:
    graph = grimp.build_graph(package)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := [module for module, imports in left.items() if not imports & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other in a circle, or import such: {sorted(left)}"
