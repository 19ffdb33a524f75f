"""Time the parts of a query with a CLIP ViT-B/32 of random weights: torch, ONNX Runtime in float32 and in int8.

python benchmarks/speed.py [--rounds 7]    needs transformers and about 4 GiB; the ratios are to torch in float32

Variants take turns within a round, so that another program on the machine slows all of them; a ratio is the median of
the rounds' ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nsfse.clip import MEAN, STD
from nsfse.config import ModelConfig
from nsfse.model import NSFSE
from nsfse_export.graphs import Graph, build_graphs
from nsfse_export.onnx import to_onnx
from nsfse_export.precision import reduced
from nsfse_runtime.session import Session, cpu_threads

SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_hidden_layers": 12}
TEXT = SHARED | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
VISION = SHARED | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
VOCABULARY, POSITIONS, SIDE, DIM = 49408, 77, 224, 512
WORDS = 3  # "make it red", to which CLIP adds a start and an end
PAIRS, PAIR_WORDS = 100, 12

Act = Callable[[], object]
Inputs = dict[str, Any]


def interleaved(variants: Mapping[str, Act], rounds: int = 7) -> dict[str, list[float]]:
    """Call every variant once in each round, after one call that is not counted; return the rounds' milliseconds."""
    for act in variants.values():
        act()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        names = list(variants)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody always comes first
            started = time.perf_counter()
            variants[name]()
            times[name].append(1000 * (time.perf_counter() - started))
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


def random_clip() -> NSFSE:
    """Return NSFSE on a ViT-B/32 of random weights, in evaluation mode."""
    shapes = {
        "text_config": TEXT | {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS},
        "vision_config": VISION | {"image_size": SIDE, "patch_size": 32, "num_channels": 3},
        "projection_dim": DIM,
        "start": VOCABULARY - 2,
        "end": VOCABULARY - 1,
        "mean": list(MEAN),
        "std": list(STD),
    }
    torch.manual_seed(0)
    config = ModelConfig(backbone="clip", clip=shapes, image_size=(SIDE, SIDE), dim=DIM, max_words=POSITIONS - 2)
    return NSFSE(config, VOCABULARY).eval()


def inputs_of(graph: Graph, batch: int = 1, words: int = WORDS) -> Inputs:
    """Return random inputs of a graph: `batch` pictures, texts of `words` words, or PAIRS candidates."""
    random, sizes = np.random.default_rng(0), {"batch": batch, "words": words, "candidates": PAIRS}
    found: Inputs = {}
    for key, shape in graph.inputs.items():
        named = [str(size).partition("+") for size in shape]
        whole = [sizes[base] + int(more or 0) if base in sizes else int(base) for base, _, more in named]
        if key == "pixels":
            found[key] = random.integers(0, 256, whole, dtype=np.uint8)
        elif key == "ids":
            found[key] = random.integers(2, VOCABULARY - 2, whole)
        elif key == "mask":
            found[key] = np.ones(whole, np.bool_)
        else:
            rows = random.normal(size=whole).astype(np.float32)
            found[key] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return found


def variants_of(graph: Graph, sessions: Mapping[str, Session], inputs: Inputs) -> dict[str, Act]:
    """Return what runs `inputs` through a graph: torch, and each session by its name."""

    def eager() -> object:
        with torch.inference_mode():
            return graph.module(**{key: torch.from_numpy(array) for key, array in inputs.items()})

    return {"torch": eager} | {kind: (lambda run=run: run(**inputs)) for kind, run in sessions.items()}


def sessions_of(name: str, graph: Graph) -> dict[str, Session]:
    """Return a graph's sessions by precision; where int8 leaves the graph alone there is one."""
    whole = to_onnx(name, graph)
    small = reduced(name, whole, "int8")
    return {"fp32": Session(whole)} | ({"int8": Session(small)} if small else {})


def measure(rounds: int) -> dict[str, Any]:
    """Return milliseconds and ratios of the picture encoder, the text encoder, the query and the pair head."""
    graphs = build_graphs(random_clip())
    found: dict[str, Any] = {}
    for name, graph in graphs.items():
        sessions = sessions_of(name, graph)
        cases = {"image": {"batch 1": 1, "batch 16": 16}}.get(name, {"one": 1})
        for case, batch in cases.items():
            words = PAIR_WORDS if name == "pair" else WORDS
            variants = variants_of(graph, sessions, inputs_of(graph, batch, words))
            if name == "text":  # what most programs do: pad to all positions
                padded = inputs_of(graph, batch, POSITIONS - 2)
                variants["torch, padded to 77"] = variants_of(graph, {}, padded)["torch"]
            base = "torch, padded to 77" if name == "text" else "torch"
            found[f"{name}, {case}"] = ratios(interleaved(variants, rounds), base)
    return found


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(cpu_threads())
    print(json.dumps({"threads": cpu_threads(), "rounds": rounds, "parts": measure(rounds)}, indent=2))


if __name__ == "__main__":
    main()
