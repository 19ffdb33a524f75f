"""Build engines of each kind of model in each precision by TensorRT for RTX, without a GPU: bytes, seconds, or why not.

python benchmarks/engine_builds.py [--only NAME] [--compute-capability 8.9] [-o builds.json]

Weights are random, shapes real: 192×160 for EfficientNet-Lite0, 224×224 for ResNet-50 and a CLIP of ViT-B/32's size
(needs transformers). `--only tiny` takes the models of that name. Engines are for a bundle's profiles, and never run.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from nsfse.config import Config, ModelConfig
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.baselines import build_model
from nsfse.models.checkpoint import save_tensors, write_file, write_header
from nsfse.models.pretrained import own_tokenizer, resolve_config
from nsfse_export import export_bundle
from nsfse_export.engine_builder import timed_build
from nsfse_export.precision_gate import reduce_bundle
from nsfse_runtime.errors import NsfseError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.manifest import Precision
from nsfse_runtime.inference.tensorrt.cache import engine_graphs, engine_key
from nsfse_runtime.inference.tensorrt_library import TensorRT, load_library

Row = dict[str, Any]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
TEXTS = ("make it red and longer, with no stripes", "is blue instead of green", "the same in black without a collar")
ONE_STAGE = ("image-only", "text-only", "sum", "slerp", "tirg", "combiner")


def models(only: str, folder: Path) -> dict[str, ModelConfig]:
    """Return the models by name; `folder` takes the weights of a CLIP."""
    blocks = ModelConfig(attribute_blocks=True, attributes={"category": 30, "colour": 18}, sentence="signed")
    tiny = {"NSFSE on tiny": ModelConfig(), "blocks, signed on tiny": blocks}
    tiny |= {f"{method} on tiny": ModelConfig(method=method) for method in ONE_STAGE}
    clip = str(folder)
    every = tiny | {
        "NSFSE on EfficientNet-Lite0": ModelConfig(
            backbone="efficientnet-lite0", weights="random", image_size=(192, 160), dim=256
        ),
        "NSFSE on ResNet-50": ModelConfig(backbone="resnet50", weights="random", image_size=(224, 224), dim=256),
        "NSFSE on CLIP": ModelConfig(backbone="clip", weights=clip, image_size=(224, 224), dim=512),
        "slerp on CLIP": ModelConfig(backbone="clip", weights=clip, image_size=(224, 224), dim=512, method="slerp"),
    }
    chosen = {name: config for name, config in every.items() if only in name}
    if any(config.weights == clip for config in chosen.values()):
        write_clip(folder)
    return chosen


def write_clip(folder: Path) -> Path:
    """Write a CLIP of ViT-B/32's size with random weights and a small tokenizer, and return its folder."""
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import CLIPConfig, CLIPModel

    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=[start, end]))
    tokenizer.post_processor = processors.RobertaProcessing((end, 1), (start, 0))
    ids = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": 49_408}
    CLIPModel(CLIPConfig(text_config=ids, projection_dim=512)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_run(folder: Path, config: ModelConfig) -> Path:
    """Write a run of random weights that knows TEXTS, and return its folder."""
    model_config = resolve_config(Config(model=config)).model
    words = own_tokenizer(model_config) or build_vocabulary(TEXTS)
    torch.manual_seed(0)
    folder.mkdir()
    write_file(folder / "tokenizer.json", words.to_str().encode())
    write_header(folder, Config(model=model_config), words.get_vocab_size(), {"source": "random weights"})
    save_tensors(folder / "model.safetensors", build_model(model_config, words.get_vocab_size()).state_dict())
    return folder


def build_all(library: TensorRT, name: str, run: Path, capability: str, folder: Path) -> list[Row]:
    """Return a row for each precision and graph of a run."""
    rows: list[Row] = []
    exported = export_bundle(run, folder / "fp32").path
    for precision in PRECISIONS:
        about = {"model": name, "precision": precision}
        try:
            bundle = in_precision(exported, folder, precision)
        except NsfseError as error:
            rows.append({**about, "graph": "all", "refused": str(error)})
            continue
        for graph in engine_graphs(bundle.manifest):
            key = engine_key(graph, bundle.manifest, library, Gpu("", capability))
            try:
                state = timed_build(library, bundle, graph, key)[2]
                rows.append({**about, "graph": graph, "mb": round(state.bytes / 1e6, 1), "seconds": state.seconds})
            except NsfseError as error:
                rows.append({**about, "graph": graph, "refused": str(error)})
    return rows


def in_precision(exported: Path, folder: Path, precision: Precision) -> Bundle:
    """Return a bundle of an exported one's graphs in `precision`. Raises UsageError where none gains from it."""
    if precision == "fp32":
        return Bundle.open(exported)
    copy = Path(shutil.copytree(exported, folder / precision))
    reduce_bundle(copy, Bundle.open(copy).manifest, precision, None, lambda _: None)
    return Bundle.open(copy)


def by_model(rows: list[Row]) -> list[Row]:
    """Return a row for each model and precision, a graph's outcome as `MB / seconds`, or its refusal."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        line = found.setdefault((row["model"], row["precision"]), {name: row[name] for name in ("model", "precision")})
        outcome = row.get("refused") or f"{row['mb']} / {row['seconds']:.1f}"
        line[row["graph"]] = outcome
    return list(found.values())


def main() -> None:
    """Build, and print or write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models with this in their name")
    parser.add_argument("--compute-capability", default="8.9")
    parser.add_argument("-o", "--out", type=Path, help="a file for the JSON")
    options = parser.parse_args()
    library = load_library("rtx")
    library.check_capability(options.compute_capability)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for index, (name, config) in enumerate(models(options.only, Path(temporary, "clip")).items()):
            folder = Path(temporary, str(index))
            folder.mkdir()
            rows += build_all(library, name, write_run(folder / "run", config), options.compute_capability, folder)
            print(f"{name}: done", flush=True)
    report = {"library": library.title, "capability": options.compute_capability, "rows": by_model(rows)}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text) if options.out is None else options.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
