"""Shards indexed by workers of Ray: a worker that is killed is replaced, and nothing is lost or encoded twice."""

import os
import signal
import time
from pathlib import Path

import pytest

from nsfse import ray_index
from nsfse.cli.index_support import check_ray
from nsfse_runtime.errors import MissingExtraError, UsageError
from nsfse_runtime.inference.devices import ON_CPU
from nsfse_runtime.stores.indexing import facts_of
from nsfse_runtime.stores.open import open_store
from nsfse_runtime.stores.protocol import all_ids
from tests import postgres
from tests.galleries import ColourScorer, save_image
from tests.unit.runtime.test_shards import write_tar


class Mortal(ColourScorer):
    """Kills its process at the third batch, once; notes what was encoded."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._batches = folder, 0

    def encode_images(self, pixels):
        self._batches += 1
        if self._batches == 3 and not (self._folder / "killed").exists():
            (self._folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self._folder / f"encoded-{time.time_ns()}-{os.getpid()}-{len(pixels)}").touch()
        return super().encode_images(pixels)


def index(url: str, shards: list[Path], tmp_path: Path):
    return ray_index.index_on_ray(
        url, shards, None, ON_CPU, ray_workers=2, load=lambda bundle, device: Mortal(tmp_path)
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray")
    if postgres.programs() is None:
        pytest.skip(postgres.WHY_NOT)
    shards = [
        write_tar(
            tmp_path / f"{number:05d}.tar",
            {f"{at}.png": save_image(tmp_path / "one.png", 10 * number + at).read_bytes() for at in range(3)},
        )
        for number in range(6)
    ]
    monkeypatch.setattr(ray_index, "bundle_of", lambda store: tmp_path)
    model = ColourScorer()
    with postgres.postgres_server() as url:
        monkeypatch.setattr(ray_index, "open_or_make", lambda *given: (model, open_store(url, facts_of(model, "", ""))))
        report, count = index(url, shards, tmp_path)
        store = open_store(url)
        assert (tmp_path / "killed").exists() and count == 18 and report.shards == 6 and not report.failed
        assert len(list(all_ids(store))) == store.info().distinct == 18 and len(store.shards()) == 6
        assert sum(int(file.name.rsplit("-", 1)[1]) for file in tmp_path.glob("encoded-*")) == 18
        again, _ = index(url, shards, tmp_path)
        assert (again.shards, again.shards_before, again.encoded) == (0, 6, 0)
        store.close()


def test_what_does_not_go_with_ray_is_refused(tmp_path: Path, monkeypatch) -> None:
    for kind, part, words in (("folder", (0, 1), "indexes shards"), ("shards", (0, 4), "leave --shard out")):
        with pytest.raises(UsageError, match=words):
            check_ray(kind, part)
    monkeypatch.setattr("nsfse_runtime.extras.installed", lambda name: False)
    with pytest.raises(MissingExtraError, match=r"nsfse\[ray\]"):
        index("postgresql://here/db", [], tmp_path)
    monkeypatch.setattr("nsfse_runtime.extras.installed", lambda name: True)
    with pytest.raises(UsageError, match="one writer"):
        index("a.gallery", [], tmp_path)
