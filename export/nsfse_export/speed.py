"""`nsfse bench speed`: the parts of a query and the whole of it, beside PyTorch eager with the same model in the same run.

What is compared takes turns within a round, so that another program on the machine slows all of it; a ratio is the
median of the rounds' ratios. Figures are milliseconds unless their names say otherwise.
"""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from nsfse.checkpoint import load_checkpoint, write_file
from nsfse.scorer import TorchScorer
from nsfse_export.onnx import export_bundle
from nsfse_export.speed_report import markdown, plot
from nsfse_export.speed_setting import check_sizes, drawn_jpeg, made_gallery, name_of, random_clip_run, words_of
from nsfse_export.trial import reduce_bundle
from nsfse_runtime import Bundle, Gallery, Retriever
from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.features import Scorer, TargetFeatures
from nsfse_runtime.images import decode_image, fit_image, load_image
from nsfse_runtime.session import cpu_threads

CANDIDATES, PAIR_WORDS = 100, 12
PAUSE = 0.02
"""Seconds before each call: threads of what ran before may spin for some milliseconds, and would slow the next."""
PACKAGES = ("numpy", "onnxruntime", "torch", "pillow", "faiss-cpu")

Act = Callable[[], object]
Tell = Callable[[str], None]


@dataclass
class Setting:
    """What is measured: one model in torch and as bundles by precision, where to write, and until when."""

    run: Path
    torch: TorchScorer
    bundles: dict[str, Bundle]
    place: Path
    rounds: int
    until: float
    left_out: list[str] = field(default_factory=list)
    galleries: dict[int, Path] = field(default_factory=dict)

    @property
    def best(self) -> Bundle:
        """Return the bundle that a CPU would serve: int8 where there is one."""
        return self.bundles.get("int8", self.bundles["fp32"])

    @property
    def text(self) -> str:
        """Return what is asked."""
        return words_of(self.best)

    @property
    def scorers(self) -> dict[str, Scorer]:
        """Return the model's forms by name, torch first."""
        return {"torch": self.torch} | {name: bundle.scorer for name, bundle in self.bundles.items()}

    def late(self, what: str) -> bool:
        """Tell whether there is no time left for `what`, and note it."""
        if time.monotonic() > self.until:
            self.left_out.append(what)
        return time.monotonic() > self.until

    def gallery(self, size: int) -> Path:
        """Return a made gallery of `size` pictures for the best bundle."""
        if size not in self.galleries:
            self.galleries[size] = made_gallery(self.place / f"{size}.gallery", self.best, size)
        return self.galleries[size]


class PaddedScorer(TorchScorer):
    """The model as most programs run a CLIP: every text is padded to all positions."""

    def _text(self, texts: Sequence[str]) -> tuple[Any, Any, Any]:
        ids, mask = self.tokenizer.encode(texts)
        more = ((0, 0), (0, self.model.config.max_words - ids.shape[1]))
        ids, mask = self._tensor(np.pad(ids, more)), self._tensor(np.pad(mask, more))
        with torch.inference_mode():
            return *self.model.encode_text(ids, mask), mask


