"""What a run, bundle, engine pack or gallery is, without loading any weights."""

from pathlib import Path
from typing import Any

from nsfse_runtime.errors import NotFoundError
from nsfse_runtime.inference.tensorrt.pack import PACK, EnginePack, pack_folder
from nsfse_runtime.inference.tensorrt_library import KINDS
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.stores.open import is_store_url


def describe(name: str) -> dict[str, Any]:
    """Describe a run, a bundle, an engine pack or a gallery. Raises NotFoundError where `name` is none of them."""
    if is_store_url(name):
        return {"schema_version": SCHEMA_VERSION, "kind": "gallery", **_store(name)}
    path = Path(name)
    if path.is_file():
        return {"schema_version": SCHEMA_VERSION, "kind": "gallery", "path": str(path), **_gallery(path)}
    if (path / "manifest.json").exists():
        return {"schema_version": SCHEMA_VERSION, "kind": "bundle", "path": str(path), **_bundle(path)}
    if (path / PACK).exists():
        return {"schema_version": SCHEMA_VERSION, "kind": "engine pack", "path": str(path), **_engine_pack(path)}
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

    bundle, pack = Bundle.open(path), pack_folder(path)
    facts = {"fingerprint": bundle.fingerprint, **msgspec.to_builtins(bundle.manifest)}
    return {**facts, "engine_pack": {"path": str(pack), **_engine_pack(pack)}} if pack.exists() else facts


def _engine_pack(path: Path) -> dict[str, Any]:
    pack = EnginePack.open(path)
    engines: dict[str, dict[str, str]] = {}
    for engine in pack.manifest.engines:
        key = engine.key
        library = f"{KINDS[key.library].title} {key.version} for {key.capability}, {key.precision}"
        engines.setdefault(library, {})[engine.graph] = f"{engine.size / 1e6:.1f} MB"
    return {"bundle": pack.manifest.bundle, "fingerprint": pack.manifest.fingerprint, "engines": engines}


def _store(url: str) -> dict[str, Any]:
    from dataclasses import asdict

    from nsfse_runtime.stores.open import open_store

    store = open_store(url)
    try:
        return asdict(store.info())
    finally:
        store.close()


def _gallery(path: Path) -> dict[str, Any]:
    from nsfse_runtime.gallery.gallery import Gallery

    with Gallery.open(path) as gallery:
        return dict(gallery.info())
