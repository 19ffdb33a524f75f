"""Time stage 1 against the size of the gallery, in every way to search it.

python benchmarks/stage1.py [--sizes 10000,100000,1000000] [--rounds 9] [--json FILE]

Vectors are synthetic, 512 numbers each. "clustered": centres of a low-rank space, 100 images around each, as real
features are; "spread": nearly independent directions, the worst that an index can meet. Queries are blends of two
images. Ways are interleaved in each round; medians are over all queries of all rounds. The target figures are for two
idle cores; what else the machine does is shown as its load.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsfse_export.benchmark.fixtures import clustered_vectors
from nsfse_runtime.extras import installed_version
from nsfse_runtime.search import ann, first_stage
from nsfse_runtime.search.int8 import Int8Index
from nsfse_runtime.search.two_stage import exact_search

DIM, CANDIDATES, QUERIES = 512, 100, 4


@dataclass(frozen=True)
class Vectors:
    """As much of a gallery's Snapshot as stage 1 looks at."""

    vectors: np.ndarray
    generation: int = 1

    def __len__(self) -> int:
        """Return N."""
        return len(self.vectors)

    @property
    def vector_keys(self) -> np.ndarray:
        """Return the rows' names."""
        return np.arange(len(self.vectors), dtype=np.uint64)


def main() -> None:
    """Measure, print a line for each figure, and write JSON where --json names a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kinds", default="clustered,spread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "search": []}
    print(report["machine"])
    for kind in options.kinds.split(","):
        for size in map(int, options.sizes.split(",")):
            report["search"].append(row := measure(kind, size, options.rounds))
            print(row)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    names = ("numpy", "onnxruntime", "faiss-cpu", "pillow")
    versions = {name: installed_version(name) for name in names}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return {"cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()[0], "versions": versions}


def measure(kind: str, size: int, rounds: int) -> dict[str, Any]:
    """Return medians, in ms, of every way to search `size` vectors, and what it costs to prepare them."""
    random = np.random.default_rng(0)
    if kind not in ("clustered", "spread"):
        raise SystemExit(f"no kind of vectors {kind}; choose clustered or spread")
    vectors = clustered_vectors(size, DIM, random, independent=kind == "spread")
    row: dict[str, Any] = {"kind": kind, "images": size}
    codes, row["codes_built_s"] = _timed(lambda: Int8Index(vectors))
    mask = random.random(size) < 0.01
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "plain": lambda query: exact_search(vectors, query, CANDIDATES),
        "codes": lambda query: codes.search(query, CANDIDATES),
        "filter_1_percent": lambda query: exact_search(vectors, query, CANDIDATES, mask),
    }
    if ann.is_installed():
        with tempfile.TemporaryDirectory() as temporary:
            searcher = first_stage.FirstStage(Path(temporary) / "bench.gallery", "bench", "ann")
            index, row["index_built_s"] = _timed(lambda: searcher.prepare_index(Vectors(vectors)))
        row |= {"index_depth": index.header.depth, "index_recall_at_build": index.header.recall}
        ways["index"] = lambda query: searcher(Vectors(vectors), query, CANDIDATES)
        ways["index_filter_1_percent"] = lambda query: searcher(Vectors(vectors), query, CANDIDATES, mask)
    times: dict[str, list[float]] = {way: [] for way in ways}
    overlap: list[float] = []
    for query in blends(vectors, 1 + QUERIES * rounds, random):
        answers = {}
        for way, search in ways.items():
            answers[way], seconds = _timed(lambda search=search, query=query: search(query))
            times[way].append(1000 * seconds)
        _check(answers)
        if "index" in answers:
            overlap.append(len(np.intersect1d(answers["plain"][0], answers["index"][0])) / min(CANDIDATES, size))
    medians = {way: round(statistics.median(milliseconds[1:]), 3) for way, milliseconds in times.items()}
    recall = {"recall_at_100": round(statistics.mean(overlap), 4)} if overlap else {}
    return row | {"median_ms": medians} | recall


def _check(answers: dict[str, Any]) -> None:
    for exact, other in (("plain", "codes"), ("filter_1_percent", "index_filter_1_percent")):
        if other in answers:
            np.testing.assert_array_equal(answers[exact][0], answers[other][0], f"{other} is not {exact}")


def blends(vectors: np.ndarray, count: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield queries between two images each."""
    for first, second in random.integers(len(vectors), size=(count, 2)):
        query = vectors[first] + 0.7 * vectors[second]
        yield query / np.linalg.norm(query)


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    value = act()
    return value, round(time.perf_counter() - started, 6)


if __name__ == "__main__":
    main()
