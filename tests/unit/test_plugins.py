"""Plug-ins: what an installed package names in its entry points, the plain command line knows."""

import re
import tomllib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from nsfse import plugins
from nsfse.benchmark.methods import method_settings
from nsfse.cli import app
from nsfse.config import ModelConfig
from nsfse.data import registry as sources
from nsfse.models import baselines
from nsfse.models.backbones import registry as backbones
from nsfse_runtime.errors import UsageError

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text("utf-8")
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[PROJECT] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
[(NAME, VALUE)] = tomllib.loads(PROJECT)["project"]["entry-points"]["nsfse.methods"].items()
MORE = """
from nsfse.data import CheckReport
from nsfse.models.backbones.tiny import TinyBackbone

class Small(TinyBackbone):
    name = "small"

class Numbers:
    name = "numbers"
    def __init__(self, folder, options):
        self.count = len(list(folder.iterdir()))
    def check(self):
        return CheckReport(self.name, {"images": self.count})

number = 7
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package of the page's code and more, with given entry points; all tables are as before afterwards."""
    monkeypatch.setattr(plugins, "_searched", set())
    for module, table in ((baselines, "METHODS"), (backbones, "BACKBONES"), (sources, "SOURCES")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))

    def install(entries):
        facts = tmp_path / "site" / "nsfse_residual-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: nsfse-residual\nVersion: 1.0\n")
        groups = (f"[nsfse.{group}]\n" + "\n".join(lines) + "\n" for group, lines in entries.items())
        (facts / "entry_points.txt").write_text("".join(groups))
        (facts.parent / "nsfse_residual.py").write_text(CODE + MORE)
        monkeypatch.syspath_prepend(facts.parent)

    return install


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return stop.value.code, *capsys.readouterr()


def test_a_package_of_six_lines_adds_a_method(install):
    install({"methods": [f"{NAME} = {VALUE}"]})
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 6
    assert method_settings("residual") == ["model.method=residual"]
    model = baselines.build_model(ModelConfig(method="residual", dim=8, text_share=1.0), 9)
    image, sentence = torch.eye(8)[:2], torch.eye(8)[2:4]
    torch.testing.assert_close(model.method(image, sentence), (image + sentence) / 2**0.5)


def test_backbones_and_data_sets_are_known_to_the_command_line(install, tmp_path, capsys):
    install({"backbones": ["small = nsfse_residual:Small"], "datasets": ["numbers = nsfse_residual:Numbers"]})
    assert backbones.get_backbone("small").name == "small"
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").touch()
    code, out, err = run(capsys, "data", "check", "numbers", str(tmp_path / "images"))
    assert (code, err) == (0, "") and "images" in out and "1" in out


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("broken = nsfse_residual:nothing", "AttributeError"),
        ("broken = nowhere_at_all:x", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("broken = nsfse_residual:number", "TypeError: it is neither"),
        ("shoes = nsfse_residual:Numbers", "its name is taken"),
        ("Broken = nsfse_residual:Numbers", "its name has capitals"),
    ],
)
def test_a_faulty_plugin_is_one_line_and_left_out(install, capsys, entry, reason):
    install({"datasets": [entry, "numbers = nsfse_residual:Numbers"]})
    before = dict(sources.SOURCES)
    with pytest.raises(UsageError, match="numbers"):
        sources.open_source("unknown")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"nsfse: plug-in {entry} of nsfse.datasets is left out: ")
    assert reason in err
    assert sources.SOURCES.keys() - before.keys() == {"numbers"} and sources.SOURCES["shoes"] == before["shoes"]
    with pytest.raises(UsageError):
        sources.open_source("unknown")
    assert capsys.readouterr().err == "", "it is said once"
