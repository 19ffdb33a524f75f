"""Deployment files hold to the program: options, routes, metrics, files. Linters run where there are any."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.inference.tensorrt.pack import pack_folder
from nsfse_runtime.server.routes import ROUTES
from nsfse_runtime.server.settings import Settings, named_galleries
from nsfse_runtime.server.telemetry import Metrics
from nsfse_runtime.stores.open import gallery_name, is_store_url
from tests.documented import parse
from tests.proxies import before_replicas, path_of
from tests.serving import PATIENCE, TOKEN, open_served, running

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
IMAGES = {  # by Dockerfile and target: the extras it holds
    ("Dockerfile", ""): {"cpu", "serve", "postgres"},
    ("Dockerfile.gpu", ""): {"gpu", "serve"},
    ("Dockerfile.gpu", "engines"): {"cpu", "serve", "trt-rtx"},
}
HASHED = dict(zip(IMAGES, (f"deploy/requirements{each}.txt" for each in ("", "-gpu", "-engines")), strict=True))
SECRET = "/run/secrets/nsfse_token"


def stages(name):
    """Return a Dockerfile's stages by name, each a list of (instruction, rest); the last is the default, ""."""
    text = (DEPLOY / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for word, rest in lines:
        if word == "FROM":
            stage = found.setdefault(rest.partition(" AS ")[2], [])
        if found:
            stage.append((word, " ".join(rest.split())))
    assert list(found)[-1] == "", "the default has no name"
    return found


def whole(found, name):
    """Return the instructions of a stage after those of the stages that it starts from."""
    (_, base), *rest = found[name]
    base = base.partition(" AS ")[0]
    return [*(whole(found, base) if base in found else [("FROM", base)]), *rest]


def image(name, target):
    """Return the instructions of the stage that builds an image's packages, and those of the image."""
    found = stages(name)
    final = whole(found, target)
    (build,) = {re.match(r"--from=([\w-]+) ", rest)[1] for rest in rests(final, "COPY")}
    return whole(found, build), final


def rests(stage, word):
    return [rest for each, rest in stage if each == word]


def environment(stage):
    return dict(each.split("=", 1) for rest in rests(stage, "ENV") for each in rest.split())


def command(stage):
    """Return the default arguments of an image, as nsfse parses them."""
    (words,) = rests(stage, "CMD")
    return parse(json.loads(words))


def test_every_stage_that_serves_is_an_image_tested_here():
    serving = {(name, stage) for name in DOCKERFILES for stage, steps in stages(name).items() if rests(steps, "CMD")}
    assert serving == set(IMAGES)


@pytest.mark.parametrize(("name", "target"), IMAGES)
def test_an_image_serves_as_nobody_and_only_with_a_token(name, target):
    build, final = image(name, target)
    assert rests(build, "FROM") == rests(final, "FROM") == ["python:${PYTHON}"]
    user = rests(final, "USER")
    assert len(user) == 1 and int(user[0].split(":")[0]) >= 1000 and f"--uid {user[0].split(':')[0]} " in str(final)
    order = [word for word, _ in final]
    assert order.index("USER") < order.index("ENTRYPOINT") and "RUN" not in order[order.index("USER") :]
    assert json.loads(rests(final, "ENTRYPOINT")[0]) == ["nsfse"] and rests(final, "STOPSIGNAL") == ["SIGTERM"]
    arguments = command(final)
    assert arguments["token_file"] == Path(SECRET) and [str(arguments["port"])] == rests(final, "EXPOSE")
    assert all(str(Path(gallery).parent) in json.loads(rests(final, "VOLUME")[0]) for gallery in arguments["gallery"])
    with pytest.raises(ValueError, match="no token"):
        Settings(host=arguments["host"]).check()
    Settings(host=arguments["host"], write_tokens=(TOKEN,)).check()


@pytest.mark.parametrize(("name", "target"), IMAGES)
def test_an_image_holds_what_is_pinned_and_no_torch(name, target):
    build, final = image(name, target)
    (install,) = (rest for rest in rests(build, "RUN") if "pip install" in rest)
    extras = set(re.findall(r"\.\[([\w,-]+)\]", install)[0].split(","))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert extras == IMAGES[name, target] and extras <= set(known)
    brought, todo = set(), list(extras)
    while todo:
        for need in known[todo.pop()]:
            todo += re.findall(r"\w+", need[len("nsfse") :]) if need.startswith("nsfse[") else []
            brought.add(re.split(r"[^\w-]", need)[0])
    assert brought.isdisjoint({"torch", "transformers", "onnx", "safetensors"}) and "starlette" in brought
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    assert "--constraint constraints.txt" in install and brought - pinned <= {"nsfse", "onnxruntime-gpu"}
    copied = {word for rest in rests(build, "COPY") if "--from" not in rest for word in rest.split()[:-1]}
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert copied | set(HASHED.values()) == {line[1:] for line in allowed if line.startswith("!")}
    file = HASHED[name, target]
    assert file in copied and f"--require-hashes -r {file} " in install and " --no-deps " in install
    assert brought - {"nsfse"} <= set(hashed(file))
    assert all((ROOT / each).exists() for each in copied)
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["license-files"]) <= copied
    assert re.fullmatch(r"--from=[\w-]+ /opt/nsfse /opt/nsfse", rests(final, "COPY")[0])


