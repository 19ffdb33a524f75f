"""Annotation files that are JSON, or text, and not in their form: one line that names file, entry and field."""

import codecs
import json
import shutil
from pathlib import Path

import pytest

from nsfse.cli import app
from nsfse.data.registry import open_source
from nsfse_runtime.errors import DataError
from tests.unit.data.data_folders import FOLDERS, path200k, table_csv, write

FIQ, CIRR = "captions/cap.dress.val.json", "captions/cap.rc2.val.json"
FIQ_LIST, CIRR_LIST = "image_splits/split.dress.val.json", "image_splits/split.rc2.val.json"
SHOES = "relative_captions_shoes.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that gives a copy of a valid folder."""
    originals = {name: make(tmp_path_factory.mktemp(name)) for name, make in FOLDERS.items()}
    return lambda name, to: Path(shutil.copytree(originals[name], to / name))


def spoil(folder, file, change):
    """Rewrite a JSON file by `change`, which returns the new content or alters it in place."""
    content = json.loads((folder / file).read_text())
    changed = change(content)
    write(folder / file, json.dumps(content if changed is None else changed))


def use(source):
    """Do with a source what training and evaluation do before the first image is read."""
    source.triplets(0)
    for split in ("val", "test", "train"):
        source.protocols(split)
    source.check()


def at(key, value, number=1):
    return lambda rows: rows[number].update({key: value})


def without(key, number=1):
    return lambda rows: rows[number].pop(key) and None


FORMS = [
    ("fashioniq", FIQ, without("target"), "pair 1 (candidate B1): target: missing"),
    ("fashioniq", FIQ, at("target", None), "target: expected str, got null"),
    ("fashioniq", FIQ, at("target", "  "), "target: expected str that is not blank"),
    ("fashioniq", FIQ, at("candidate", 7), "pair 1 (candidate 7): candidate: expected str, got int"),
    ("fashioniq", FIQ, at("captions", "is red"), "captions: expected array, got str"),
    ("fashioniq", FIQ, at("captions", None), "captions: expected array, got null"),
    ("fashioniq", FIQ, at("captions", [None, "x"]), "captions[0]: expected str, got null"),
    ("fashioniq", FIQ, at("captions", ["x", ["y"]]), "captions[1]: expected str, got array"),
    ("fashioniq", FIQ, at("captions", ["x", True]), "captions[1]: expected str, got bool"),
    ("fashioniq", FIQ, at("captions", ["x", "\ud83d dots"]), "captions[1]: '\\ud83d dots' is not valid Unicode"),
    ("fashioniq", FIQ, lambda rows: rows.append("oops"), "pair 3: expected object, got str"),
    ("fashioniq", FIQ, lambda _: {"data": []}, "expected array, got object"),
    ("fashioniq", "captions/cap.dress.test.json", without("captions"), "pair 1 (candidate B1): captions: missing"),
    ("fashioniq", FIQ_LIST, lambda ids: ids.append(5), "id 5: expected str, got int"),
    ("fashioniq", FIQ_LIST, lambda ids: ids.append(None), "id 5: expected str, got null"),
    ("fashioniq", FIQ_LIST, lambda _: {"a": 1}, "expected array, got object"),
    ("cirr", CIRR, at("caption", None), "pair 1 (pairid 31): caption: expected str, got null"),
    ("cirr", CIRR, at("reference", ""), "reference: expected str that is not blank"),
    ("cirr", CIRR, without("target_hard"), "target_hard: missing"),
    ("cirr", CIRR, at("img_set", {}), "img_set.members: missing"),
    ("cirr", CIRR, at("img_set", ["a"]), "img_set: expected object, got array"),
    ("cirr", CIRR, at("img_set", {"members": "abcdef"}), "img_set.members: expected array, got str"),
    ("cirr", CIRR, at("target_soft", None), "target_soft: expected object, got null"),
    ("cirr", CIRR, at("target_soft", {"x": "1.0"}), "target_soft: expected float, got str"),
    ("cirr", CIRR, at("target_soft", {"x": 1e300}), "target_soft: expected float <= 1.0"),
    ("cirr", CIRR, at("target_soft", {"x": 10**400}), "target_soft: number out of range"),
    ("cirr", CIRR, at("pairid", 1.5), "pairid: expected int | str, got float"),
    ("cirr", CIRR, at("pairid", True), "pairid: expected int | str, got bool"),
    ("cirr", CIRR, at("pairid", "metric"), "pairid: 'metric' is a key of the server's files"),
    ("cirr", CIRR, at("pairid", "30"), "pairs 0 and 1 have the pairid 30"),
    ("cirr", "captions/cap.rc2.test1.json", at("pairid", 50), "pairs 0 and 1 have the pairid 50"),
    ("cirr", "captions/cap.rc2.test1.json", at("target_hard", "test1-1-img0"), "pair 0: target_hard: missing"),
    ("cirr", CIRR_LIST, lambda names: names.update(x=None), "expected str, got null"),
    ("cirr", CIRR_LIST, lambda _: 5, "expected object | array, got int"),
    ("shoes", SHOES, at("RelativeCaption", None), "RelativeCaption: expected str, got null"),
    ("shoes", SHOES, without("ImageName"), "pair 1: ImageName: missing"),
    ("shoes", SHOES, lambda rows: rows.append(3), "pair 4: expected object, got int"),
]


