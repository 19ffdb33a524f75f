"""Deployment files hold to the program: options, routes, metrics, files. Linters run where there are any."""

import difflib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.server.routes import ROUTES
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import Metrics
from tests.documented import parse
from tests.serving import TOKEN, open_served, running

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
SECRET = "/run/secrets/nsfse_token"


def instructions(name):
    """Return a Dockerfile's stages, each a list of (instruction, rest)."""
    text = (DEPLOY / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages = []
    for word, rest in lines:
        if word == "FROM":
            stages.append([])
        if stages:
            stages[-1].append((word, " ".join(rest.split())))
    return stages


def rests(stage, word):
    return [rest for each, rest in stage if each == word]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_serves_as_nobody_and_only_with_a_token(name):
    build, final = instructions(name)
    assert rests(build, "FROM")[0].endswith(" AS build") and rests(build, "FROM")[0].startswith(rests(final, "FROM")[0])
    user = rests(final, "USER")
    assert len(user) == 1 and int(user[0].split(":")[0]) >= 1000 and f"--uid {user[0].split(':')[0]} " in str(final)
    order = [word for word, _ in final]
    assert order.index("USER") < order.index("ENTRYPOINT") and order.index("RUN") < order.index("USER")
    assert json.loads(rests(final, "ENTRYPOINT")[0]) == ["nsfse"] and rests(final, "STOPSIGNAL") == ["SIGTERM"]
    (command,) = rests(final, "CMD")
    arguments = parse(json.loads(command))
    assert arguments["token_file"] == Path(SECRET) and [str(arguments["port"])] == rests(final, "EXPOSE")
    assert all(str(Path(gallery).parent) in json.loads(rests(final, "VOLUME")[0]) for gallery in arguments["gallery"])
    with pytest.raises(ValueError, match="no token"):
        Settings(host=arguments["host"]).check()
    Settings(host=arguments["host"], token=TOKEN).check()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_holds_what_is_pinned_and_no_torch(name):
    build, final = instructions(name)
    (install,) = (rest for rest in rests(build, "RUN") if "pip install" in rest)
    extras = set(re.findall(r"\.\[([\w,]+)\]", install)[0].split(","))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert extras == {"serve", "gpu" if name.endswith("gpu") else "cpu"} and extras <= set(known)
    brought, todo = set(), list(extras)
    while todo:
        for need in known[todo.pop()]:
            todo += re.findall(r"\w+", need[len("nsfse") :]) if need.startswith("nsfse[") else []
            brought.add(re.split(r"[^\w-]", need)[0])
    assert brought.isdisjoint({"torch", "transformers", "onnx", "safetensors"}) and "starlette" in brought
    assert "--constraint constraints.txt" in install
    copied = {word for rest in rests(build, "COPY") for word in rest.split()[:-1]}
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert copied == {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / each).exists() for each in copied)
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["license-files"]) <= copied
    assert rests(final, "COPY") == ["--from=build /opt/nsfse /opt/nsfse"]


def test_the_images_differ_only_by_their_device():
    both = [(DEPLOY / name).read_text("utf-8").split("ARG ", 1)[1].splitlines() for name in DOCKERFILES]
    changed = "".join(line[1:] for line in difflib.ndiff(*both) if line[0] in "+-")
    assert set(re.findall(r"[A-Z_]{5,}", changed)) == {
        *("PYTHONUNBUFFERED", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HEALTHCHECK")
    }
    assert len(changed.split("\n")) == 1 and '"--device", "cuda"' in changed


def test_the_health_check_sees_whether_it_lives(tmp_path):
    checks = {rests(instructions(name)[1], "HEALTHCHECK")[0].partition("CMD ")[2] for name in DOCKERFILES}
    (command,) = map(json.loads, checks)
    path = re.search(r"http://127\.0\.0\.1:8000(/\w+)", command[2])[1]
    assert any(each.path == path for each in ROUTES) and command[0] == "python"

    def healthy(port):
        code = command[2].replace(":8000/", f":{port}/")
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200).returncode == 0

    with running(open_served(tmp_path, images=2), token=TOKEN) as server:
        port = server.port
        assert healthy(port)
    assert not healthy(port)


def test_compose_shows_the_service_to_this_machine_alone():
    found = pytest.importorskip("yaml").safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    assert set(found["services"]) == {"nsfse", "nsfse-gpu"}
    for service in found["services"].values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") and port.endswith(":8000") for port in service["ports"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["secrets"] == [Path(SECRET).name]
        assert "no-new-privileges:true" in service["security_opt"] and service["volumes"][0].endswith(":/data")
    assert list(found["secrets"]) == [Path(SECRET).name]
    assert found["services"]["nsfse-gpu"]["profiles"] == ["gpu"]


def unit():
    """Return the lines of the unit as (key, value)."""
    lines = (DEPLOY / "nsfse.service").read_text("utf-8").splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def test_the_unit_starts_what_there_is():
    found = dict(unit())
    program, *words = shlex.split(found["ExecStart"])
    arguments = parse(
        words[0:1] + [word.replace("%S", "/var/lib").replace("%d", "/run/credentials") for word in words[1:]]
    )
    assert program == "/opt/nsfse/bin/nsfse" and arguments["gallery"] == ["/var/lib/nsfse/shop.gallery"]
    assert found["LoadCredential"].split(":")[0] == arguments["token_file"].name and found["DynamicUser"] == "yes"
    assert found["StateDirectory"] == "nsfse" and arguments["shutdown_delay"] < int(found["TimeoutStopSec"])
    Settings(host=arguments["host"]).check()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    # The program lies elsewhere on this machine, and the page that it points to, too.
    text = (DEPLOY / "nsfse.service").read_text("utf-8").replace("/opt/nsfse/bin/nsfse", sys.executable)
    (tmp_path / "nsfse.service").write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "nsfse.service")]
    found = subprocess.run(verify, capture_output=True, text=True, timeout=200)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    secure = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager"]
    found = subprocess.run([*secure, str(tmp_path / "nsfse.service")], capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stdout[-500:]


def hadolint():
    return shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(hadolint() is None, reason="there is no hadolint here")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_no_fault(name):
    found = subprocess.run([hadolint(), str(DEPLOY / name)], capture_output=True, text=True, timeout=200)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def series():
    """Return the series that a server has after its first requests, and their labels."""
    metrics = Metrics()
    metrics.requests.labels("/v1/query", "200").inc()
    metrics.request_seconds.labels("/v1/query").observe(0.1)
    metrics.stage_seconds.labels("image").observe(0.1)
    metrics.images.labels("shop").set(1)
    found = {}
    for line in metrics.page().decode().splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}


def test_the_dashboard_uses_the_metrics_of_the_server():
    board, there = json.loads((DEPLOY / "grafana.json").read_text("utf-8")), series()
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = set()
    for expression in expressions:
        selectors = re.findall(r"(\w+)\{([^}]*)\}", expression)
        assert selectors, expression
        for name, labels in selectors:
            assert name in there, f"no metric {name}"
            used.add(name)
            # job and instance are Prometheus's own, put there when it reads the page.
            assert set(re.findall(r"(\w+)[=!]", labels)) <= there[name] | {"job", "instance"}, expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert all(set(labels.split(", ")) <= there[name] for name, _ in selectors), expression
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in there if name.startswith("nsfse_")}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in used if name.startswith("nsfse_")}
    assert shown == families, "a metric that nobody looks at"
    assert any(re.fullmatch(r"/v1/query.*", each.public_path) for each in ROUTES)


def test_the_dashboard_has_a_place_for_each_panel():
    board = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    names = {each["name"] for each in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval", "__all"}
    assert used == names
