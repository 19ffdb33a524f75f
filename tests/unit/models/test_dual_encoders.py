"""Dual encoders of transformers and OpenCLIP: the same vectors as their own code; others are refused in one line."""

import json

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed: nsfse[clip]")

from safetensors.torch import save_file
from torch.nn import functional as F

from nsfse.config import load_config
from nsfse.models.backbones import open_clip
from nsfse.models.backbones.dual_encoder import common_dim, most_words
from nsfse.models.backbones.text_tokens import _whole_tokenizer
from nsfse.models.nsfse import NSFSE
from nsfse.models.pretrained import load_pretrained, own_tokenizer, resolve_config
from nsfse_runtime.errors import DataError, IntegrityError
from nsfse_runtime.inference.tokenizer import Tokenizer
from tests.small_dual_encoders import FAMILIES, write_small_dual_encoder

TEXTS = ["make it red and longer", "round", "is blue instead of green"]
LEAST = 0.9999
TIMM_LAYER = ("norm1", "norm2", "attn.qkv.", "attn.proj", "mlp.fc1", "mlp.fc2")
OPEN_CLIP_LAYER = ("ln_1", "ln_2", "attn.in_proj_", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")


def open_nsfse(folder, *more):
    """Return an NSFSE on the dual encoder of `folder`, at its own size and dimension, and its tokenizer."""
    config = resolve_config(load_config(overrides=['model.backbone="clip"', f'model.weights="{folder}"', *more])).model
    side = config.clip_config["config"]["vision_config"]["image_size"]
    config = msgspec.structs.replace(
        config, image_size=(side, side), dim=common_dim(config.clip_config), max_words=most_words(config.clip_config)
    )
    words = own_tokenizer(config)
    model = NSFSE(config, words.get_vocab_size())
    load_pretrained(model, folder / "tokenizer.json")
    return model.eval(), Tokenizer.from_bytes(words.to_str().encode(), config.max_words)


def random_pixels(side):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8))