@pytest.mark.parametrize(("name", "file", "change", "said"), FORMS)
def test_a_file_that_is_not_in_its_form_is_named_with_entry_and_field(made, tmp_path, name, file, change, said):
    folder = made(name, tmp_path)
    use(open_source(name, folder))  # the folder as it was is good
    spoil(folder, file, change)
    with pytest.raises(DataError) as caught:
        open_source(name, folder)
    assert Path(file).name in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_train_evaluate_and_data_check_end_in_the_same_line(made, tmp_path, capsys):
    folder = made("fashioniq", tmp_path)
    spoil(folder, FIQ, without("target"))
    run, bundle = str(tmp_path / "run"), str(Path(__file__).parents[2] / "golden/bundle")
    ends = []
    for arguments in (
        ["data", "check", "fashioniq", folder],
        ["evaluate", bundle, folder, "--dataset", "fashioniq"],
        ["train", "-o", run, "--data", folder, "--set", "data.source='fashioniq'"],
    ):
        with pytest.raises(SystemExit) as stop:
            app.main([str(argument) for argument in arguments])
        ends.append((stop.value.code, capsys.readouterr().err.splitlines()[-1]))
    line = f"nsfse: {folder / FIQ}: pair 1 (candidate B1): target: missing; fix or fetch it again"
    assert ends == [(3, line)] * 3


EXTRA = [
    ("fashioniq", FIQ, at("note", {"deep": [1, None]})),
    ("fashioniq", FIQ, at("captions", [])),
    ("fashioniq", FIQ, at("captions", ["", " "])),
    ("fashioniq", FIQ, at("captions", ["one"])),
    ("cirr", CIRR, at("pairid", "31a")),
    ("cirr", CIRR, at("pairid", 10**30)),
    ("cirr", CIRR, at("target_soft", {})),
    ("cirr", CIRR, at("caption", "")),
    ("cirr", CIRR_LIST, lambda names: list(names)),
    ("shoes", SHOES, at("RelativeCaption", "")),
]


@pytest.mark.parametrize(("name", "file", "change"), EXTRA)
def test_what_is_odd_and_still_of_the_form_is_read(made, tmp_path, name, file, change):
    folder = made(name, tmp_path)
    spoil(folder, file, change)
    use(open_source(name, folder))


NO_JSON = {
    b"": "it is empty",
    b"[{": "is not a JSON file",
    b"[NaN]": "NaN is no number",
    b'[{"a": 1, "a": 2}]': "the key 'a' stands twice",
    b"[" * 100_000: "nested too deeply",
    b"[" + b"7" * 5000 + b"]": "thousands of digits",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n": "Git LFS pointer",
    b"\n<!DOCTYPE html><html></html>": "an HTML page",
    b"PK\x03\x04\x14": "a ZIP archive",
    '["é"]'.encode("latin-1"): "line 1 is not UTF-8 text",
    '["B0"]'.encode("utf-16"): "UTF-16 text",
}


