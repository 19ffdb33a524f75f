"""The tokenizer of a dual encoder, in any of its forms, and the tokens that it puts around a text."""

import json
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from nsfse.models.backbones.weights_folder import find_file, first_line, has_file, hub_source, read_json
from nsfse_runtime.errors import DataError, IntegrityError, NotFoundError

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
# SigLIP's texts lose these marks and their capitals; a tokenizer.json of its own kind does so itself.
PUNCTUATION = Regex(r"""[!"#$%&'()*+,\-./:;<=>?@\[\]\\^_`{|}~]""")


@dataclass(frozen=True)
class Frame:
    """The ids that the model reads before and after a text, and as padding."""

    prefix: list[int]
    suffix: list[int]
    pad: int
    pad_left: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it for config.json."""
        return asdict(self)


def read_tokenizer(weights: str, kind: str) -> Tokenizer:
    """Return the tokenizer of the weights without what it does beyond splitting: special tokens, cutting, padding.

    `kind` is the model's. Raises NotFoundError or IntegrityError.
    """
    tree = json.loads(_whole_tokenizer(weights, kind).to_str())
    return Tokenizer.from_str(json.dumps(tree | {"post_processor": None, "truncation": None, "padding": None}))


def read_frame(weights: str, kind: str) -> Frame:
    """Return what the tokenizer puts around a text. Raises NotFoundError, IntegrityError or DataError."""
    whole, words = _whole_tokenizer(weights, kind), read_tokenizer(weights, kind)
    padding = whole.padding or {}
    whole.no_padding()
    whole.no_truncation()
    ids, inner = whole.encode("a").ids, words.encode("a").ids
    at = next((at for at in range(len(ids)) if ids[at : at + len(inner)] == inner), None)
    if at is None or at + len(inner) == len(ids):
        raise DataError(f"model.weights: the tokenizer of {weights} puts no end token after a text")
    settings = read_json(weights, "tokenizer_config.json", needed=False)
    pad = settings.get("pad_token")
    pad = whole.token_to_id(pad["content"] if isinstance(pad, dict) else pad) if pad else padding.get("pad_id")
    side = settings.get("padding_side", padding.get("direction", "right"))
    end = ids[at + len(inner) :]
    return Frame(ids[:at], end, end[0] if pad is None else pad, side == "left")


def _whole_tokenizer(weights: str, kind: str) -> Tokenizer:
    """Read the tokenizer from tokenizer.json, a SentencePiece model, or what `transformers` reads: vocabularies."""
    if not has_file(weights, "tokenizer.json"):
        return _from_sentencepiece(weights, kind) or _from_vocabulary(weights)
    path = find_file(weights, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise IntegrityError(f"model.weights: {path} is not a tokenizer: {first_line(error)}") from None
    # OpenCLIP cleans texts beside the tokenizer.
    text = read_json(weights, "open_clip_config.json", needed=False).get("model_cfg", {}).get("text_cfg", {})
    cleaned = text.get("tokenizer_kwargs", {}).get("clean") == "canonicalize"
    return _canonical(tokenizer) if cleaned else tokenizer


def _from_vocabulary(weights: str) -> Tokenizer:
    """Read vocab.json and merges.txt, or a BERT's vocab.txt, as `transformers` does."""
    from transformers import AutoTokenizer

    find_file(weights, "vocab.json", "vocab.txt", "tokenizer.json")  # one line where there is no tokenizer at all
    name, local = hub_source(weights)
    try:
        backend: Tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local).backend_tokenizer
    except Exception as error:  # OSError, ValueError, and AttributeError where there is no fast form
        raise IntegrityError(f"model.weights: {weights} has no tokenizer to read: {first_line(error)}") from None
    return backend


def _from_sentencepiece(weights: str, kind: str) -> Tokenizer | None:
    """Read a SentencePiece model: that of SigLIP, or one with the special tokens of XLM-RoBERTa first."""
    try:
        path = find_file(weights, *SENTENCEPIECE)
    except NotFoundError:
        return None
    from transformers.convert_slow_tokenizer import T5Converter, XLMRobertaConverter

    siglip = kind == "siglip"
    special = {"</s>": 1} if siglip else {"<s>": 0, "</s>": 2}
    described = SimpleNamespace(vocab_file=str(path), _extra_ids=0, convert_tokens_to_ids=special.get)
    try:
        tokenizer: Tokenizer = (T5Converter if siglip else XLMRobertaConverter)(described).converted()
    except Exception as error:  # ImportError without protobuf, its DecodeError, and plain Exception
        raise IntegrityError(f"model.weights: {path} cannot be read: {first_line(error)}") from None
    return _canonical(tokenizer) if siglip else tokenizer


def _canonical(tokenizer: Tokenizer) -> Tokenizer:
    """Let a tokenizer lose capitals and punctuation first, as the texts that SigLIP was trained on."""
    steps = [normalizers.Lowercase(), normalizers.Replace(PUNCTUATION, ""), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    return tokenizer