def measure(
    out: Path,
    run: Path | None = None,
    *,
    rounds: int = 7,
    minutes: float = 10.0,
    sizes: Sequence[int] = (10_000, 100_000),
    photos: Path | None = None,
    compiled: bool = False,
    dim: int = 128,
    cells: int = 4,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Measure the model of `run`, by default a CLIP ViT-B/32 of random weights; write speed.md, .json, .svg in `out`.

    `dim` and `cells` are the default model's; `photos` is a folder to index. What is not begun after `minutes` is left
    out and named. Raises UsageError (sizes), OutputError, and what an export raises.
    """
    check_sizes(list(sizes))
    began = time.monotonic()
    torch.set_num_threads(cpu_threads())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another with -o") from None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tell("making the model and its bundles")
        source = run or random_clip_run(place / "run", dim, cells)
        checkpoint = load_checkpoint(source)
        model = TorchScorer(checkpoint.model, checkpoint.tokenizer)
        setting = Setting(source, model, _bundles(source, place), place, rounds, began + 60 * minutes)
        found: dict[str, Any] = {"schema_version": 1, "machine": machine(), "model": _model(setting)}
        steps: dict[str, Act] = {
            "parts": lambda: parts(setting, found["machine"]["gflops"], compiled),
            "whole": lambda: whole(setting, max(sizes)),
            "cold": lambda: cold(setting, min(sizes)),
            "index": lambda: bulk(setting, photos) if photos else None,
            "growth": lambda: growth(setting, sizes),
        }
        for name, step in steps.items():
            tell(f"measuring: {name}")
            found[name] = None if setting.late(name) else step()
        found["left_out"] = setting.left_out
        found["minutes"] = round((time.monotonic() - began) / 60, 1)
    write_file(out / "speed.json", msgspec.json.format(msgspec.json.encode(found), indent=2))
    write_file(out / "speed.md", markdown(found).encode())
    write_file(out / "speed.svg", plot(found["growth"] or {}).encode())
    return found


def _bundles(run: Path, place: Path) -> dict[str, Bundle]:
    """Export a run in float32 and, where that helps any graph, in int8 (unverified: only its speed is looked at)."""
    export_bundle(run, place / "fp32")
    shutil.copytree(place / "fp32", place / "int8")
    found = {"fp32": Bundle.open(place / "fp32")}
    try:
        reduce_bundle(place / "int8", found["fp32"].manifest, "int8", None, lambda _: None)
    except UsageError:
        return found
    return found | {"int8": Bundle.open(place / "int8")}


def _model(setting: Setting) -> dict[str, Any]:
    manifest = setting.best.manifest
    return {
        "trained_on": manifest.trained_on,
        "backbone": setting.torch.model.config.backbone,
        "dim": manifest.dim,
        "regions": manifest.regions,
        "bytes_per_picture": 4 * manifest.dim + manifest.regions * (manifest.dim + 4),
        "bundle_mb": {
            kind: round(sum(entry.size for entry in bundle.manifest.files.values()) / 1e6, 1)
            for kind, bundle in setting.bundles.items()
        },
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, load, versions, and the ceilings as measured by numpy."""
    random = np.random.default_rng(0)
    square, much = random.random((1536, 1536), np.float32), np.ones(1 << 26, np.float32)
    product = min(_seconds(lambda: square @ square) for _ in range(5))
    read = min(_seconds(much.sum) for _ in range(5))
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": cpu_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "gflops": round(2 * len(square) ** 3 / product / 1e9, 1),
        "gb_per_second_one_thread": round(much.nbytes / read / 1e9, 1),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _seconds(act: Act) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def interleaved(variants: Mapping[str, Act], rounds: int = 7, pause: float = PAUSE) -> dict[str, list[float]]:
    """Call every variant once in each round, after one call that is not counted; return the rounds' milliseconds."""
    for act in variants.values():
        act()
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        at = turn % len(names)
        for name in names[at:] + names[:at]:  # nobody always comes first
            time.sleep(pause)
            times[name].append(1000 * _seconds(variants[name]))
    return times


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """Return, for each variant, its median milliseconds and how many times faster than `base` it is."""
    return {
        name: {
            "ms": round(statistics.median(taken), 2),
            "times_faster": round(statistics.median(a / b for a, b in zip(times[base], taken, strict=True)), 2),
        }
        for name, taken in times.items()
    }


def quantiles(taken: Sequence[float]) -> dict[str, float]:
    """Return the median, the 95th and the 99th percentile."""
    return {f"p{share}": round(float(np.percentile(taken, share)), 2) for share in (50, 95, 99)}


def parts(setting: Setting, gflops: float, compiled: bool = False) -> dict[str, Any]:
    """Time encoders, composition and pair head in every form of the model; `floor` is what products alone must take."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, *setting.torch.image_size, 3), dtype=np.uint8)
    reference = setting.torch.encode_images(pixels[:1])
    text = setting.text
    cases: dict[str, Callable[[Any], object]] = {
        "picture, batch 1": lambda scorer: scorer.encode_images(pixels[:1]),
        "picture, batch 16": lambda scorer: scorer.encode_images(pixels),
        f"text of {len(text.split())} words": lambda scorer: scorer.sentence([text]),
        "text and composition": lambda scorer: scorer.compose(reference, [text]),
    }
    if setting.best.manifest.stages == 2:
        query = setting.torch.compose(reference, [_long(text, PAIR_WORDS)])[0]
        targets = _drawn(setting, CANDIDATES)
        cases[f"pair head, {CANDIDATES} candidates, {len(query.words)} words"] = lambda scorer: scorer.score_pairs(
            query, targets
        )
    found = {}
    for name, act in cases.items():
        if setting.late(name):
            continue
        variants: dict[str, Act] = {kind: partial(act, scorer) for kind, scorer in setting.scorers.items()}
        base = "torch"
        if name.startswith("text of") and setting.torch.model.config.backbone == "clip":
            base = f"torch, padded to {setting.torch.model.config.max_words + 2}"
            variants[base] = partial(act, _padded(setting))
        if compiled and name.startswith("picture"):
            variants["torch.compile"] = _compiled(setting, pixels[: int(name.rsplit(" ", 1)[1])])
        with FlopCounterMode(display=False) as counter:
            act(setting.torch)
        floor = round(counter.get_total_flops() / gflops / 1e6, 2)
        found[name] = {"base": base, "floor_ms": floor, "ways": ratios(interleaved(variants, setting.rounds), base)}
    return found


def _long(text: str, words: int) -> str:
    return " ".join((text.split() * words)[:words])


def _padded(setting: Setting) -> TorchScorer:
    """Return the model as it is usually run by PyTorch."""
    kind = PaddedScorer if setting.torch.model.config.backbone == "clip" else TorchScorer
    return kind(setting.torch.model, setting.torch.tokenizer)


def _compiled(setting: Setting, pixels: np.ndarray) -> Act:
    encode, batch = torch.compile(setting.torch.model.encode_images), torch.from_numpy(pixels)

    def act() -> object:
        with torch.inference_mode():
            return encode(batch)

    return act


def _drawn(setting: Setting, size: int) -> TargetFeatures:
    manifest, random = setting.best.manifest, np.random.default_rng(1)
    vectors = random.standard_normal((size, manifest.dim), np.float32)
    regions = random.standard_normal((size, manifest.regions, manifest.dim), np.float32)
    return TargetFeatures(
        vectors / np.linalg.norm(vectors, axis=-1, keepdims=True),
        regions / np.linalg.norm(regions, axis=-1, keepdims=True),
    )


def whole(setting: Setting, size: int, queries: int = 100) -> dict[str, Any]:
    """Time whole queries over a made gallery: a picture of a megapixel, and a picture that the gallery has."""
    jpeg, text = drawn_jpeg(1.0), setting.text
    found: dict[str, Any] = {"pictures": size, "candidates": CANDIDATES}
    with Gallery.open(setting.gallery(size), setting.best) as gallery:
        retriever, eager, names = Retriever(setting.best, gallery), _padded(setting), _names(size)
        ways: dict[str, Callable[[], Any]] = {
            "a picture of 1 megapixel": lambda: retriever.query(jpeg, text, rerank=CANDIDATES),
            "a picture of the gallery": lambda: retriever.query(next(names), text, rerank=CANDIDATES),
        }
        base = "torch, a picture of 1 megapixel"
        times = interleaved({base: partial(eager_query, eager, gallery, jpeg, text), **ways}, setting.rounds)
        found |= {"base": base, "ways": ratios(times, base)}
        for name, ask in ways.items():
            answers = [_timed(ask) for _ in range(queries)]
            laps = [answer.timings_ms for answer, _ in answers]
            medians = {lap: round(statistics.median(each[lap] for each in laps), 2) for lap in laps[0]}
            found["ways"][name] |= quantiles([taken for _, taken in answers]) | {"laps": medians}
    return found


def _names(size: int) -> Iterable[Any]:
    return (name_of(97 * at % size) for at in count())


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    value = act()
    return value, 1000 * (time.perf_counter() - started)


def eager_query(model: TorchScorer, gallery: Gallery, picture: bytes, text: str) -> object:
    """Answer a query as a plain PyTorch program would: decode, encode, a product with all vectors, the head."""
    features = model.encode_images(load_image(picture, model.image_size)[None])
    query = model.compose(features, [text])[0]
    scores = gallery.vectors() @ query.vector
    rows = np.argpartition(scores, len(scores) - CANDIDATES)[len(scores) - CANDIDATES :]
    return np.argsort(-model.score_pairs(query, gallery.targets(rows)).score)[:10]


def cold(setting: Setting, size: int) -> dict[str, Any]:
    """Time processes that answer one query and end: `nsfse query`, and PyTorch with the same run."""
    picture = setting.place / "asked.jpg"
    picture.write_bytes(drawn_jpeg(1.0))
    gallery = setting.gallery(size)
    eager = (
        "import sys; from pathlib import Path; from nsfse.checkpoint import load_checkpoint; "
        "from nsfse.scorer import TorchScorer; from nsfse_runtime import Gallery; "
        "from nsfse_export.speed import eager_query; run, gallery, picture, text = sys.argv[1:]; "
        "found = load_checkpoint(Path(run)); model = TorchScorer(found.model, found.tokenizer); "
        "eager_query(model, Gallery.open(gallery), Path(picture).read_bytes(), text)"
    )
    asked = [str(gallery), str(picture), setting.text]
    ways = {
        "nsfse query": ["-m", "nsfse", "query", asked[1], asked[2], "-g", asked[0], "--json"],
        "torch": ["-c", eager, str(setting.run), *asked],
    }
    runs = {
        name: [_process([sys.executable, *way]) for _ in range(min(3, setting.rounds))] for name, way in ways.items()
    }
    return {"pictures": size, "ways": {name: _middle(each) for name, each in runs.items()}}


def _middle(runs: Sequence[tuple[float, float]]) -> dict[str, float]:
    seconds, peaks = zip(*runs, strict=True)
    return {"seconds": round(statistics.median(seconds), 2), "peak_mb": round(statistics.median(peaks), 1)}


def _process(command: Sequence[str]) -> tuple[float, float]:
    """Run a process that must end well; return its seconds and its peak memory in MB."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UsageError(f"{' '.join(command[1:4])} ended with {process.returncode}: {said.decode()[-300:].strip()}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return time.perf_counter() - started, usage.ru_maxrss * unit / 1e6


def bulk(setting: Setting, photos: Path) -> dict[str, Any]:
    """Index a folder, and encode the first of its pictures in a plain loop of PyTorch (batches of 16)."""
    with Gallery.open(setting.place / "bulk.gallery", setting.best, create=True) as gallery:
        seconds = _seconds(lambda: gallery.sync(photos))
        ids = gallery.ids
    some = [photos / name for name in ids[:64]]

    def loop() -> None:
        for at in range(0, len(some), 16):
            pixels = [load_image(path, setting.torch.image_size) for path in some[at : at + 16]]
            setting.torch.encode_images(np.stack(pixels))

    ours, theirs = len(ids) / seconds, len(some) / _seconds(loop)
    return {
        "pictures": len(ids),
        "images_per_second": round(ours, 1),
        "torch_images_per_second": round(theirs, 1),
        "times_faster": round(ours / theirs, 2),
    }


def growth(setting: Setting, sizes: Sequence[int]) -> dict[str, dict[str, dict[float, float]]]:
    """Return curves: by what grows, then by line, the median milliseconds at each of its values."""
    curves: dict[str, tuple[Sequence[float], Callable[[Any], dict[str, Act]]]] = {
        "pictures in the gallery": (sorted(sizes), partial(_by_size, setting)),
        "candidates of stage 2": ((10, 50, 100, 200, 500), partial(_by_candidates, setting, min(sizes))),
        "words of the text": ((1, 3, 6, 12, 24), partial(_by_words, setting)),
        "pictures encoded at once, each": ((1, 4, 16), partial(_by_batch, setting)),
        "megapixels of a JPEG": ((0.25, 1, 4, 12), partial(_by_megapixels, setting)),
    }
    found: dict[str, dict[str, dict[float, float]]] = {}
    for title, (values, acts_at) in curves.items():
        for value in values:
            if setting.late(f"{title}: {value:g}"):
                continue
            share = value if title.endswith("each") else 1
            for line, taken in interleaved(acts_at(value), max(3, setting.rounds // 2)).items():
                median = round(statistics.median(taken) / share, 3)
                found.setdefault(title, {}).setdefault(line, {})[value] = median
    return found


def _by_size(setting: Setting, size: int) -> dict[str, Act]:
    gallery = Gallery.open(setting.gallery(size), setting.best)
    retriever, names = Retriever(setting.best, gallery), _names(size)
    retriever.query(next(names), setting.text)  # codes or an index are made from the second query on
    return {
        "whole query": lambda: retriever.query(next(names), setting.text),
        "stage 1 alone": lambda: retriever.query(next(names), setting.text, k=1, rerank=0),
    }


def _by_candidates(setting: Setting, size: int, candidates: int) -> dict[str, Act]:
    targets = _drawn(setting, candidates)
    query = setting.torch.compose(targets.take([0]), [setting.text])[0]
    if setting.best.manifest.stages == 1:
        return {}
    return {kind: partial(scorer.score_pairs, query, targets) for kind, scorer in setting.scorers.items()}


def _by_words(setting: Setting, words: int) -> dict[str, Act]:
    words = min(words, setting.best.manifest.max_words)
    text, reference = _long(setting.text, words), _drawn(setting, 1)
    return {kind: partial(scorer.compose, reference, [text]) for kind, scorer in setting.scorers.items()}


def _by_batch(setting: Setting, batch: int) -> dict[str, Act]:
    pixels = np.zeros((batch, *setting.torch.image_size, 3), np.uint8)
    return {kind: partial(scorer.encode_images, pixels) for kind, scorer in setting.scorers.items()}


def _by_megapixels(setting: Setting, megapixels: float) -> dict[str, Act]:
    jpeg, size = drawn_jpeg(megapixels), setting.torch.image_size
    return {
        "as a query decodes it": lambda: load_image(jpeg, size),
        "decoded whole, then resized": lambda: fit_image(decode_image(jpeg), size),
    }