@pytest.mark.parametrize("content", NO_JSON)
def test_what_is_no_json_is_named_as_what_it_is(made, tmp_path, content):
    for name, file in (("fashioniq", FIQ), ("cirr", CIRR_LIST), ("shoes", SHOES)):
        folder = made(name, tmp_path)
        write(folder / file, content)
        with pytest.raises(DataError, match=NO_JSON[content]) as caught:
            open_source(name, folder)
        assert Path(file).name in str(caught.value)


def contents(source):
    """Return all that a source makes of its files."""
    protocols = [protocol for split in ("train", "val", "test") for protocol in source.protocols(split)]
    found = [(p.name, p.gallery, p.queries, p.note, p.missing_ids) for p in protocols]
    return (found, source.triplets(0), sorted(getattr(source, "images", ())))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_byte_order_mark_and_line_ends_change_nothing(made, tmp_path, name, ending):
    folder = made(name, tmp_path)
    options = {"triplets": 20} if name == "catalogue" else {}
    before = contents(open_source(name, folder, **options))
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".txt", ".csv"):
            content = file.read_bytes().replace(b"\n", ending.encode())
            file.write_bytes(codecs.BOM_UTF8 + content)
    assert contents(open_source(name, folder, **options)) == before


ODD_MARKS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


def test_only_line_feeds_end_a_line(made, tmp_path):
    folder = made("fashion200k", tmp_path)
    labels = folder / "labels/dress_test_detect_all.txt"
    write(labels, labels.read_text().replace("red mini", f"red {ODD_MARKS} mini"))
    (protocol,) = open_source("fashion200k", folder).protocols("test")
    assert len(protocol.gallery) == 4 and protocol.queries[0].texts == ("replace red with blue",)
    folder = made("table", tmp_path)
    write(
        folder / "mine.jsonl",
        json.dumps({"reference": "a", "target": "b", "text": f"x{ODD_MARKS}y"}, ensure_ascii=False),
    )
    assert open_source("table", folder).triplets(0)[0].text == f"x{ODD_MARKS}y"
    write(table_csv(tmp_path / "csv") / "mine.csv", f"reference,target,text\na,b,x{ODD_MARKS[:5]}y\n")
    assert open_source("table", tmp_path / "csv").triplets(0)[0].text == f"x{ODD_MARKS[:5]}y"
    folder = made("queryset", tmp_path)
    row = {"protocol": "p", "split": "val", "reference": "a", "texts": [f"x{ODD_MARKS}y"], "targets": ["b"]}
    write(folder / "queries.jsonl", json.dumps(row, ensure_ascii=False))
    assert open_source("queryset", folder).protocols("val")[0].queries[0].texts == (f"x{ODD_MARKS}y",)


def test_captions_that_are_empty_are_counted_and_left_out_of_training(made, tmp_path):
    for name, file, field, empty in (
        ("fashioniq", "captions/cap.dress.train.json", "captions", [["", ""], [], [" "]]),
        ("cirr", "captions/cap.rc2.train.json", "caption", ["", " \t"]),
        ("shoes", SHOES, "RelativeCaption", ["", "x" * 2001]),
    ):
        folder = made(name, tmp_path)
        whole = len(open_source(name, folder).triplets(0))
        spoil(folder, file, at(field, empty[-1], number=0))
        source = open_source(name, folder)
        assert len(source.triplets(0)) == whole - 1
        assert source.left_out == ("1 training pair left out: no caption, or one far too long",)
        for value in empty:
            spoil(folder, file, at(field, value, number=0))
            assert len(open_source(name, folder).triplets(3)) == whole - 1


def test_fashion200k_without_a_description(made, tmp_path):
    folder = made("fashion200k", tmp_path)
    labels = folder / "labels/dress_test_detect_all.txt"
    write(labels, labels.read_text().replace("blue mini dress", " "))
    train = folder / "labels/dress_train_detect_all.txt"
    write(train, train.read_text().replace("red long dress", ""))
    source = open_source("fashion200k", folder)
    (protocol,) = source.protocols("test")
    assert len(protocol.gallery) == 4 and protocol.queries == ()
    assert "2 queries without a description left out" in protocol.note
    assert source.notes == ("2 test queries left out: no description",)
    assert {t.reference for t in source.triplets(0)} == {path200k(f"a{i}") for i in range(3)}
    lines = [str(fault) for fault in source.check().faults]
    assert lines == [f"2 queries lack a description: query 0 {path200k('b0')}, query 1 {path200k('b1')}"]


