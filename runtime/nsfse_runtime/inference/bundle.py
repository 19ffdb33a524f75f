"""Bundle: the exported folder, opened; what is loaded is what was hashed."""

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path

from nsfse_runtime.inference.manifest import MANIFEST, Manifest, damaged, file_entry, open_own_file, read_manifest
from nsfse_runtime.types import RankingMode

_PLAIN_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)


class Bundle:
    """An exported model: a folder of graphs, a tokenizer and their manifest. Made by `open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Open a bundle and check every byte of it.

        Raises NotFoundError (no such folder, or not a bundle), VersionError (a newer format) or
        IntegrityError.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        bundle = cls(folder, manifest)
        for name in manifest.required_files:
            if name not in manifest.files:
                raise damaged(folder / MANIFEST, f"it does not list {name}")
        if manifest.mode is RankingMode.TWO_STAGE and "t_c" not in manifest.boundary:
            raise damaged(folder / MANIFEST, "it has no boundary t_c")
        for name in manifest.files:
            if not _PLAIN_NAME.fullmatch(name):
                raise damaged(folder / MANIFEST, "it lists a file outside the bundle")
            bundle._check(name)
        return bundle

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, hashed as they are returned. Raises IntegrityError."""
        entry = self.manifest.files[name]
        try:
            with open_own_file(self.path, name) as file:
                data = file.read(entry.size + 1)
        except OSError as error:
            raise damaged(self.path / name, error.strerror or "it cannot be read") from error
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise damaged(self.path / name, "its content is not what was exported")
        return data

    def _check(self, name: str) -> None:
        entry, path = self.manifest.files[name], self.path / name
        try:
            actual = file_entry(path)
        except OSError as error:
            raise damaged(path, error.strerror or "it cannot be read") from error
        if actual != entry:
            raise damaged(path, "its content is not what was exported")

    @cached_property
    def fingerprint(self) -> str:
        """Identify the features this bundle makes: sha256 over its image size and the hashes of its files."""
        lines = [f"{name}:{self.manifest.files[name].sha256}" for name in sorted(self.manifest.required_files)]
        return hashlib.sha256("\n".join([*lines, f"image_size:{self.manifest.image_size}"]).encode()).hexdigest()
