"""What a run, bundle or gallery is, without loading any weights."""

from pathlib import Path
from typing import Any

from nsfse_runtime.errors import NotFoundError
from nsfse_runtime.json_schema import SCHEMA_VERSION


def describe(path: Path) -> dict[str, Any]:
    """Describe a run, a bundle or a gallery. Raises NotFoundError where `path` is none of them."""
    if path.is_file():
        return {"schema_version": SCHEMA_VERSION, "kind": "gallery", "path": str(path), **_gallery(path)}
    if (path / "manifest.json").exists():
        return {"schema_version": SCHEMA_VERSION, "kind": "bundle", "path": str(path), **_bundle(path)}
    if (path / "config.json").exists():
        from nsfse_runtime.extras import need

        need("torch", "train")
        from nsfse.models.checkpoint import checkpoint_info

        return {"schema_version": SCHEMA_VERSION, **checkpoint_info(path)}
    if not path.exists():
        raise NotFoundError(f"there is nothing at {path}; check the path")
    raise NotFoundError(f"{path} is no run, bundle or gallery; give the folder of a run or bundle, or a gallery file")


def _bundle(path: Path) -> dict[str, Any]:
    import msgspec

    from nsfse_runtime.inference.bundle import Bundle

    bundle = Bundle.open(path)
    return {"fingerprint": bundle.fingerprint, **msgspec.to_builtins(bundle.manifest)}


def _gallery(path: Path) -> dict[str, Any]:
    from nsfse_runtime.gallery.gallery import Gallery

    with Gallery.open(path) as gallery:
        return dict(gallery.info())