def test_fashion200k_reads_what_tirg_reads(made, tmp_path):
    folder = made("fashion200k", tmp_path)
    write(folder / "test_queries.txt", f"{path200k('b0')}\t{path200k('b1')}\n\n {path200k('b1')}   {path200k('b2')}\n")
    labels = folder / "labels/dress_test_detect_all.txt"
    # a fourth field, and a path listed again: its last description makes the text, and it is right for each
    again = f"{path200k('b3')}\t0.1\tblue mini dress\tmore\n"
    write(labels, labels.read_text() + again)
    source = open_source("fashion200k", folder)
    (protocol,) = source.protocols("test")
    assert [q.reference for q in protocol.queries] == [path200k("b0"), path200k("b1")]
    assert protocol.queries[0].targets == (path200k("b1"), path200k("b3"))
    assert len(protocol.gallery) == 4
    assert [str(fault) for fault in source.check().faults] == [f"1 path is listed twice: test {path200k('b3')}"]
    write(folder / "test_queries.txt", f"\n{path200k('b0')} nowhere.jpeg\n")
    with pytest.raises(DataError, match=r"test_queries.txt line 2 names nowhere.jpeg"):
        open_source("fashion200k", folder).protocols("test")


def test_ids_with_a_suffix_are_the_same_ids(made, tmp_path):
    folder = made("fashioniq", tmp_path)
    before = contents(open_source("fashioniq", folder))
    spoil(folder, FIQ_LIST, lambda ids: [f"{item}.jpg" for item in ids])
    spoil(folder, FIQ, lambda rows: [{**row, "target": f"{row['target']}.PNG"} for row in rows])
    assert contents(open_source("fashioniq", folder)) == before
    folder = made("cirr", tmp_path)
    before = contents(open_source("cirr", folder))
    spoil(folder, CIRR_LIST, lambda names: {f"{name}.png": path for name, path in names.items()})
    assert contents(open_source("cirr", folder)) == before


FAULTS = [
    ("fashioniq", FIQ, at("target", "B1"), "1 pair has its reference as target: dress.val pair 1"),
    ("fashioniq", FIQ, at("target", "X"), "1 target is not in its split: dress.val pair 1 X"),
    ("fashioniq", FIQ, at("candidate", "X"), "1 reference is not in its split: dress.val pair 1 X"),
    (
        "fashioniq",
        FIQ,
        lambda rows: rows.extend(rows[:2]),
        "2 pairs are there twice: dress.val pair 3, dress.val pair 4",
    ),
    ("cirr", CIRR, at("target_hard", "val-1-img0"), "1 pair has its reference as target: val pair 1 (pairid 31)"),
    ("cirr", CIRR, at("target_hard", "val-0-img0"), "1 target is not a member of its set: val pair 1 (pairid 31)"),
    ("cirr", CIRR, at("reference", "nope"), "1 reference is not in its split: val pair 1 (pairid 31) nope"),
    (
        "cirr",
        CIRR,
        lambda rows: rows[1]["img_set"]["members"].pop() and None,
        "1 pair does not have six members: val pair 1",
    ),
    ("cirr", CIRR, lambda rows: rows[1]["img_set"]["members"].append("val-0-img0"), "does not have six members"),
    ("cirr", CIRR, lambda rows: rows[1]["img_set"]["members"].__setitem__(5, "val-2-img0"), "pair has a member twice"),
    (
        "cirr",
        CIRR,
        lambda rows: rows[1]["img_set"]["members"].__setitem__(0, "val-7-img0"),
        "is not a member of its set",
    ),
    (
        "cirr",
        CIRR,
        lambda rows: rows[1]["img_set"]["members"].__setitem__(5, "no"),
        "pair has a member outside its split",
    ),
    (
        "cirr",
        CIRR,
        at("target_soft", {"no": 1.0}),
        "1 pair has a soft target outside its split: val pair 1 (pairid 31)",
    ),
    ("shoes", SHOES, at("ImageName", "img_womens_1"), "1 pair has its reference as target: pair 1"),
]


