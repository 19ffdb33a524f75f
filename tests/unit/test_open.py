"""What the command line names: conditions, a gallery and a folder, sheets; and why nothing was found."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("typer")

from nsfse.cli.arguments import conditions
from nsfse.cli.gallery_reports import index_text
from nsfse_runtime.errors import UsageError
from tests.galleries import save_image, save_images
from tests.unit.cli.test_app import run

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle"


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        (["colour=red"], {"colour": "red"}),
        ([" colour = red, blue "], {"colour": "red, blue"}),
        (["note=a<b", "url=x?a=b"], {"note": "a<b", "url": "x?a=b"}),
        (["empty="], {"empty": ""}),
        (["price<30"], {"price": {"$lt": 30}}),
        (["price >= 9.5", "price<30"], {"$and": [{"price": {"$gte": 9.5}}, {"price": {"$lt": 30}}]}),
        (["added>2026-11-30", "sale=yes"], {"added": {"$gt": "2026-11-30"}, "sale": "yes"}),
        (["size in S, M"], {"size": "S, M"}),
        (["made in=China"], {"made in": "China"}),
        (["size not in S,M", "c!=red"], {"$and": [{"$not": {"size": "S,M"}}, {"$not": {"c": "red"}}]}),
        (['{"$or": [{"price": 3}, {"sale": true}]}'], {"$or": [{"price": 3}, {"sale": True}]}),
    ],
)
def test_conditions(pairs: list[str], found: dict[str, object]) -> None:
    assert conditions(pairs) == found


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (["price==10"], "takes COLUMN=VALUE.*, not 'price==10'; for example --where 'price<30'"),
        (["price ~= 10"], "takes COLUMN=VALUE"),
        (["price ~ 10"], "takes COLUMN=VALUE"),
        (["price"], "takes COLUMN=VALUE"),
        (["<30"], "takes COLUMN=VALUE"),
        (['{"price": '], "not JSON: .* for example"),
        (['{"price": 1, "price": 2}'], "names price twice"),
        (["=red"], "takes COLUMN=VALUE"),
        (["c=red", " c =blue"], "names c twice; give its values together: --where c=red,blue"),
    ],
)
def test_conditions_that_cannot_be_met(pairs: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        conditions(pairs)


@pytest.fixture
def shop(tmp_path: Path, capsys) -> tuple[str, Path]:
    save_images(tmp_path / "photos", 4)
    gallery = str(tmp_path / "shop.gallery")
    assert run(capsys, "index", gallery, str(tmp_path / "photos"), "-b", str(BUNDLE))[0] == 0
    return gallery, tmp_path / "photos"


@pytest.mark.parametrize(
    ("gallery", "folder", "code", "reason"),
    [
        ("new.gallery", "nowhere", 3, "no folder at"),
        ("new.gallery", "photos/a.png", 2, "is a file, not a folder"),
        ("photos", "new.gallery", 2, "is a folder, not a gallery; the gallery file comes first"),
        ("photos", "photos", 2, "is a folder, not a gallery; the gallery file comes first"),
        ("photos/a.png", "photos", 5, "is not a gallery"),
    ],
)
def test_a_first_index_that_fails_leaves_nothing(
    tmp_path: Path, capsys, gallery: str, folder: str, code: int, reason: str
) -> None:
    save_image(tmp_path / "photos/a.png", 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    got, out, err = run(capsys, "index", str(tmp_path / gallery), str(tmp_path / folder), "-b", str(BUNDLE))
    assert (got, out) == (code, "") and reason in err and err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_bad_table_leaves_no_gallery_and_an_old_one_as_it_was(tmp_path: Path, capsys, shop) -> None:
    table = tmp_path / "t.csv"
    table.write_text("name\nx\n")
    new = tmp_path / "new.gallery"
    command = [str(shop[1]), "-b", str(BUNDLE), "--metadata", str(table)]
    assert run(capsys, "index", str(new), *command)[0] == 3 and not list(tmp_path.glob("new*"))
    assert run(capsys, "index", shop[0], *command)[0] == 3
    assert json.loads(run(capsys, "info", shop[0], "--json")[1])["images"] == 4


def test_an_index_of_which_nothing_was_taken_stands_out(tmp_path: Path, capsys) -> None:
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "phone/IMG_1.MOV").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    gallery = str(tmp_path / "g")
    index = ["index", gallery, str(tmp_path / "phone"), "-b", str(BUNDLE)]
    code, out, err = run(capsys, *index)
    assert not list(tmp_path.glob("g*")), "a first index that fails leaves nothing"
    assert code == 3 and out.splitlines()[-2].strip().startswith("IMG_1.HEIC: ")
    assert out.splitlines()[-1].strip() == "IMG_1.MOV: a video (MOV), not an image"
    assert "none of the 2 files" in err
    (tmp_path / "empty").mkdir()
    image = str(save_image(tmp_path / "a.png", 3))
    assert run(capsys, "index", gallery, str(tmp_path / "empty"), "-b", str(BUNDLE))[0] == 0
    assert run(capsys, *index)[0] == 3
    code, out, _ = run(capsys, "query", image, "make it red", "-g", gallery)
    assert code == 0 and out.startswith("the gallery is empty: no file could be taken (1 of 2: ")


def test_pages_and_why_nothing_was_found(tmp_path: Path, capsys, shop) -> None:
    gallery, photos = shop
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    table = tmp_path / "t.csv"
    table.write_text("id,kind,size\n" + "".join(f"{name},Dress,{at}\n" for at, name in enumerate(names)))
    assert run(capsys, "index", gallery, str(photos), "--metadata", str(table))[0] == 0
    ask = ["query", names[0], "make it red", "-g", gallery]
    for where, line in (
        (
            ["kind=Dresss"],
            "no image has kind=Dresss; did you mean Dress?\nno image in the gallery fits kind=Dresss",
        ),
        (["size<3", "size>7"], "no image in the gallery fits size>7"),
        (["size<2", "size>2"], "no image in the gallery fits all of these conditions"),
        (["kind=Dress", "size=0"], "no image but those of the query fits these conditions"),
    ):
        options = [part for each in where for part in ("--where", each)]
        assert run(capsys, *ask, *options)[:2] == (0, f"{line}\n")
    code, out, _ = run(capsys, *ask, "-k", "1", "--offset", "1", "--fields", "Size,kind", "--group-by", "size")
    header, hit, *rest = (line.split() for line in out.splitlines())
    assert code == 0 and header[3:6] == ["id", "Size", "kind"] and (hit[0], hit[-2 - 2]) == ("2", "Dress")
    assert ["2", "to", "2", "of", "3"] in rest
    assert run(capsys, *ask, "--offset", "3")[1] == "no more hits: 3 in all\n"
    for name in names[1:]:
        (photos / name).unlink()
    assert run(capsys, "index", gallery, str(photos))[0] == 0
    assert run(capsys, *ask)[1] == "the gallery has no image but those of the query\n"
    (photos / names[0]).unlink()
    assert run(capsys, "index", gallery, str(photos), "--allow-removals")[0] == 0
    image = str(save_image(tmp_path / "a.png", 3))
    assert "the gallery is empty; index a folder" in run(capsys, "query", image, "red", "-g", gallery)[1]


def test_no_sheet_over_an_image(tmp_path: Path, capsys, shop) -> None:
    gallery, photos = shop
    own = photos / "shelf00/item0001.png"
    shutil.copy(own, tmp_path / "reference.png")
    ask = ["query", str(tmp_path / "reference.png"), "make it red", "-g", gallery]
    before = own.read_bytes()
    for option, place in (("--png", own), ("--png", tmp_path / "reference.png"), ("--html", Path(gallery))):
        code, out, _ = run(capsys, *ask, option, str(place))
        assert code in (2, 3) and out == ""
    assert own.read_bytes() == (tmp_path / "reference.png").read_bytes() == before
    sheet = photos / "sheet.png"
    assert run(capsys, *ask, "--png", str(sheet))[0] == 0 == run(capsys, *ask, "--png", str(sheet))[0]
    assert run(capsys, "index", gallery, str(photos))[0] == 0  # now it is an image of the gallery
    code, _, err = run(capsys, *ask, "--png", str(sheet))
    assert code == 3 and "is an image of the gallery or the query" in err


def test_a_report_groups_files_by_reason() -> None:
    names = ("added", "updated", "renamed", "removed", "unchanged", "encoded")
    failed = [(f"{number}.mov", "a video (MOV), not an image") for number in range(12)]
    failed += [("a.heic", "HEIC is not read; convert it"), ("b.heic", "HEIC is not read; convert it")]
    report = dict.fromkeys(names, 0) | {"failed": failed, "unmatched": [], "ann": None}
    lines = index_text(report | {"loose": [("x", "a/x.png")], "left_out": {"@eaDir": 2}, "excluded": 3}).splitlines()
    assert lines[1] == "left out by their names: 2 @eaDir; 3 images are in the gallery no more"
    assert lines[2] == "14 files are not in the gallery:"
    assert lines[3] == "  2 files: HEIC is not read; convert it (a.heic, b.heic)"
    assert lines[4].startswith("  12 files: a video (MOV), not an image (0.mov, ") and lines[4].endswith("9.mov, ...)")
    assert lines[5] == "1 row of the table names an image by a part of its path or name: x = a/x.png"
