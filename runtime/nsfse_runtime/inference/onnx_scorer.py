"""A graph and its provider as a callable, and the bundle's four graphs as a Scorer."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.extras import need
from nsfse_runtime.inference.bundle import TOKENIZER, Bundle
from nsfse_runtime.inference.confidence import Decision
from nsfse_runtime.inference.devices import ON_CPU, Place, start
from nsfse_runtime.types import (
    Boundaries,
    Floats,
    ModelInfo,
    PairScores,
    Pixels,
    QueryFeatures,
    RankingMode,
    Scorer,
    TargetFeatures,
    no_evidence,
    one_vector,
)

if TYPE_CHECKING:
    from nsfse_runtime.inference.tokenizer import Tokenizer

# Given a graph's bytes, ONNX Runtime would take weights from files in the current folder: it is sent where none can be.
_NO_FOLDER = f"{os.devnull}/none"


class Session:
    """One ONNX graph, held whole in its bytes, ready to run: `session(pixels=...)` → its outputs in order."""

    def __init__(
        self, model: bytes, place: Place = ON_CPU, threads: int | None = None, origin: str = "the graph"
    ) -> None:
        """Open `model` on `place`.

        `threads` caps the CPU threads of one run (see cpu_threads).
        Raises MissingExtraError, UsageError (a provider that does not work here) or IntegrityError (not a whole graph).
        """
        need("onnxruntime", "cpu")
        try:
            self._session = start(model, place, _options(threads))
        except UsageError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).splitlines()[0][:200]
            raise IntegrityError(f"{origin} is not a whole ONNX graph ({reason}); export the bundle again") from error
        self.place = place
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the graph on its inputs by name; return its outputs in the order of `outputs`."""
        return tuple(self._session.run(None, inputs))

    def bound(self, inputs: Mapping[str, Any], stay: Collection[str] = ()) -> dict[str, Any]:
        """Run on arrays and on tensors that already lie on the device (OrtValue); return the outputs by name.

        Outputs named in `stay` remain on the device as OrtValues, the others come as arrays.
        """
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, self.place.memory if name in stay else "cpu")
        self._session.run_with_iobinding(binding)
        found = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        return {name: value if name in stay else value.numpy() for name, value in found.items()}


def on_device(array: NDArray[Any], place: Place) -> Any:
    """Return `array` as a tensor that lies on `place` (an OrtValue). Raises UsageError where it does not fit."""
    import onnxruntime

    try:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), place.memory, 0)
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise UsageError(
            f"{array.nbytes / 2**30:.1f} GiB of the gallery do not fit the GPU ({str(error).splitlines()[0][:120]}); "
            "use --device cpu, or Retriever(resident=False)"
        ) from error