def hashed(file):
    """Return the versions of what is installed by hash."""
    text = (ROOT / file).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    return dict(re.match(r"([\w-]+)==(\S+)", line).groups() for line in lines)


@pytest.mark.parametrize("file", HASHED.values())
def test_what_is_installed_by_hash_is_what_is_pinned(file):
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    found = hashed(file)
    elsewhere = {name for name in set(found) - set(pinned) if not name.startswith("nvidia-")}
    of_gpus = {"onnxruntime-gpu", "cuda-bindings", "cuda-pathfinder", "tensorrt-rtx-cu13"}
    assert elsewhere - of_gpus <= {"httpx2-jsfetch"}  # for browsers alone
    assert {name: pinned[name] for name in set(found) & set(pinned)}.items() <= found.items()
    assert "torch" not in found


def test_the_images_differ_only_by_their_device():
    (_, cpu), (_, cuda), (_, engines) = (image(*each) for each in IMAGES)
    for other, device, bundle in ((cuda, "cuda", None), (engines, "tensorrt", Path("/opt/bundle"))):
        assert {word for word, _ in set(cpu) ^ set(other)} <= {"ENV", "HEALTHCHECK", "COPY", "CMD"}
        assert command(other) == command(cpu) | {"device": device, "bundle": bundle}
    gpu = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    assert environment(cuda).keys() ^ environment(cpu).keys() == gpu
    assert environment(engines).keys() ^ environment(cpu).keys() == {*gpu, "XDG_CACHE_HOME"}
    assert rests(cuda, "COPY") == ["--from=build /opt/nsfse /opt/nsfse"] == rests(cpu, "COPY")


def test_an_image_has_the_engines_of_its_bundle_in_the_cache_of_its_user():
    build, final = image("Dockerfile.gpu", "engines")
    (prepare,) = (rest for rest in rests(build, "RUN") if "--trt" in rest)
    prepare = re.sub(r'"\$\{CAPABILITIES:\?[^}]*\}"', "8.9,12.0", prepare)
    assert rests(build, "ARG") == ["CAPABILITIES"] and "$" not in prepare
    export, add, *_ = (parse(shlex.split(each)[1:]) for each in prepare.split(" && ")[:2])
    bundle = command(final)["bundle"]
    assert export["run"] == bundle and add["pack"] == pack_folder(bundle) and not add["trust"]
    assert f"--from=bundle . {bundle}" in rests(build, "COPY") and stages("Dockerfile.gpu")["bundle"][1:] == []
    cache = environment(build)["XDG_CACHE_HOME"]
    assert cache == environment(final)["XDG_CACHE_HOME"]
    assert rests(final, "COPY")[1:] == [
        f"--from=build-engines {bundle} {bundle}",
        f"--from=build-engines --chown={rests(final, 'USER')[0]} {cache}/nsfse {cache}/nsfse",
    ]


def test_the_health_check_sees_whether_it_lives(tmp_path):
    checks = {rests(image(*each)[1], "HEALTHCHECK")[0].partition("CMD ")[2] for each in IMAGES}
    (check,) = map(json.loads, checks)
    path = re.search(r"http://127\.0\.0\.1:8000(/\w+)", check[2])[1]
    assert any(each.path == path for each in ROUTES) and check[0] == "python"

    def healthy(port):
        code = check[2].replace(":8000/", f":{port}/")
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200).returncode == 0

    with running(open_served(tmp_path, images=2), token=TOKEN) as server:
        port = server.port
        assert healthy(port)
    assert not healthy(port)


