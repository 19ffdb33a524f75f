"""The command line's own behaviour: what it imports, how it fails, how it prints."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import nsfse
from nsfse.cli import app, errors
from nsfse.cli.gallery_reports import index_text
from nsfse.cli.reports import query_text
from nsfse_runtime import open_model
from nsfse_runtime.errors import IntegrityError, NotFoundError, VersionError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.retrieval.retriever import Hit, Result, WordEvidence
from tests.documented import parse
from tests.galleries import save_image

BUNDLE = Path(__file__).parents[2] / "golden" / "bundle"
HEAVY = ("numpy", "torch", "PIL", "onnxruntime", "tokenizers", "rich")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_help_imports_nothing_heavy():
    code = f"import sys, nsfse.cli.app; sys.exit(' '.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    path = f"import sys; sys.path[:0] = {[entry for entry in sys.path if entry]}; "
    found = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_bare_nsfse_is_a_tour_of_five_lines(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 5
    assert "nsfse demo" in out


def test_the_version_is_printed(capsys):
    for option in ("-V", "--version"):
        assert run(capsys, option) == (0, f"nsfse {nsfse.__version__}\n", "")


def command_names(command, name=()):
    below = getattr(command, "commands", {})
    return [path for word, inner in below.items() for path in command_names(inner, (*name, word))] or [name]


def test_every_help_has_examples_that_the_program_parses(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    names = command_names(typer.main.get_command(app.app))
    assert ("query",) in names and ("bench", "speed") in names
    for name in names:
        shown = run(capsys, *name, "--help")[1].partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
        assert shown, name
        for line in shown:
            program, *words = shlex.split(line)
            assert (program, *words[: len(name)]) == ("nsfse", *name)
            parse(words)


def test_help_is_as_wide_as_the_terminal_and_says_the_form_of_values(capsys, monkeypatch):
    widths = {}
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = run(capsys, "query", "--help")[1]
        assert "--where COLUMN=VALUE" in out and "--provider-option KEY=VALUE" in out and "list[" not in out
        widths[columns] = max(map(len, out.splitlines()))
    assert 70 < widths[80] <= 80 < widths[120] <= 120


@pytest.mark.parametrize(("typed", "completed"), [("nsfse que", "query"), ("nsfse query --wh", "--where")])
def test_a_shell_completes_commands_and_options(capsys, monkeypatch, typed, completed):
    monkeypatch.setenv("_NSFSE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert run(capsys) == (0, f"{completed}\n", "")


def test_every_command_explains_itself(capsys):
    for command in (*NAMES, "data", "bench"):
        code, out, err = run(capsys, command, "--help")
        assert (code, err) == (0, "")
        assert f"nsfse {command}" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["qurey"], 2, "No such command 'qurey'"),
        (["query", "a.jpg"], 3, "no gallery here; make one with: nsfse index FOLDER"),
        (["index", "nowhere"], 3, "no folder at nowhere"),
        (["query", "a.jpg", "red", "-g", "g", "--balance", "2"], 2, "--balance"),
        (["query", "a.jpg", "red", "-g", "g", "-k", "0"], 2, "-k"),
        (["query", "a.jpg", "red", "-g", "nowhere.gallery"], 3, "no gallery at nowhere.gallery"),
        (["index", "new.gallery", ".", "-b", "nowhere"], 3, "nowhere"),
        (["info", "nowhere"], 3, "there is nothing at nowhere"),
        (["info", "."], 3, ". is no run, bundle or gallery"),
        (
            ["query", "a.jpg", "make", "it", "red", "-g", "g"],
            2,
            'put a text of several words into quotes: "make it red"',
        ),
        (["query", "-dash.jpg", "red", "-g", "g"], 2, "write ./ before a file name that begins with a dash"),
        (["query", "a.jpg", "red", "-g", "."], 2, ". is a folder, not a gallery"),
        (["query", "a.jpg", "red", "-g", str(BUNDLE)], 2, "is a bundle, not a gallery; name it with -b"),
        (
            ["index", ".", "my.gallery", "-b", str(BUNDLE)],
            2,
            "comes first: nsfse index GALLERY FOLDER",
        ),
        (["train", "-o", "run", "--preset", "nope"], 2, "no preset 'nope'; there are: demo"),
        (["evaluate", "nowhere", "."], 3, "nowhere is neither a checkpoint nor a bundle"),
        (["evaluate", "m", "d", "--mode", "guess"], 2, "composed"),
        (["train", "-o", "run", "--preset", "drawn-esay"], 2, "no preset 'drawn-esay'"),
        (["train", "-o", "run", "--set", "train.epohcs=3"], 3, "epochs"),
        (["train", "-o", "run", "--set", "nonsense"], 2, "section.key=value"),
        (["train", "-o", "run", "--config", "nowhere.toml"], 3, "nowhere.toml"),
        (["data", "check", "fashionjq", "."], 2, "fashionjq"),
        (["bench", "accuracy", "-o", "t", "--methods", "nsfse:gama=0"], 2, "gamma=NUMBER"),
        (["bench", "accuracy", "-o", "t", "--methods", "tirg:gamma=0"], 2, "no method 'tirg:gamma=0'"),
        (["bench", "accuracy", "-o", "t", "--protocols", "photos"], 2, "drawn-easy"),
        (["bench", "accuracy", "-o", "t", "--protocols", "products-instance"], 2, "--data products=DIR"),
        (["bench", "accuracy", "-o", "t", "--data", "products"], 2, "NAME=DIR"),
        (["data", "check", "cirr", "nowhere"], 3, "nowhere"),
        (["demo", "--train", "--port", "8000"], 2, "--port and --no-browser are of the page"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(capsys, monkeypatch, tmp_path, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert err.startswith("nsfse: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotFoundError("no x; give y"), 3, "no x; give y"),
        (VersionError("newer"), 4, "newer"),
        (IntegrityError("damaged"), 5, "damaged"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, 'pip install "nsfse[train]"'),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx.helper"), 2, 'pip install "nsfse[export]"'),
        (ModuleNotFoundError("No module named 'x'", name="nsfse.x"), 1, "this is a bug"),
        (PermissionError(13, "Permission denied", "/a/b"), 3, "Permission denied: /a/b"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero - this is a bug"),
    ],
)
def test_each_error_has_its_line_and_code(error, code, words):
    message, found = errors.explain(error)
    assert found == code
    assert words in message


def test_an_unexpected_error_is_one_line_unless_debugging(capsys, monkeypatch):
    def fail(path):
        raise ZeroDivisionError("odd\nand even")

    monkeypatch.setattr("nsfse.cli.info.describe", fail)
    monkeypatch.delenv("NSFSE_DEBUG", raising=False)
    code, _, err = run(capsys, "info", "x")
    assert (code, err.count("\n")) == (1, 1)
    assert "Traceback" not in err
    monkeypatch.setenv("NSFSE_DEBUG", "1")
    assert "Traceback" in run(capsys, "info", "x")[2]


def found(*confidences, matches=None):
    evidence = (WordEvidence("red", 0.5, True, 1.0),)
    hits = (Hit(f"{at}.png", "", 1.0, (c or 0) >= 0.5, evidence, c) for at, c in enumerate(confidences))
    return Result(hits=tuple(hits), has_match=matches, timings_ms={"total": 7.2})


def test_a_query_says_how_confident_it_is_and_when_nothing_matches():
    assert query_text(found(0.914, 0.2, matches=True)).splitlines() == [
        "rank  score  match     id     words",
        "   1   1.00  yes 0.91  0.png  red+",
        "   2   1.00  no  0.20  1.png  red+",
        "7 ms",
    ]
    assert query_text(found(0.1, matches=False)).splitlines()[2:] == ["nothing here matches", "7 ms"]
    assert query_text(found(None)).splitlines()[1:] == ["   1   1.00  no     0.png  red+", "7 ms"]
    said = [query_text(found(matches=matches)) for matches in (None, False, True)]
    assert said[:2] == ["no image in the gallery fits these conditions", "nothing here matches"]
    assert "lower --min-confidence" in said[2]


@pytest.fixture
def gallery(tmp_path):
    """A gallery of two images in the folder `images` beside it."""
    for name, seed in (("a.png", 1), ("b.png", 2)):
        save_image(tmp_path / "images" / name, seed)
    model = open_model(BUNDLE, "cpu")
    with Gallery.open(tmp_path / "my.gallery", model, create=True) as opened:
        opened.sync(tmp_path / "images", model)
    return tmp_path / "my.gallery"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "red"], "an image is not read from stdin"),
        (["https://example.com/a.jpg", "red"], "an image is not fetched from a URL"),
        (["file:///a.jpg", "red"], "an image is not fetched from a URL"),
        (["data:image/png;base64,AAAA", "red"], "an image is not fetched from a URL"),
        (["a.png", "red", "--and-like", "ftp://example.com/b.png"], "an image is not fetched from a URL"),
        (["a.png", "red", "--exclude-image", "-"], "an image is not read from stdin"),
        ([], "a query needs an image or a text"),
        (["a.png", "red", "--text", "blue"], "the text is given twice, as 'red' and as --text 'blue'"),
        (["--text", "red", "--min-confidence", "0.5"], "confidence"),
    ],
)
def test_what_is_no_reference_image_is_named(capsys, gallery, arguments, words):
    code, out, err = run(capsys, "query", *arguments, "-g", str(gallery))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "count", "note"),
    [
        (["red bag"], 2, 'no image is called red bag, so it is read as words, as with --text "red bag"'),
        (["--text", "red"], 2, ""),
        (["--text", "red", "--exclude-image", "a.png"], 1, ""),
        (["--text", "red", "--exclude-text", "green"], 2, ""),
        (["a.png"], 1, ""),
        (["a"], 1, 'a is read as the image a.png; for words: --text "a"'),
        (["a.png", "--text", "red"], 1, ""),
    ],
)
def test_words_alone_and_an_image_alone(capsys, gallery, arguments, count, note):
    code, out, err = run(capsys, "query", *arguments, "-g", str(gallery), "--json")
    assert (code, err) == (0, f"nsfse: {note}\n" if note else "")
    assert len(json.loads(out)["hits"]) == count


def test_a_file_that_is_not_there_is_no_text(capsys, gallery):
    code, out, err = run(capsys, "query", "c.png", "-g", str(gallery))
    assert (code, out, err.count("\n")) == (3, "", 1) and "c.png is neither a file nor an image of the gallery" in err


def test_a_sheet_of_words_alone_has_no_reference(capsys, gallery, tmp_path):
    sheets = ["--png", str(tmp_path / "s.png"), "--html", str(tmp_path / "s.html")]
    assert run(capsys, "query", "--text", "red", "-g", str(gallery), *sheets)[0] == 0
    assert "the reference image" not in (tmp_path / "s.html").read_text("utf-8") and (tmp_path / "s.png").exists()


def test_a_folder_that_was_moved_is_named_with_the_way_on(capsys, gallery, tmp_path):
    (tmp_path / "images").rename(tmp_path / "moved")
    code, _, err = run(capsys, "query", "a.png", "red", "-g", str(gallery), "--html", str(tmp_path / "page.html"))
    assert (code, err.count("\n")) == (3, 1)
    assert f"nsfse index {gallery} NEW_FOLDER" in err


def test_an_index_says_how_fast_on_what_and_what_its_search_misses():
    names = ("added", "updated", "renamed", "removed", "unchanged", "encoded")
    report = dict.fromkeys(names, 0) | {"failed": [], "unmatched": [], "ann": None}
    assert index_text(report).count("\n") == 0
    report |= {"encoded": 30, "images_per_second": 45.26, "device": "cuda"}
    assert index_text(report).splitlines()[1:] == ["45.3 images/s on cuda"]
    for recall, said in ((0.996, "its index finds 99.6 % of the best 100"), (0.8, "too few: it is searched exactly")):
        assert said in index_text(report | {"ann": {"recall": recall}}).splitlines()[2]
    report |= {"metadata_changed": 4, "columns_changed": {"label": 1, "price": 3}, "metadata_kept": 1}
    assert index_text(report).splitlines()[2:] == [
        "metadata changed: 4 images (label 1, price 3)",
        "metadata kept: 1 image that no row of the table names",
    ]


def test_ctrl_c_exits_with_130(capsys, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("nsfse.cli.info.describe", stop)
    code, out, err = run(capsys, "info", "x")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_names_cannot_steer_the_terminal(capsys, monkeypatch):
    name = "a\x1b[31m\n\u202egpj.exe\udcff"
    monkeypatch.setattr("nsfse.cli.info.describe", lambda path: {"kind": "gallery", "path": name})
    code, out, _ = run(capsys, "info", "x")
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b[31m\\n\\u202egpj.exe\\udcff" in out
    code, out, _ = run(capsys, "info", "x", "--json")
    assert json.loads(out)["path"] == name
    assert out.isascii()
    assert "\x1b" not in out


def test_a_reader_that_leaves_is_no_error():
    path = f"import sys; sys.path[:0] = {[entry for entry in sys.path if entry]}; "
    code = path + "from nsfse.cli.app import main; main(['--help'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode in (0, 141)


def test_doctor_tells_no_home_path_unless_asked(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert report["schema_version"] == 2
    assert (code == 0) == (report["problems"] == [])
    assert str(Path(sys.executable).parent) not in out
    assert report["checks"]["decode an image"].startswith("ok")
    assert str(Path(sys.executable)) in run(capsys, "doctor", "--json", "--full")[1]


def test_doctor_says_which_image_formats_are_not_read(monkeypatch):
    from nsfse.cli import doctor

    monkeypatch.setattr(doctor, "missing_formats", lambda: {"HEIC": 'pip install "nsfse[heic]"'})
    formats = doctor.collect()["image formats"]
    assert formats["JPEG"] == formats["AVIF"] == "ok" and formats["HEIC"] == 'missing: pip install "nsfse[heic]"'


def test_doctor_sees_the_clash_of_both_onnx_runtimes(monkeypatch):
    from nsfse.cli import doctor

    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.0" if name.startswith("onnxruntime") else None)
    assert any("overwrite each other" in problem for problem in doctor.collect()["problems"])


def test_doctor_names_what_each_way_to_a_gpu_lacks(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from nsfse.cli import doctor
    from nsfse_runtime.inference import devices

    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: None)
    found = doctor.accelerators(["CPUExecutionProvider"])
    assert "nsfse[gpu]" in found["CUDA in ONNX Runtime"] and "built without it" in found["TensorRT in ONNX Runtime"]
    assert found["TensorRT engines"].startswith("missing: neither TensorRT nor TensorRT for RTX is installed; run: pip")

    # as of onnxruntime-gpu 1.31: its provider is linked with TensorRT 10, and pip brings 11
    (tmp_path / "capi").mkdir()
    provider = tmp_path / "capi" / devices.PROVIDER_LIBRARIES[devices.TENSORRT]
    provider.write_bytes(b"\x7fELF..libcudart.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    starts = {}
    monkeypatch.setattr(devices, "resolve_device", lambda provider: starts.setdefault("provider", provider))
    for here, expected in (
        (
            "11.4.0.106",
            "missing: it needs libnvinfer.so.10, and tensorrt here is 11.4.0.106; pip install tensorrt==10.*",
        ),
        ("10.16.1.11", "ok, linked with TensorRT 10, tensorrt 10.16.1.11"),
        (None, "ok, linked with TensorRT 10, tensorrt not from pip"),
    ):
        monkeypatch.setattr(doctor, "installed_version", lambda name, here=here: here if name == "tensorrt" else None)
        assert doctor._tensorrt_provider([devices.TENSORRT]) == expected
    assert starts == {"provider": devices.TENSORRT} and doctor.linked_major(tmp_path / "none.so") == ""


def test_doctor_says_whether_tensorrt_for_rtx_goes_with_onnx_runtime(monkeypatch):
    from nsfse.cli import doctor
    from nsfse_runtime.errors import UsageError
    from nsfse_runtime.inference import devices

    def found(**versions):
        known = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor, "installed_version", known.get)
        return doctor._tensorrt_rtx_provider()

    starts = []
    monkeypatch.setattr(devices, "resolve_device", lambda provider: starts.append(provider))
    plugin = {"onnxruntime_ep_nv_tensorrt_rtx_cu13": "0.5.0"}
    assert found() == (
        "missing: pip install onnxruntime-ep-nv-tensorrt-rtx, then "
        "--provider NvTensorRTRTXExecutionProvider=onnxruntime_ep_nv_tensorrt_rtx"
    )
    assert "here is onnxruntime-gpu 1.31.1; pip uninstall that" in found(**plugin, onnxruntime_gpu="1.31.1")
    assert "needs onnxruntime 1.24, and here is 1.9.0; pip install -U" in found(**plugin, onnxruntime="1.9.0")
    assert starts == []
    assert found(**plugin, onnxruntime="1.32.0") == "ok, plug-in 0.5.0 with onnxruntime 1.32.0"
    assert starts == ["NvTensorRTRTXExecutionProvider=onnxruntime_ep_nv_tensorrt_rtx"]

    def refuse(provider):
        raise UsageError("it does not load (libcuda.so.1); nsfse doctor shows what is missing")

    monkeypatch.setattr(devices, "resolve_device", refuse)
    assert found(onnxruntime_ep_nv_tensorrt_rtx_cu12="0.5.0", onnxruntime="1.24.4") == (
        "missing: it does not load (libcuda.so.1) (plug-in 0.5.0 with onnxruntime 1.24.4)"
    )


def test_options_of_a_provider_are_key_and_value(capsys):
    pytest.importorskip("onnxruntime")
    for command in (
        ["index", "g", "p"],
        ["query", "a", "red", "-g", "g"],
        ["evaluate", str(BUNDLE), "q"],
        ["serve", "-g", "g"],
    ):
        given = [*command, "--provider", "CPUExecutionProvider", "--provider-option", "device_id"]
        code, out, err = run(capsys, *given)
        assert (code, out, err.count("\n")) == (2, "", 1) and "takes KEY=VALUE, not 'device_id'" in err
        code, out, err = run(capsys, *command, "--provider-option", "device_id=1")
        assert (code, out, err.count("\n")) == (2, "", 1) and "goes with --provider NAME" in err


def test_a_gpu_that_is_asked_for_and_is_not_there(capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    for command in (["index", "g", "p"], ["query", "a", "red", "-g", "g"], ["evaluate", str(BUNDLE), "q"]):
        code, out, err = run(capsys, *command, "--device", "cuda")
        assert (code, out, err.count("\n")) == (2, "", 1) and "no CUDAExecutionProvider here" in err
        assert run(capsys, *command, "--device", "cpu", "--provider", "CPUExecutionProvider")[0] == 2
        code, out, err = run(capsys, *command, "--device", "auto")
        assert (code, out) == (3, "")
        assert "running on the CPU" in err.splitlines()[0] and len(err.splitlines()) == 2


def test_the_reference_page_is_what_help_says(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text("utf-8")
    for words in ([], *([name] for name in NAMES), ["data", "draw"], ["data", "check"], ["bench", "accuracy"]):
        text = run(capsys, *words, "--help")[1].strip()
        assert text in page, f"docs/cli.md is old at `nsfse {' '.join(words)}`; run docs/write_cli.py"


@pytest.fixture
def one_photo(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "photos" / "a.png", 1)


def test_a_folder_alone_is_indexed_beside_itself_by_the_model_in_the_package(capsys, one_photo, monkeypatch, tmp_path):
    code, out, err = run(capsys, "index", "photos/")
    assert code == 0 and out.startswith("1 added")
    assert "the gallery is photos.gallery" in err and "the package's own model of photos of clothes" in err
    for folder in (tmp_path, tmp_path / "photos"):
        monkeypatch.chdir(folder)
        code, out, _ = run(capsys, "query", "red dress", "--json")
        assert code == 0 and [hit["id"] for hit in json.loads(out)["hits"]] == ["a.png"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.gallery").write_bytes(b"x")
    code, out, err = run(capsys, "query", "red dress")
    assert (code, out) == (2, "") and "name one with -g: other.gallery, photos.gallery" in err


NAMES = ("train", "import-clip", "export", "index", "query", "serve", "evaluate", "reproduce", "info", "doctor", "demo")