def _options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Sizes vary from call to call (batch, words): an arena would keep the largest of each for ever.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    options.intra_op_num_threads = threads or cpu_threads()
    # Idle threads would spin for a while in the hope of more work, and take the processor from the next graph's. One
    # pool for all would help as well, but with it ONNX Runtime refuses every session of the process that has its own.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def cpu_threads() -> int:
    """Return how many threads to compute with: the processors this process may use, OMP_NUM_THREADS of them at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(told)) if told.isdigit() and int(told) else usable


class OnnxScorer:
    """The Scorer of a bundle. A graph is opened when first used: a query by gallery id never opens the image graph."""

    def __init__(self, bundle: Bundle, place: Place = ON_CPU, threads: int | None = None) -> None:
        """Raises UsageError where the bundle is in a type that `place` does not compute in."""
        if bundle.manifest.precision == "bf16" and place.on_cpu:
            raise UsageError(
                f"{bundle.path} is in bfloat16, in which ONNX Runtime computes on GPUs alone; use --device cuda, or "
                "export the run again with --precision int8 or fp32"
            )
        self.bundle, self.place, self._threads = bundle, place, threads
        self._sessions: dict[str, Any] = {}
        self._tokenizer: Tokenizer | None = None
        self._opening = Lock()

    @property
    def fingerprint(self) -> str:
        """Identify the weights: the bundle's fingerprint."""
        return self.bundle.fingerprint

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the (height, width) that `encode_images` takes."""
        return self.bundle.manifest.image_size

    @cached_property
    def info(self) -> ModelInfo:
        """Return what the bundle's manifest and its place say of it. Raises IntegrityError (see Decision.of)."""
        manifest = self.bundle.manifest
        head = manifest.head
        has_boundaries = manifest.mode is RankingMode.TWO_STAGE and {"t_c", "t_v"} <= head.keys()
        return ModelInfo(
            mode=manifest.mode,
            mix=(head.get("w_global", 1.0), head.get("w_cross", 0.0)),
            grid=manifest.grid,
            boundaries=Boundaries(head["t_c"], head["t_v"], int(head.get("views", 0))) if has_boundaries else None,
            confidence=Decision.of(manifest),
            device=self.place.device,
            bundle_path=self.bundle.path,
        )

    @property
    def tokenizer(self) -> "Tokenizer":
        """Return the bundle's tokenizer. Raises IntegrityError when it cannot be read."""
        from nsfse_runtime.inference.tokenizer import Tokenizer

        with self._opening:
            if self._tokenizer is None:
                data, origin = self.bundle.read(TOKENIZER), str(self.bundle.path / TOKENIZER)
                self._tokenizer = Tokenizer.from_bytes(data, self.bundle.manifest.max_words, origin)
            return self._tokenizer

    @property
    def opened(self) -> frozenset[str]:
        """Return the names of the graphs opened so far."""
        return frozenset(self._sessions)

    def _graph(self, name: str) -> Any:
        with self._opening:
            if name not in self._sessions:
                data, origin = self.bundle.read(f"{name}.onnx"), str(self.bundle.path / f"{name}.onnx")
                self._sessions[name] = self._open(name, data, origin)
            return self._sessions[name]

    def _open(self, name: str, data: bytes, origin: str) -> Callable[..., tuple[NDArray[Any], ...]]:
        return Session(data, self.place, self._threads, origin)

    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        """Encode `pixels` [B, H, W, 3] uint8, already fitted to `image_size`."""
        vectors, regions = self._graph("image")(pixels=pixels)
        return TargetFeatures(vectors, regions)

    def sentence(self, texts: Sequence[str]) -> Floats:
        """Return the sentence vectors [B, d] of B texts. Raises TextError."""
        ids, mask = self.tokenizer.encode(texts)
        sentences: Floats = self._graph("text")(ids=ids, mask=mask)[1]
        return sentences

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        """Compose B references with B texts; each query is cut to its own words. Raises TextError."""
        ids, mask = self.tokenizer.encode(texts)
        lengths = mask.sum(1)
        if len(set(lengths.tolist())) > 1:  # padding would move last bits: a query would depend on who is beside it
            found: dict[int, QueryFeatures] = {}
            for length in set(lengths.tolist()):
                rows = np.flatnonzero(lengths == length).tolist()
                alike = self.compose(references.take(rows), [texts[row] for row in rows])
                found |= dict(zip(rows, alike, strict=True))
            return [found[row] for row in range(len(texts))]
        words, sentence = self._graph("text")(ids=ids, mask=mask)
        if self.bundle.manifest.mode is RankingMode.ONE_STAGE:
            return [one_vector(row) for row in self._graph("query")(vectors=references.vectors, sentence=sentence)[0]]
        batch = self._graph("query")(
            vectors=references.vectors, regions=references.regions, words=words, sentence=sentence, mask=mask
        )
        return [
            _cut([output[at] for output in batch], int(length), self.tokenizer.tokens(text))
            for at, (text, length) in enumerate(zip(texts, lengths, strict=True))
        ]

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        """Score one query against K targets."""
        if self.bundle.manifest.mode is RankingMode.ONE_STAGE:
            return no_evidence(targets.vectors @ query.vector)
        boundary = self.bundle.manifest.boundary["t_c"]
        if not len(targets):
            return PairScores(np.empty(0, np.float32), np.empty((0, len(query.words)), np.float32), boundary)
        score, word_scores = self._graph("pair")(**_asked(query), vectors=targets.vectors, regions=targets.regions)
        return PairScores(score, word_scores[:, : len(query.words)], boundary)

    def score_on_device(self, query: QueryFeatures, vectors: Any, regions: Any) -> PairScores:
        """Score one query against K targets whose `vectors` [K, d] and `regions` [K, R, d] may lie on the device."""
        found = self._graph("pair").bound({**_asked(query), "vectors": vectors, "regions": regions})
        return PairScores(
            found["score"], found["word_scores"][:, : len(query.words)], self.bundle.manifest.boundary["t_c"]
        )


def _asked(query: QueryFeatures) -> dict[str, Floats]:
    """Return the query's half of the pair graph's inputs; where there is no word, one of zeros that weighs nothing."""
    if not len(query.words):
        nothing = np.zeros((1, len(query.vector)), np.float32)
        probes, weights = np.concatenate([query.probes, nothing]), np.append(query.probe_weights, nothing[0, 0])
        query = replace(query, words=nothing, probes=probes, word_weights=nothing[0, :1], probe_weights=weights)
    return {
        "query": query.vector,
        "infused": query.words,
        "probes": query.probes,
        "word_weights": query.word_weights,
        "probe_weights": query.probe_weights,
    }


def _cut(query: Sequence[Floats], length: int, tokens: tuple[str, ...]) -> QueryFeatures:
    """Take one padded query's outputs to its true `length` L: words [L, d], probes [P+L, d] and their weights."""
    vector, infused, probes, word_weights, probe_weights = query
    both = len(probes) - len(infused) + length
    return QueryFeatures(vector, infused[:length], probes[:both], word_weights[:length], probe_weights[:both], tokens)


def scorer_on(bundle: Bundle, place: Place) -> OnnxScorer:
    """Return the scorer of a bundle on `place`."""
    if place.engines:
        from nsfse_runtime.inference.tensorrt.engine import EngineScorer

        return EngineScorer(bundle)
    return bundle.scorer if place.on_cpu else OnnxScorer(bundle, place)


def as_scorer(model: Bundle | Scorer) -> Scorer:
    """Return the scorer of a bundle, or `model` itself when it is one."""
    return model.scorer if isinstance(model, Bundle) else model