def test_compose_shows_the_service_to_this_machine_alone():
    found = pytest.importorskip("yaml").safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    assert set(found["services"]) == {"nsfse", "nsfse-gpu", "nsfse-engines"}
    for service in found["services"].values():
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") and port.endswith(":8000") for port in service["ports"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["secrets"] == [Path(SECRET).name]
        assert "no-new-privileges:true" in service["security_opt"] and service["volumes"][0].endswith(":/data")
    assert list(found["secrets"]) == [Path(SECRET).name]
    assert found["services"]["nsfse-gpu"]["profiles"] == ["gpu"]
    engines = found["services"]["nsfse-engines"]
    assert engines["profiles"] == ["engines"] and engines["pull_policy"] == "never" and "build" not in engines
    assert f"-t {engines['image']} --target engines" in (DEPLOY / "Dockerfile.gpu").read_text("utf-8")


def test_two_services_search_one_database():
    found = pytest.importorskip("yaml").safe_load((DEPLOY / "compose.postgres.yaml").read_text("utf-8"))
    services = found["services"]
    assert set(services) == {"search-1", "search-2", "index", "proxy", "database"}
    assert services["search-1"] == services["search-2"] and services["index"]["profiles"] == ["index"]
    serve = parse([re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in services["search-1"]["command"]])
    ((name, url),) = named_galleries(serve["gallery"]).items()
    assert name == gallery_name(url) == "shop" and serve["per_client"] == 0
    index = parse(services["index"]["command"])
    assert index["gallery"] == url and index["bundle"] == serve["bundle"]
    assert [name for name, each in services.items() if "ports" in each] == ["proxy"]
    (port,) = services["proxy"]["ports"]
    assert port.startswith("127.0.0.1:") and (DEPLOY / services["proxy"]["volumes"][0].split(":")[0]).is_file()
    for each in (services["search-1"], services["proxy"]):
        assert each["read_only"] and each["cap_drop"] == ["ALL"]
    assert set(found["secrets"]) == {secret for each in services.values() for secret in each.get("secrets", ())}


def manifests():
    return list(pytest.importorskip("yaml").safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))


def test_kubernetes_knows_every_field():
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for each in manifests():
        validator.validate(each, validator.latest_version(), strict=True)
    wrong = manifests()[1]
    wrong["spec"]["replica"] = 2
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, validator.latest_version(), strict=True)


def test_pods_start_what_there_is_and_are_closed():
    settings, deployment, service, budget, policy = manifests()
    label = {"app.kubernetes.io/name": "nsfse"}
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = [f"--{name.removeprefix('NSFSE_SERVE_').lower().replace('_', '-')}" for name in settings["data"]]
    given = [word for pair in zip(options, settings["data"].values(), strict=True) for word in pair]
    serve = parse([*container["args"], *given])
    (url,) = named_galleries(serve["gallery"]).values()
    assert is_store_url(url) and serve["shutdown_delay"] < pod["terminationGracePeriodSeconds"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(serve["token_file"].parent), "/data", "/tmp"} <= mounted and str(serve["bundle"]).startswith("/data/")
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    for probe in probes:
        assert any(each.path == probe["path"] for each in ROUTES)
        (header,) = probe["httpHeaders"]
        assert header["name"] == "Host" and header["value"] in Settings().hosts
    for each in (container, *pod["initContainers"]):
        closed = each["securityContext"]
        assert closed["readOnlyRootFilesystem"] and closed["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    selectors = [
        *(each["spec"]["selector"]["matchLabels"] for each in (deployment, budget)),
        service["spec"]["selector"],
        policy["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(each == label for each in selectors) and deployment["spec"]["replicas"] > budget["spec"]["minAvailable"]


@pytest.mark.skipif(path_of("nginx") is None, reason="there is no nginx here")
def test_when_one_service_ends_the_other_answers(tmp_path):
    query = json.dumps({"reference_ids": ["shelf00/item0001.png"], "texts": ["make it red"]}).encode()

    def answered_by(address):
        request = urllib.request.Request(f"{address}/v1/query", query, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.load(reply)["gallery"]

    with ExitStack() as stack:
        second = stack.enter_context(running(open_served(tmp_path, "b", 4)))
        with running(open_served(tmp_path, "a", 4)) as first:
            address = stack.enter_context(before_replicas(tmp_path, first.port, second.port))
            assert answered_by(address) in ("a", "b")
        assert {answered_by(address) for _ in range(8)} == {"b"}


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