@pytest.mark.parametrize(("name", "file", "change", "said"), FAULTS)
def test_degenerate_pairs_are_named(made, tmp_path, name, file, change, said):
    folder = made(name, tmp_path)
    assert open_source(name, folder).check().faults == ()
    spoil(folder, file, change)
    report = open_source(name, folder).check()
    assert any(said in str(fault) for fault in report.faults), [*map(str, report.faults)]
    assert not report.ok


def test_a_table_of_faults_is_not_ok_and_agrees_in_number(made, tmp_path, capsys):
    folder = made("queryset", tmp_path)
    assert open_source("queryset", folder).check().ok
    row = {"protocol": "p", "split": "val", "reference": "a", "texts": ["x"], "targets": ["b", "b"]}
    write(folder / "queries.jsonl", f"{json.dumps(row)}\n\n{json.dumps(row | {'hard_negatives': ['b']})}\n")
    with pytest.raises(SystemExit) as stop:
        app.main(["data", "check", "queryset", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    file = folder / "queries.jsonl"
    assert stop.value.code == 3
    assert f"2 queries list a target twice: {file}:1, {file}:3" in lines
    assert f"1 query has a target as hard negative: {file}:3" in lines
    assert lines[-1] == "queryset: complete, with faulty entries"
    with pytest.raises(SystemExit):
        app.main(["data", "check", "queryset", str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and report["faults"][0]["entries"] == [f"{file}:1", f"{file}:3"]


def test_fashioniq_texts_as_clip4cir_joins_them(made, tmp_path):
    join = "clip4cir"
    folder = made("fashioniq", tmp_path)
    captions = [[" Is RED., ", "has 0 dots?"], ["", "x."], ["y", ""]]
    spoil(folder, FIQ, lambda rows: [{**r, "captions": c} for r, c in zip(rows, captions, strict=True)])
    first, *_ = open_source("fashioniq", folder, join=join).protocols("val")
    assert [query.texts for query in first.queries] == [("Is red and has 0 dots",), (" and x",), ("Y and ",)]
    assert "captions: clip4cir" in first.note
    texts = {t.text for epoch in range(9) for t in open_source("fashioniq", folder, join=join).triplets(epoch)}
    assert {"Is red and has 1 dots", "Has 1 dots and is red", "Is red", "Has 1 dots"} <= texts
    spoil(folder, "captions/cap.dress.train.json", lambda rows: [{**r, "captions": ["...", "?"]} for r in rows])
    assert all(t.text.strip() for t in open_source("fashioniq", folder, join=join).triplets(0))
    plain, *_ = open_source("fashioniq", folder).protocols("val")
    assert [q.texts for q in plain.queries] == [("Is RED., and has 0 dots?",), ("x.",), ("y",)]


def test_a_score_says_how_captions_were_joined(made, tmp_path, capsys):
    bundle, folder = str(Path(__file__).parents[2] / "golden/bundle"), made("fashioniq", tmp_path)
    command = ["evaluate", bundle, str(folder), "--json", "--join", "clip4cir"]
    with pytest.raises(SystemExit) as stop:
        app.main([*command, "--dataset", "FashionIQ"])
    protocol = json.loads(capsys.readouterr().out)["protocols"]["fashioniq-VAL-dress"]["protocol"]
    assert stop.value.code in (0, None) and "captions: clip4cir" in protocol["note"]
    with pytest.raises(SystemExit) as stop:
        app.main(command)
    assert stop.value.code == 2 and "--dataset fashioniq" in capsys.readouterr().err


def test_the_vocabulary_has_every_text_that_training_may_tell(made, tmp_path):
    for name in ("fashioniq", "table", "queryset"):
        source = open_source(name, made(name, tmp_path))
        texts = {text for epoch in range(20) for t in source.triplets(epoch) for text in (t.text,)}
        words = {word for text in source.training_texts for word in text.split()}
        assert texts and all(set(text.split()) - {"and"} <= words for text in texts)


def test_a_csv_with_other_separators_and_capitals(made, tmp_path):
    folder = table_csv(tmp_path / "mine")
    before = contents(open_source("table", folder))
    for sign, first in ((";", ""), ("\t", ""), (";", "sep=;\n"), ("|", "sep=|\r\n")):
        rows = [" Reference ,TARGET,text,Split", "a,b,red* please,", "b,c,longer,val", ""]
        rows = first + "\n".join(rows).replace(",", sign).replace("*", ",")
        write(folder / "mine.csv", rows)
        assert contents(open_source("table", folder)) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "reference,target,text,split\na,b,make it red, please,val\n", "line 2 does not have 4 columns"),
        ("t.csv", "reference,target,text\na,a,red\n", "line 2 has its reference as the only target"),
        ("t.csv", "reference,target,text\na.png,images/a.png,red\n", "line 2 has its reference as the only target"),
        ("t.csv", "ref;target;text\na;b;red\n", "line 1 has no column reference; its columns are: ref;target;text"),
        ("t.csv", "reference,target,text,text\na,b,red,x\n", "line 1 names a column twice"),
        ("t.csv", "reference,target,text\na,b,\n", "line 2 has no text"),
        ("t.csv", b"PK\x03\x04rest", "an .xlsx workbook"),
        ("t.csv", 'reference,target,text\na,b,"red\n', "is not a CSV row"),
        ("t.jsonl", '{"reference": "a", "target": "b", "text": 5}', "line 1 has no text in its form"),
        ("t.jsonl", '{"reference": 1.5, "target": "b", "text": "x"}', "line 1 has no reference in its form"),
        ("t.jsonl", '{"reference": "a", "target": [], "text": "x"}', "line 1 has no target in its form"),
        ("t.jsonl", '{"reference": "a", "target": ["b", null], "text": "x"}', "line 1 has no target[1] in its form"),
        ("t.jsonl", '{"reference": "a", "target": "b", "text": "x", "split": 3}', "line 1 has no split in its form"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON (it is nested too deeply)"),
    ],
)
def test_faults_of_own_tables(tmp_path, name, content, said):
    folder = table_csv(tmp_path)
    write(folder / name, content)
    with pytest.raises(DataError) as caught:
        open_source("table", folder / name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_ids_in_own_tables_and_one_image_is_one_id(tmp_path):
    folder = table_csv(tmp_path)
    for number in (0, 1):
        (folder / f"images/{number}.png").write_bytes((folder / "images/a.png").read_bytes())
    rows = [
        {"reference": 0, "target": 1, "text": "red"},
        {"reference": "0.png", "target": "images/1.png", "text": "red"},
    ]
    write(folder / "n.jsonl", "\n".join(map(json.dumps, rows)))
    source = open_source("table", folder / "n.jsonl")
    assert [(t.reference, t.targets) for t in source.triplets(0)] == [("0", ("1",))]
    assert [str(fault) for fault in source.check().faults] == [f"1 row lists a target twice: {folder}/n.jsonl line 2"]


def test_training_knows_the_words_of_phrasings_that_its_first_epochs_do_not_tell(tmp_path):
    pytest.importorskip("torch")
    from nsfse.config import load_config
    from nsfse.training.loop import _prepare

    folder = table_csv(tmp_path / "data")
    texts = [f"word{number}" for number in range(30)]
    write(folder / "n.jsonl", json.dumps({"reference": "a", "target": "b", "text": texts}))
    source = open_source("table", folder / "n.jsonl")
    config = load_config(overrides=["data.source='table'"], data=folder / "n.jsonl")
    tokenizer = _prepare(tmp_path / "run", config, source, source.triplets(0), resume=False)
    assert all(tokenizer.knows(text) for text in texts)


def test_where_no_training_pair_has_a_caption_the_line_says_so(made, tmp_path):
    pytest.importorskip("torch")
    from nsfse.config import load_config
    from nsfse.training.loop import _prepare

    folder = made("shoes", tmp_path)
    spoil(folder, SHOES, lambda rows: [{**row, "RelativeCaption": " "} for row in rows])
    source, config = open_source("shoes", folder), load_config(overrides=["data.source='shoes'"], data=folder)
    with pytest.raises(DataError, match=r"no training triplets in .*; 2 training pairs left out: no caption"):
        _prepare(tmp_path / "run", config, source, source.triplets(0), resume=False)
