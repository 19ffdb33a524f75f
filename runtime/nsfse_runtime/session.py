"""A graph and its provider as a callable, and the bundle's four graphs as a Scorer."""

import os
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.bundle import TOKENIZER, Bundle
from nsfse_runtime.decision import Decision
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.extras import need
from nsfse_runtime.features import (
    Floats,
    PairScores,
    Pixels,
    QueryFeatures,
    Scorer,
    TargetFeatures,
    no_evidence,
    one_vector,
)
from nsfse_runtime.search import Stages

if TYPE_CHECKING:
    from nsfse_runtime.text import Tokenizer

# Given a graph's bytes, ONNX Runtime would take weights from files in the current folder: it is sent where none can be.
_NO_FOLDER = f"{os.devnull}/none"


class Session:
    """One ONNX graph, held whole in its bytes, ready to run: `session(pixels=...)` → its outputs in order."""

    def __init__(
        self,
        model: bytes,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        origin: str = "the graph",
    ) -> None:
        """Open `model`.

        `providers` are ONNX Runtime's names, best first (default: the CPU); `threads` caps the CPU threads of one run
        (default: `cpu_threads`).
        Raises MissingExtraError, UsageError (a provider that is not there) or IntegrityError (not a whole graph).
        """
        need("onnxruntime", "cpu")
        import onnxruntime

        chosen = list(providers or ["CPUExecutionProvider"])
        if missing := sorted(set(chosen) - set(onnxruntime.get_available_providers())):
            there = ", ".join(onnxruntime.get_available_providers())
            raise UsageError(f"ONNX Runtime has no {', '.join(missing)} here; choose from {there}")
        try:
            self._session = onnxruntime.InferenceSession(model, _options(threads), providers=chosen)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).splitlines()[0][:200]
            raise IntegrityError(f"{origin} is not a whole ONNX graph ({reason}); export the bundle again") from error
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the graph on its inputs by name; return its outputs in the order of `outputs`."""
        return tuple(self._session.run(None, inputs))


def _options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Sizes vary from call to call (batch, words): an arena would keep the largest of each for ever.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    # Idle threads would spin for a while in the hope of more work and take the processor from the next graph's: with
    # the four graphs of a query that was three times the CPU time. (A pool for all graphs is worse: ONNX Runtime then
    # refuses every session of the process, ours or not, that has its own.)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads or cpu_threads()
    return options


def cpu_threads() -> int:
    """Return how many threads to compute with: the processors this process may use, OMP_NUM_THREADS of them at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(told)) if told.isdigit() and int(told) else usable


class OnnxScorer:
    """The Scorer of a bundle. A graph is opened when first used: a query by gallery id never opens the image graph."""

    def __init__(self, bundle: Bundle, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        """Raises UsageError where the bundle is in a type that none of `providers` computes in."""
        if bundle.manifest.precision == "bf16" and set(providers or ()) <= {"CPUExecutionProvider"}:
            raise UsageError(
                f"{bundle.path} is in bfloat16, in which ONNX Runtime computes on GPUs alone; name a GPU's provider or "
                "export the run again with --precision int8 or fp32"
            )
        self.bundle, self._providers, self._threads = bundle, providers, threads
        self._sessions: dict[str, Session] = {}
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

    @property
    def stages(self) -> Stages:
        """Return how this model ranks (see nsfse_runtime.search)."""
        return "one" if self.bundle.manifest.stages == 1 else "two"

    @cached_property
    def decision(self) -> Decision | None:
        """Return what tells a match, where the bundle has it (see nsfse_runtime.decision). Raises IntegrityError."""
        return Decision.of(self.bundle.manifest)

    @property
    def tokenizer(self) -> "Tokenizer":
        """Return the bundle's tokenizer. Raises IntegrityError when it cannot be read."""
        from nsfse_runtime.text import Tokenizer

        with self._opening:
            if self._tokenizer is None:
                data, origin = self.bundle.read(TOKENIZER), str(self.bundle.path / TOKENIZER)
                self._tokenizer = Tokenizer.from_bytes(data, self.bundle.manifest.max_words, origin)
            return self._tokenizer

    @property
    def opened(self) -> frozenset[str]:
        """Return the names of the graphs opened so far."""
        return frozenset(self._sessions)

    def _graph(self, name: str) -> Session:
        with self._opening:
            if name not in self._sessions:
                data, origin = self.bundle.read(f"{name}.onnx"), str(self.bundle.path / f"{name}.onnx")
                self._sessions[name] = Session(data, self._providers, self._threads, origin)
            return self._sessions[name]

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
        words, sentence = self._graph("text")(ids=ids, mask=mask)
        if self.stages == "one":
            return [one_vector(row) for row in self._graph("query")(vectors=references.vectors, sentence=sentence)[0]]
        batch = self._graph("query")(
            vectors=references.vectors, regions=references.regions, words=words, sentence=sentence, mask=mask
        )
        lengths = mask.sum(1)
        return [
            _cut([output[at] for output in batch], int(length), self.tokenizer.tokens(text))
            for at, (text, length) in enumerate(zip(texts, lengths, strict=True))
        ]

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        """Score one query against K targets."""
        if self.stages == "one":
            return no_evidence(targets.vectors @ query.vector)
        boundary = self.bundle.manifest.boundary["t_c"]
        if not len(targets):
            return PairScores(np.empty(0, np.float32), np.empty((0, len(query.words)), np.float32), boundary)
        score, word_scores = self._graph("pair")(
            query=query.vector,
            infused=query.words,
            probes=query.probes,
            word_weights=query.word_weights,
            probe_weights=query.probe_weights,
            vectors=targets.vectors,
            regions=targets.regions,
        )
        return PairScores(score, word_scores, boundary)


def _cut(query: Sequence[Floats], length: int, tokens: tuple[str, ...]) -> QueryFeatures:
    """Take one padded query's outputs to its true `length` L: words [L, d], probes [P+L, d] and their weights."""
    vector, infused, probes, word_weights, probe_weights = query
    both = len(probes) - len(infused) + length
    return QueryFeatures(vector, infused[:length], probes[:both], word_weights[:length], probe_weights[:both], tokens)


def as_scorer(model: Bundle | Scorer) -> Scorer:
    """Return the scorer of a bundle, or `model` itself when it is one."""
    return model.scorer if isinstance(model, Bundle) else model
