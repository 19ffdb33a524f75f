"""Configuration: presets, TOML, overrides, and errors that name the key."""

import pytest

from nsfse.config import PRESETS, Config, load_config
from nsfse_runtime.errors import DataError, NotFoundError, UsageError


def test_defaults_then_file_then_overrides(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[train]\nepochs = 3\nlr = 0.5\n[model]\nimage_size = [48, 32]\n[data.options]\nlevel = "easy"\n')
    config = load_config(file=file, overrides=["train.lr=0.25", "data.options.items = 64"], data=tmp_path)
    assert (config.train.epochs, config.train.lr, config.train.batch) == (3, 0.25, Config().train.batch)
    assert config.model.image_size == (48, 32)
    assert config.data.options == {"level": "easy", "items": 64}
    assert config.data.folder == str(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load(name):
    assert isinstance(load_config(preset=name), Config)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.epoch=3"], "did you mean 'epochs'"),
        (["trian.epochs=3"], "did you mean 'train'"),
        (["train.epochs=many"], "train.epochs"),
        (["model.image_size=[64]"], "image_size"),
    ],
)
def test_errors_name_the_key(overrides, said):
    with pytest.raises(DataError, match=said) as caught:
        load_config(overrides=overrides)
    assert "\n" not in str(caught.value)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'drawn-easy'"):
        load_config(preset="drawn-esay")


def test_override_needs_a_section():
    with pytest.raises(UsageError, match=r"section\.key=value"):
        load_config(overrides=["epochs=3"])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(NotFoundError):
        load_config(file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(DataError, match="not TOML"):
        load_config(file=tmp_path / "bad.toml")
