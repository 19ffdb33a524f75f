"""Time what a user waits for: a cold query, warm queries by file and by id, and indexing.

python benchmarks/latency.py [BUNDLE] [FOLDER]    by default what `make demo` left in demo/
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nsfse_runtime import Bundle, Gallery, NsfseError, Retriever, open_model

COLD, WARM = 7, 200


def main() -> None:
    """Measure and print one JSON object."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/bundle")
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "demo/catalogue/images")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(measure(bundle, folder, Path(temporary) / "bench.gallery"), indent=2))
    except NsfseError as error:
        sys.exit(f"{error} (make demo makes {bundle})")


def measure(bundle: Path, folder: Path, path: Path) -> dict[str, Any]:
    """Return milliseconds (median, 95th percentile) and images per second."""
    model = open_model(bundle, "cpu")
    with Gallery.open(path, model, create=True) as gallery:
        started = time.perf_counter()
        report = gallery.sync(folder)
        seconds = time.perf_counter() - started
        retriever, text = Retriever(model, gallery), _known_word(model.bundle)
        name = gallery.ids[0]
        file = gallery.snapshot.path_of(0)
        return {
            "gallery": len(gallery),
            "index_images_per_second": round(report.encoded / seconds, 1),
            "cold_query_ms": _times(COLD, lambda: _cold(file, text, path)),
            "warm_query_by_file_ms": _times(WARM, lambda: retriever.query(file, text)),
            "warm_query_by_id_ms": _times(WARM, lambda: retriever.query(name, text)),
        }


def _cold(file: Path, text: str, gallery: Path) -> None:
    command = [sys.executable, "-m", "nsfse", "query", str(file), text, "-g", str(gallery), "--json"]
    subprocess.run(command, check=True, capture_output=True)


def _times(count: int, act: Callable[[], object]) -> dict[str, float]:
    act()
    times = []
    for _ in range(count):
        started = time.perf_counter()
        act()
        times.append(1000 * (time.perf_counter() - started))
    high = sorted(times)[int(0.95 * (count - 1))]
    return {"median": round(statistics.median(times), 1), "p95": round(high, 1), "runs": count}


def _known_word(bundle: Bundle) -> str:
    vocabulary = Tokenizer.from_str(bundle.read("tokenizer.json").decode("utf-8")).get_vocab()
    return "red" if "red" in vocabulary else next(word for word in sorted(vocabulary) if word.isalpha())


if __name__ == "__main__":
    main()
