"""The four graphs of a bundle as a Scorer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError, NsfseError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.confidence import Decision
from nsfse_runtime.inference.devices import ON_CPU, ExecutionDevice
from nsfse_runtime.inference.graph_contract import Contract, check_graph, check_outputs, contract_of
from nsfse_runtime.inference.manifest import GRAPHS, TOKENIZER
from nsfse_runtime.inference.onnx_session import Session
from nsfse_runtime.types import (
    Boundaries,
    Floats,
    ModelInfo,
    PairScores,
    Pixels,
    QueryFeatures,
    RankingMode,
    TargetFeatures,
    no_evidence,
    vector_only_query,
)

if TYPE_CHECKING:
    from nsfse_runtime.inference.tokenizer import Tokenizer


class OnnxScorer:
    """The Scorer of a bundle. A graph is opened when first used: a query by gallery id never opens the image graph."""

    def __init__(self, bundle: Bundle, device: ExecutionDevice = ON_CPU, threads: int | None = None) -> None:
        """Raises UsageError where the bundle is in a type that `device` does not compute in."""
        if bundle.manifest.precision == "bf16" and device.on_cpu:
            raise UsageError(
                f"{bundle.path} is in bfloat16, in which ONNX Runtime computes on GPUs alone; use --device cuda, or "
                "export the run again with --precision int8 or fp32"
            )
        self.bundle, self.device, self._threads = bundle, device, threads
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
        """Return what the manifest says of the model, and its device. Raises IntegrityError (see Decision.of)."""
        manifest = self.bundle.manifest
        head = manifest.head
        has_boundaries = manifest.mode is RankingMode.TWO_STAGE and {"t_c", "t_v"} <= head.keys()
        return ModelInfo(
            mode=manifest.mode,
            mix=(head.get("w_global", 1.0), head.get("w_cross", 0.0)),
            grid=manifest.grid,
            boundaries=Boundaries(head["t_c"], head["t_v"], int(head.get("views", 0))) if has_boundaries else None,
            confidence=Decision.of(manifest),
            device=self.device.name,
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
                data, origin = self.bundle.read(f"{name}.onnx"), self._origins[name]
                check_graph(data, self._contracts[name], origin)
                self._sessions[name] = self._open(name, data, origin)
            return self._sessions[name]

    @cached_property
    def _origins(self) -> dict[str, str]:
        return {name.removesuffix(".onnx"): str(self.bundle.path / name) for name in GRAPHS}

    @cached_property
    def _contracts(self) -> dict[str, Contract]:
        return {name: contract_of(name, self.bundle.manifest) for name in self._origins}

    def _open(self, name: str, data: bytes, origin: str) -> Callable[..., tuple[NDArray[Any], ...]]:
        return Session(data, self.device, self._threads, origin)

    def _run(self, name: str, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run a graph. Raises IntegrityError where it fails, or gives what no graph of this bundle should."""
        graph = self._graph(name)
        with _as_integrity_error(self._origins[name]):
            outputs: tuple[NDArray[Any], ...] = graph(**inputs)
        check_outputs(inputs, outputs, self._contracts[name], self._origins[name])
        return outputs

    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        """Encode `pixels` [B, H, W, 3] uint8, already fitted to `image_size`."""
        vectors, regions = self._run("image", pixels=pixels)
        return TargetFeatures(vectors, regions)

    def sentence(self, texts: Sequence[str]) -> Floats:
        """Return the sentence vectors [B, d] of B texts. Raises TextError."""
        ids, mask = self.tokenizer.encode(texts)
        sentences: Floats = self._run("text", ids=ids, mask=mask)[1]
        return sentences

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        """Compose B references with B texts; each query is cut to its own words. Raises TextError."""
        ids, mask = self.tokenizer.encode(texts)
        lengths = mask.sum(1)
        if len(set(lengths.tolist())) > 1:  # padding would move last bits: a query would depend on who is beside it
            queries: dict[int, QueryFeatures] = {}
            for length in set(lengths.tolist()):
                rows = np.flatnonzero(lengths == length).tolist()
                same_length = self.compose(references.take(rows), [texts[row] for row in rows])
                queries |= dict(zip(rows, same_length, strict=True))
            return [queries[row] for row in range(len(texts))]
        words, sentence = self._run("text", ids=ids, mask=mask)
        if self.bundle.manifest.mode is RankingMode.ONE_STAGE:
            return [
                vector_only_query(row) for row in self._run("query", vectors=references.vectors, sentence=sentence)[0]
            ]
        batch = self._run(
            "query", vectors=references.vectors, regions=references.regions, words=words, sentence=sentence, mask=mask
        )
        return [
            _trim([output[row] for output in batch], int(length), self.tokenizer.tokens(text))
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True))
        ]

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        """Score one query against K targets."""
        if self.bundle.manifest.mode is RankingMode.ONE_STAGE:
            return no_evidence(targets.vectors @ query.vector)
        boundary = self.bundle.manifest.boundary["t_c"]
        if not len(targets):
            return PairScores(np.empty(0, np.float32), np.empty((0, len(query.words)), np.float32), boundary)
        score, word_scores = self._run("pair", **pair_inputs(query), vectors=targets.vectors, regions=targets.regions)
        return PairScores(score, word_scores[:, : len(query.words)], boundary)

    def score_on_device(self, query: QueryFeatures, vectors: Any, regions: Any) -> PairScores:
        """Score one query against K targets whose `vectors` [K, d] and `regions` [K, R, d] may be on the device."""
        inputs = {**pair_inputs(query), "vectors": vectors, "regions": regions}
        graph, contract = self._graph("pair"), self._contracts["pair"]
        with _as_integrity_error(self._origins["pair"]):
            outputs = graph.run_with_io_binding(inputs)
        check_outputs(inputs, [outputs[name] for name in contract.outputs], contract, self._origins["pair"])
        word_scores = outputs["word_scores"][:, : len(query.words)]
        return PairScores(outputs["score"], word_scores, self.bundle.manifest.boundary["t_c"])


@contextmanager
def _as_integrity_error(origin: str) -> Iterator[None]:
    """Report what a graph fails with: a checked input never makes a whole graph fail."""
    try:
        yield
    except NsfseError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise IntegrityError(f"{origin} cannot be run ({reason}); free memory, or export the bundle again") from error


def pair_inputs(query: QueryFeatures) -> dict[str, Floats]:
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


def _trim(query: Sequence[Floats], length: int, tokens: tuple[str, ...]) -> QueryFeatures:
    """Take one padded query's outputs to its true `length` L: words [L, d], probes [P+L, d] and their weights."""
    vector, infused, probes, word_weights, probe_weights = query
    both = len(probes) - len(infused) + length
    return QueryFeatures(vector, infused[:length], probes[:both], word_weights[:length], probe_weights[:both], tokens)
