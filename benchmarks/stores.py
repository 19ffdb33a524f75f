"""One gallery through several stores: loading, queries in turns, filters, recall and disk.

    python benchmarks/stores.py GALLERY --images 100000 --store postgresql://me@/db --store milvus://host [--json FILE]

GALLERY is a gallery file with its bundle, such as the demo's. Images are made of its own until there are enough: each
vector lies between those of two images, and is turned a little at random; its regions are those of the first. The file
of so many images is the first store; the others get it by `nsfse gallery copy`, under names of their own that must not
be there yet. Queries are composed, by an image of the gallery and a text.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from nsfse.open import open_gallery
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.stores.copy import copy_gallery
from nsfse_runtime.stores.file import FileStore
from nsfse_runtime.stores.open import open_store
from nsfse_runtime.stores.protocol import GalleryStore, Record
from nsfse_runtime.types import Floats, GalleryId

TEXTS = ("make it red", "in blue", "in black", "with long sleeves", "without stripes")
TURN = 0.3
"""How long the random part is that is added to a unit vector."""
_BATCH = 1000


def main() -> None:
    """Measure and print, and write JSON where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--store", action="append", default=[], metavar="URL")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nsfse-stores-", dir=os.environ.get("TMPDIR")) as folder:
        rows = measure(chosen.gallery, Path(folder, "large.gallery"), chosen.images, chosen.store, chosen.queries)
    for row in rows:
        print(json.dumps(row))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2))


def measure(source: Path, path: Path, images: int, urls: Sequence[str], queries: int) -> list[dict[str, Any]]:
    """Return what was measured of each store, the file first."""
    model, gallery = open_gallery(source, None)
    original = FileStore(source)
    records = original.fetch(original.ids(limit=100_000))
    facts = replace(original.info().facts, folder="")
    gallery.close()
    started = time.perf_counter()
    file = FileStore(path, facts)
    write(file, records, images)
    rows: list[dict[str, Any]] = [{"store": "file", "load_s": round(time.perf_counter() - started, 1)}]
    stores: list[GalleryStore] = [file]
    for url in urls:
        started = time.perf_counter()
        copy_gallery(str(path), url)
        stores.append(open_store(url))
        rows.append({"store": stores[-1].info().engine, "load_s": round(time.perf_counter() - started, 1)})
    rng = np.random.default_rng(1)
    names = [f"{number:08d}.jpg" for number in rng.choice(images, queries, replace=False)]
    retrievers = [Retriever(model, store) for store in stores]
    for row, found in zip(rows, in_turns(retrievers, names), strict=True):
        row |= found
    composed = [
        Query(references=(GalleryId(name),), texts=(text,)) for name, text in zip(names, cycle(TEXTS), strict=False)
    ]
    vectors = [vector for vector in retrievers[0].embed(composed) if isinstance(vector, np.ndarray)]
    for row, store in zip(rows, stores, strict=True):
        row |= {"images": store.info().images, **recall(store, file, vectors)}
    rows[0]["disk_mb"] = round(sum(each.stat().st_size for each in path.parent.iterdir()) / 1e6)
    return rows


def write(store: FileStore, records: Sequence[Record], images: int) -> None:
    """Write so many images, between two each and turned at random; one in a hundred has `rare` = yes."""
    rng = np.random.default_rng(0)
    for start in range(0, images, _BATCH):
        batch = []
        for number in range(start, min(start + _BATCH, images)):
            record = records[number % len(records)]
            other = records[int(rng.integers(len(records)))]
            noise = rng.standard_normal(len(record.vector)).astype(np.float32)
            share = np.float32(rng.random())
            vector = (1 - share) * record.vector + share * other.vector
            vector = vector + np.float32(TURN) * noise / np.linalg.norm(noise)
            batch.append(
                Record(
                    f"{number:08d}.jpg",
                    number.to_bytes(32, "big"),
                    vector / np.linalg.norm(vector),
                    record.regions,
                    {"rare": "yes" if number % 100 == 7 else "no", "price": str(number % 1000)},
                )
            )
        store.upsert(batch)


def in_turns(retrievers: Sequence[Retriever], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return times of composed queries, and how far scores differ from those of the first store, in turns."""
    whole: list[list[float]] = [[] for _ in retrievers]
    rare: list[list[float]] = [[] for _ in retrievers]
    difference, same, same_rare = [0.0] * len(retrievers), [0] * len(retrievers), [0] * len(retrievers)
    for retriever in retrievers:  # warm
        retriever.query(GalleryId(names[0]), TEXTS[0])
    for number, name in enumerate(names):
        text = TEXTS[number % len(TEXTS)]
        first: Any = None
        for at, retriever in enumerate(retrievers):
            started = time.perf_counter()
            found = retriever.query(GalleryId(name), text)
            middle = time.perf_counter()
            filtered = retriever.query(GalleryId(name), text, where={"rare": "yes"})
            whole[at].append(1000 * (middle - started))
            rare[at].append(1000 * (time.perf_counter() - middle))
            first = first or (found, filtered)
            scores = {hit.id: hit.score for hit in first[0].hits}
            shared = [abs(hit.score - scores[hit.id]) for hit in found.hits if hit.id in scores]
            difference[at] = max([difference[at], *shared])
            same[at] += len(shared)
            same_rare[at] += [hit.id for hit in filtered.hits] == [hit.id for hit in first[1].hits]
    return [
        {
            "query_p50_ms": round(statistics.median(whole[at]), 1),
            "query_p95_ms": round(sorted(whole[at])[int(0.95 * len(whole[at]))], 1),
            "filter_1_percent_p50_ms": round(statistics.median(rare[at]), 1),
            "filter_exact": f"{same_rare[at]} of {len(names)}",
            "hits_shared": f"{same[at]} of {10 * len(names)}",
            "score_difference": difference[at],
        }
        for at in range(len(retrievers))
    ]


def recall(store: GalleryStore, file: FileStore, vectors: Sequence[Floats]) -> dict[str, Any]:
    """Return how many of the best 100 of stage 1 a store finds, on average and at least, for composed vectors."""
    found, times = [], []
    for vector in vectors:
        best = set(file.search(vector, 100, exact=True).ids)
        started = time.perf_counter()
        found.append(len(best & set(store.search(vector, 100).ids)) / 100)
        times.append(1000 * (time.perf_counter() - started))
    return {
        "recall_at_100": round(statistics.mean(found), 4),
        "least_recall_at_100": min(found),
        "stage_1_p50_ms": round(statistics.median(times), 1),
    }


if __name__ == "__main__":
    main()
