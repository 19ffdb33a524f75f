"""A row or a name finds its own image, in whatever form it is written, and never another one."""

import unicodedata
from pathlib import Path

import pytest

from nsfse_runtime.errors import DataError
from nsfse_runtime.gallery.metadata import TableRow, match_table, read_table
from nsfse_runtime.image_names import Names, loose, nearest, stem

IDS = ("winter/IMG_0001.webp", "winter/IMG_0002.webp", "summer/IMG_0003.webp", "SKU-1.webp", "a/x.png", "b/x.png")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("winter/IMG_0001.webp", "winter/IMG_0001.webp"),
        ("./winter/IMG_0001.webp", "winter/IMG_0001.webp"),
        ("winter\\IMG_0001.webp", "winter/IMG_0001.webp"),
        (".\\winter\\IMG_0001.webp", "winter/IMG_0001.webp"),
        ("winter//IMG_0001.webp", "winter/IMG_0001.webp"),
        ("IMG_0001.webp", "winter/IMG_0001.webp"),
        ("IMG_0001", "winter/IMG_0001.webp"),
        ("winter/IMG_0001", "winter/IMG_0001.webp"),
        ("IMG_0001.jpg", "winter/IMG_0001.webp"),
        ("img_0001.WEBP", "winter/IMG_0001.webp"),
        ("Winter/img_0001.webp", "winter/IMG_0001.webp"),
        ("photos/winter/IMG_0001.webp", "winter/IMG_0001.webp"),
        ("/home/me/photos/winter/IMG_0001.webp", "winter/IMG_0001.webp"),
        ("C:\\Users\\me\\photos\\winter\\IMG_0001.webp", "winter/IMG_0001.webp"),
        ("/mnt/photos/SKU-1.webp", "SKU-1.webp"),
        ("SKU-1", "SKU-1.webp"),
        # Another image, or several:
        ("summer/IMG_0001.webp", None),
        ("summer\\IMG_0001.webp", None),
        ("summer/IMG_0001", None),
        ("old/winter/IMG_0001.webp", None),
        ("/mnt/old/SKU-1.webp", None),
        ("winter/SKU-1.webp", None),
        ("SKU-1.5", None),
        ("SKU-1.v2", None),
        ("SKU-1.webp.bak", None),
        ("x", None),
        ("x.png", None),
        ("inter/IMG_0001.webp", None),
        ("", None),
        (".", None),
        ("/", None),
    ],
)
def test_a_name_is_found_by_its_end_and_in_no_other_folder(name: str, found: str | None) -> None:
    assert Names(IDS, "/home/me/photos").find(name).id == found


def test_unicode_forms_blanks_and_case() -> None:
    nfd = unicodedata.normalize("NFD", "Müller café.webp")
    ids = (nfd, "at 9.22\u202fPM.png", "Straße.png", "a\u200bb.png", "Übung.jpg")
    names = Names(ids)
    for name, found, weak in (
        ("Müller café.webp", nfd, False),
        ("at 9.22 PM.png", ids[1], True),
        ("at  9.22\u00a0pm", ids[1], True),
        ("STRASSE.PNG", ids[2], True),
        ("ab.png", ids[3], True),
        (unicodedata.normalize("NFD", "Übung"), ids[4], False),
    ):
        match = names.find(name)
        assert (match.id, match.weak) == (found, weak), name
    assert names.find("Müller café.webp").exact
    both = Names((nfd, "Müller café.webp"))
    assert both.find("Müller café.webp").id == "Müller café.webp" and both.find(nfd).id == nfd
    assert both.find("müller CAFÉ.webp").id is None and len(both.find("müller café.webp").ids) == 2
    assert Names(("A.png", "a.png")).find("a.png").id == "a.png"


def test_stems_lose_only_an_images_suffix() -> None:
    assert [stem(name) for name in ("a.JPG", "a.1.webp", "SKU-1.5", ".png", "a")] == [
        "a",
        "a.1",
        "SKU-1.5",
        ".png",
        "a",
    ]
    assert loose(" A\u202f b ") == "a b"


def test_the_nearest_name() -> None:
    known = [f"shelf/item{number:04d}.png" for number in range(500)]
    assert nearest("shelf/itme0007.png", known) == "shelf/item0007.png"
    assert nearest("zebra", known) is None and nearest("", known) is None
    assert Names(known).nearest("shelf/item0123.pgn") == "shelf/item0123.png"


def rows(*keys: str) -> list[TableRow]:
    return [TableRow((key,), {"n": str(number)}) for number, key in enumerate(keys)]


def test_a_weak_row_gives_way_and_a_second_strong_one_is_refused(tmp_path: Path) -> None:
    found = match_table(tmp_path, rows("a.jpg", "a.png", "B.png"), ["a.png", "b.png"])
    assert found.columns == {"a.png": {"n": "1"}, "b.png": {"n": "2"}}
    assert found.unmatched == ["a.jpg"] and found.loose == [("B.png", "b.png")]
    for twice in (rows("a.png", "a"), rows("a.jpg", "a.gif"), rows("a.png", ".\\a.png")):
        with pytest.raises(DataError, match=r"names a\.png twice"):
            match_table(tmp_path, twice, ["a.png"])


def test_a_file_in_another_folder_is_not_overruled_by_the_id(tmp_path: Path) -> None:
    ids = ["winter/IMG_1.webp", "SKU-2.webp"]
    other = [TableRow(("summer/IMG_1.webp", "IMG_1"), {"n": "1"}), TableRow(("raw/DSC_9.webp", "SKU-2"), {"n": "2"})]
    found = match_table(tmp_path, other, ids)
    assert found.columns == {"SKU-2.webp": {"n": "2"}} and found.unmatched == ["summer/IMG_1.webp"]


@pytest.mark.parametrize(
    "text",
    [
        "id,price\nSKU-1,99\n",
        "id;price\nSKU-1;99\n",
        "id\tprice\nSKU-1\t99\n",
        "id|price\r\nSKU-1|99\r\n",
        "ID,price\nSKU-1,99\n",
        " Id , price \n SKU-1 , 99 \n",
        "sep=,\nid,price\nSKU-1,99\n",
        "sep=;\r\nid;price\r\nSKU-1;99\r\n",
        '"sep=;"\nid;price\nSKU-1;99\n',
        'id,price,\nSKU-1,"99",\n',
        "\ufeffid,price\nSKU-1,99\n\n",
        'id;"price"\nSKU-1;"99"\n',
    ],
)
def test_a_table_in_the_forms_that_programs_write(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_table(path) == [TableRow(("SKU-1",), {"price": "99"})]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"filename,price\nx,1\n", "no column id or file .*its columns: filename, price; rename one"),
        (b"name;price\nx;1\n", "its columns: name;price"),
        (b"id,price,Price\nx,1,2\n", "the column price twice"),
        (b"id,ID\nx,1\n", "the column id twice"),
        (b"PK\x03\x04rest", "is an Excel workbook or another ZIP file, not CSV"),
        (b'[{"id": 1}]', "is JSON, not CSV"),
        (b"\xef\xbb\xbf{}", "is JSON, not CSV"),
        ("id,price\n".encode("utf-16"), "is a text in UTF-16, not CSV"),
        (b"PAR1....", "is Parquet, not CSV"),
        (b"", "no column id or file .*its columns: none"),
        (b"sep=;\nid;n\nx;1;2\n", "line 3: more cells than columns"),
        (b"id,n\n  ,1\n", "line 2: no id and no file"),
        (b"id,n\n\xff,1\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_table(path)