def theirs(model, folder, family, texts=TEXTS):
    """Return the image and text vectors that the code of transformers computes."""
    pixels = random_pixels(model.config.vision_config.image_size) / 255
    planes = (pixels - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    tokenizer = _whole_tokenizer(str(folder), model.config.model_type)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    siglip = model.config.model_type == "siglip"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    pad = settings["pad_token"]
    tokenizer.enable_padding(
        direction=settings.get("padding_side", "right"),
        pad_id=tokenizer.token_to_id(pad["content"] if isinstance(pad, dict) else pad),
        length=16 if siglip else None,
    )
    read = tokenizer.encode_batch(texts)
    ids, mask = (torch.tensor([getattr(each, name) for each in read]) for name in ("ids", "attention_mask"))
    with torch.inference_mode():
        images = model.get_image_features(planes.permute(0, 3, 1, 2)).pooler_output
        sentences = model.get_text_features(ids, **({} if siglip else {"attention_mask": mask})).pooler_output
    return F.normalize(images, dim=-1), F.normalize(sentences, dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_what_its_own_code_says_and_learns(family, tmp_path):
    from transformers import AutoModel

    write_small_dual_encoder(tmp_path, family)
    images, sentences = theirs(AutoModel.from_pretrained(tmp_path).eval(), tmp_path, family)
    assert sentences[0] @ sentences[1] < 0.999  # or the comparison would show nothing
    model, tokenizer = open_nsfse(tmp_path)
    ids, mask = (torch.from_numpy(array) for array in tokenizer.encode(TEXTS))
    vectors, regions = model.encode_images(random_pixels(model.config.image_size[0]))
    words, sentence = model.encode_text(ids, mask)
    assert (vectors * images).sum(-1).min() > LEAST and (sentence * sentences).sum(-1).min() > LEAST
    assert tokenizer.tokens(TEXTS[0]) == tuple(TEXTS[0].split())
    alone = model.encode_text(ids[1:2, :1], mask[1:2, :1])[0]
    torch.testing.assert_close(words[1:2, :1], alone)
    (vectors.sum() + regions.sum() + sentence.sum()).backward()
    trunk = model.image_encoder.trunk
    assert all(any(p.grad is not None for p in stage.parameters()) for stage in trunk.stages())
    assert model.text_encoder.sentence.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["siglip-2-fixed", "altclip"])
def test_texts_of_every_length_are_read_alike_without_torch(family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from nsfse_export.export import to_onnx
    from nsfse_export.graphs import build_graphs

    write_small_dual_encoder(tmp_path, family)
    model, tokenizer = open_nsfse(tmp_path)
    session = onnxruntime.InferenceSession(to_onnx("text", build_graphs(model)["text"]))
    for texts in (TEXTS, TEXTS[1:2], TEXTS[:2]):
        ids, mask = tokenizer.encode(texts)
        words, sentence = session.run(["words", "sentence"], {"ids": ids, "mask": mask})
        with torch.inference_mode():
            expected = model.encode_text(torch.from_numpy(ids), torch.from_numpy(mask))
        np.testing.assert_allclose(words, expected[0], atol=1e-5)
        assert (sentence * expected[1].numpy()).sum(-1).min() > LEAST


def test_weights_in_a_bin_are_read_as_tensors_alone(tmp_path):
    write_small_dual_encoder(tmp_path, "siglip", binary=True)
    assert open_nsfse(tmp_path)
    torch.save({"code": open}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be read"):
        open_nsfse(tmp_path)


def as_open_clip(model, config):
    """Return the tensors of a model of transformers under OpenCLIP's names: the reverse, written by itself."""
    tensors, found = model.state_dict(), {}
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for at in range(config.vision_config.num_hidden_layers):
            own, other = f"{tower}.encoder.layers.{at}.", f"{prefix}transformer.resblocks.{at}."
            for kind in ("weight", "bias"):
                qkv = [tensors[f"{own}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{other}attn.in_proj_{kind}"] = torch.cat(qkv)
                found[f"{other}attn.out_proj.{kind}"] = tensors[f"{own}self_attn.out_proj.{kind}"]
                for number in (1, 2):
                    found[f"{other}ln_{number}.{kind}"] = tensors[f"{own}layer_norm{number}.{kind}"]
                    name = ("c_fc", "c_proj")[number - 1]
                    found[f"{other}mlp.{name}.{kind}"] = tensors[f"{own}mlp.fc{number}.{kind}"]
    embeddings = "vision_model.embeddings."
    found |= {
        "visual.conv1.weight": tensors[f"{embeddings}patch_embedding.weight"],
        "visual.class_embedding": tensors[f"{embeddings}class_embedding"],
        "visual.positional_embedding": tensors[f"{embeddings}position_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
        "logit_scale": torch.tensor(1.0),
    }
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write_open_clip(folder, **vision):
    """Write a small ViT in OpenCLIP's layout beside its twin of transformers, and return the twin."""
    from transformers import AutoModel

    write_small_dual_encoder(folder, "clip")
    model = AutoModel.from_pretrained(folder).eval()
    text = model.config.text_config
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).unlink()
    save_file(as_open_clip(model, model.config), folder / "open_clip_model.safetensors")
    described = {
        "model_cfg": {
            "embed_dim": 20,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 1, "head_width": 12}
            | {"mlp_ratio": 1}
            | vision,
            "text_cfg": {
                "context_length": 16, "vocab_size": text.vocab_size, "width": 16, "heads": 2, "layers": 1,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return model


def test_the_vit_of_open_clip_is_the_clip_of_transformers(tmp_path, monkeypatch):
    # The twin's layers have 24 hidden units; OpenCLIP's text tower has four times its width.
    monkeypatch.setattr(open_clip, "_TEXT_RATIO", 1.5)
    images, sentences = theirs(write_open_clip(tmp_path), tmp_path, "clip")
    model, tokenizer = open_nsfse(tmp_path)
    ids, mask = (torch.from_numpy(array) for array in tokenizer.encode(TEXTS))
    with torch.inference_mode():
        vectors, _ = model.encode_images(random_pixels(32))
        _, sentence = model.encode_text(ids, mask)
    assert (vectors * images).sum(-1).min() > LEAST and (sentence * sentences).sum(-1).min() > LEAST


def test_the_vit_of_siglip_in_the_form_of_timm(tmp_path, monkeypatch):
    from transformers import AutoModel

    monkeypatch.setitem(open_clip.SIGLIP_VITS, "vit_base", (24, 1, 2, 24))
    monkeypatch.setattr(open_clip, "_TEXT_RATIO", 1)
    write_small_dual_encoder(tmp_path, "siglip")
    twin = AutoModel.from_pretrained(tmp_path).eval()
    tensors, found = twin.state_dict(), {}
    names = {
        "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
        "vision_model.post_layernorm.": "visual.trunk.norm.",
        "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
        "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
        "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
        "vision_model.head.probe": "visual.trunk.attn_pool.latent",
        "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
        "text_model.embeddings.token_embedding.": "text.token_embedding.",
        "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
        "text_model.final_layer_norm.": "text.ln_final.",
        "text_model.head.": "text.text_projection.",
    }
    for own, other in names.items():
        found |= {other + name.removeprefix(own): t for name, t in tensors.items() if name.startswith(own)}
    found["visual.trunk.pos_embed"] = found["visual.trunk.pos_embed"][None]
    for kind in ("weight", "bias"):
        joined = tensors[f"vision_model.head.attention.in_proj_{kind}"]
        found |= {
            f"visual.trunk.attn_pool.{part}.{kind}": rows
            for part, rows in zip(("q", "kv"), joined.split([24, 48]), strict=True)
        }
        for tower, layer, parts in (
            ("vision_model", "visual.trunk.blocks.0.", TIMM_LAYER),
            ("text_model", "text.transformer.resblocks.0.", OPEN_CLIP_LAYER),
        ):
            own = f"{tower}.encoder.layers.0."
            ours = ("layer_norm1", "layer_norm2", "", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
            qkv = [tensors[f"{own}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{layer}{parts[2]}{kind}"] = torch.cat(qkv)
            found |= {
                f"{layer}{part}.{kind}": tensors[f"{own}{name}.{kind}"]
                for part, name in zip(parts, ours, strict=True)
                if name
            }
    images, sentences = theirs(twin, tmp_path, "siglip")
    (tmp_path / "config.json").unlink()
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, tmp_path / "open_clip_model.safetensors")
    text = {"context_length": 16, "vocab_size": twin.config.text_config.vocab_size, "width": 24, "heads": 2}
    text |= {
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "act_kwargs": {"approximate": "tanh"},
    }
    vision = {"timm_model_name": "vit_base_patch8_siglip_224", "timm_pool": "map", "image_size": 32}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}})
    )
    model, tokenizer = open_nsfse(tmp_path)
    ids, mask = (torch.from_numpy(array) for array in tokenizer.encode(TEXTS))
    with torch.inference_mode():
        vectors, _ = model.encode_images(random_pixels(32))
        _, sentence = model.encode_text(ids, mask)
    assert (vectors * images).sum(-1).min() > LEAST and (sentence * sentences).sum(-1).min() > LEAST


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"model_type": "siglip2"}, "NaFlex has no fixed image size; use a SigLIP 2 of fixed resolution"),
        ({"model_type": "jina_clip", "auto_map": {"AutoModel": "x"}}, "'jina_clip', whose code is not run; there are:"),
        ({"model_type": "bert"}, "of the kind 'bert'; there are: clip"),
        ({"model_type": "blip"}, "use a dual encoder"),
    ],
)
def test_what_is_no_dual_encoder_is_refused_in_one_line(tree, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=words) as refused:
        resolve_config(load_config(overrides=['model.backbone="clip"', f'model.weights="{tmp_path}"']))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        (
            {"timm_model_name": "fastvit_mci2"},
            "the tower fastvit_mci2 of OpenCLIP is not read; give the model as a folder",
        ),
        ({"ls_init_value": 0.1}, "OpenCLIP's ls_init_value is not read"),
    ],
)
def test_another_tower_of_open_clip_is_refused_by_its_name(vision, words, tmp_path):
    write_open_clip(tmp_path, **vision)
    with pytest.raises(DataError, match=words):
        open_nsfse(tmp_path)


def test_a_damaged_sentencepiece_model_is_named(tmp_path):
    write_small_dual_encoder(tmp_path, "siglip")
    (tmp_path / "spiece.model").write_bytes(b"\xff\xff\xff")
    with pytest.raises(IntegrityError, match=r"spiece\.model cannot be read"):
        open_nsfse(tmp_path)
