"""Whatever stands in a data file: an error of ours, or success; never another exception."""

import copy
import json
import random
import tomllib

import pytest

from nsfse.data.registry import open_source
from nsfse.data.text import template_file
from nsfse_runtime.errors import NsfseError
from tests.unit.data.data_folders import FOLDERS, table_csv

ODD = [
    *(
        None,
        True,
        False,
        0,
        -1,
        7,
        10**30,
        1.5,
        -0.0,
        1e308,
        "",
        " ",
        "x",
        "B0",
        "\ud83d",
        "\u2028",
        "\0",
        "a/b",
        "../a",
    ),
    *([], {}, [[]], [None], [0], ["x"], {"a": None}, {"": 1}, {"members": []}, [["x"]], "x" * 3000, "a\nb", "\ufeff"),
]
ODD_TEXT = [
    *(
        "",
        " ",
        "\t",
        ",",
        ";",
        '"',
        "\n",
        "\r",
        "\0",
        "\u2028",
        "\ufeff",
        "<html>",
        "x" * 200_000,
        "é",
        "{",
        "[",
        "null",
    ),
    *("\x0b", "'", "..", "/", "\\", "a\tb\tc", "-1", "NaN", "\udcff"),
]


def places(value, path=()):
    """Yield the path of every part of a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def changed(value, rng):
    """Return a JSON value with one part replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    path = rng.choice([path for path in places(value) if path] or [()])
    if not path:
        return rng.choice(ODD)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    way = rng.random()
    if way < 0.7:
        parent[path[-1]] = copy.deepcopy(rng.choice(ODD))
    elif way < 0.85 or isinstance(parent, list):
        del parent[path[-1]]
    else:
        parent[rng.choice(["x", "", "id", "B0"])] = parent.pop(path[-1])
    return value


def spoiled(file, rng):
    """Return the bytes of a data file with something wrong in it."""
    text = file.read_text(encoding="utf-8")
    if rng.random() < 0.15 or file.suffix in (".txt", ".csv"):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(ODD_TEXT) + text[at + rng.randrange(4) :]
        return text.encode("utf-8", "surrogatepass")
    if file.suffix == ".json":
        return json.dumps(changed(json.loads(text), rng)).encode()
    lines = text.splitlines()
    row = rng.randrange(len(lines))
    lines[row] = json.dumps(changed(json.loads(lines[row]), rng))
    return "\n".join(lines).encode()


@pytest.mark.parametrize("name", [*FOLDERS, "table_csv"])
def test_only_our_errors_come_from_a_spoiled_file(name, tmp_path):
    folder = FOLDERS.get(name, table_csv)(tmp_path)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".txt", ".csv"))
    rng = random.Random(name)
    reader, options = name.removesuffix("_csv"), {"triplets": 20} if name == "catalogue" else {}
    good = 0
    for number in range(40 if name == "catalogue" else 200):  # its phrasings are read anew each time
        file = rng.choice(files)
        before = file.read_bytes()
        file.write_bytes(content := spoiled(file, rng))
        try:
            source = open_source(reader, folder, **options)
            for split in ("train", "val", "test"):
                source.protocols(split)
            source.triplets(0)
            for line in (*map(str, source.check().faults), *getattr(source, "left_out", ())):
                line.encode()
            good += 1
        except NsfseError as error:
            assert "\n" not in str(error)
        except Exception as error:  # say what was in the file
            pytest.fail(f"{name} {number} {file.name}: {type(error).__name__}: {error}: {content[:300]!r}")
        finally:
            file.write_bytes(before)
    assert 0 < good < 200


def test_only_value_errors_come_from_spoiled_phrasings():
    rng, refused = random.Random("phrasings"), 0
    tree = tomllib.loads((template_file.FOLDER / "de.toml").read_text("utf-8"))
    for _ in range(200):
        try:
            template_file._read(dict(changed(tree, rng) or {}), "x", ("value", "double"))
        except ValueError:  # load_templates names the file
            refused += 1
    assert 0 < refused < 200
