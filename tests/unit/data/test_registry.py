from pathlib import Path

import pytest

from nsfse.data.registry import SOURCES, open_source
from nsfse_runtime.errors import NotFoundError, UsageError
from tests.unit.data.data_folders import FOLDERS


def test_drawn_opens_without_a_folder():
    source = open_source("drawn", None, level="easy", items=160, triplets=20)
    assert source.name == "drawn-easy" and len(source.triplets(0)) == 20


@pytest.mark.parametrize(("name", "meant"), [("fashion-iq", "fashioniq"), ("CIRRR", "cirr"), ("query_set", "queryset")])
def test_an_unknown_name_is_told_the_nearest(name, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        open_source(name, Path())


@pytest.mark.parametrize("name", ["CIRR", "FashionIQ", "Fashion200K", "Shoes"])
def test_capitals_are_the_same_name(name, tmp_path):
    folder = FOLDERS[name.lower()](tmp_path)
    assert open_source(name, folder).name == name.lower()


def test_a_name_like_none_is_told_all():
    with pytest.raises(UsageError, match="there are: drawn, catalogue"):
        open_source("zzz")


def test_wrong_folders_and_options_are_refused(tmp_path):
    with pytest.raises(UsageError, match="takes no folder"):
        open_source("drawn", tmp_path)
    with pytest.raises(UsageError, match="needs the folder"):
        open_source("cirr")
    with pytest.raises(UsageError, match="no option 'levle'; did you mean 'level'"):
        open_source("drawn", levle="easy")
    for name in SOURCES:
        if name != "drawn":
            with pytest.raises(NotFoundError):
                open_source(name, tmp_path / "nowhere")
