"""Names of images as people and tables write them → ids: other separators, Unicode forms, no folder or suffix."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import PurePath

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"),
    *(".avif", ".tif", ".tiff", ".jp2", ".j2k", ".heic", ".heif"),
)
"""Suffixes of images that are read, the preferred ones first where one id has several files."""
_CUT = (*SUFFIXES, ".jpe", ".jfif", ".jxl")
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST, _MOST_KNOWN, _MOST_COMPARED = 300, 100_000, 1000
_INVISIBLE = dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF))


@dataclass(frozen=True, slots=True)
class Match:
    """What a name means: `ids` of one image, of several (nothing decides), or of none.

    Attributes:
        ids: The ids that fit.
        exact: Whether the name is the id.
        weak: Whether it differs in its suffix, case or blanks, not in folder, separators or Unicode
            form alone.
    """

    ids: tuple[str, ...] = ()
    exact: bool = False
    weak: bool = False

    @property
    def id(self) -> str | None:
        """Return the id of the one image, None where there is none or several."""
        return self.ids[0] if len(self.ids) == 1 else None


def nfc(text: str) -> str:
    """Return `text` with its letters composed, as most systems but macOS write file names."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def loose(text: str) -> str:
    """Return `text` without what the eye hardly sees: letter case, kinds of blanks, invisible signs, width."""
    if text.isascii():
        return " ".join(text.casefold().split())
    folded = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
    return unicodedata.normalize("NFC", " ".join(folded.split()))


def leads_out(name: str) -> bool:
    """Tell whether an id would lead out of the folder of its gallery, or is no path."""
    return PurePath(name).is_absolute() or ".." in name.split("/") or "\0" in name


def stem(name: str) -> str:
    """Return `name` without its suffix where that is an image's: what follows the dot of SKU-1.5 is no suffix."""
    head, dot, tail = name.rpartition(".")
    return head if dot and head and f".{tail.lower()}" in _CUT else name


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return what is most like `name` among `known`, None where nothing is near."""
    wanted = loose(name[:_LONGEST])
    third = len(wanted) // 3
    start, end = wanted[:third], wanted[len(wanted) - third :]
    forms: dict[str, str] = {}
    for candidate in islice(known, _MOST_KNOWN):
        form = loose(candidate)
        # One slip leaves the first or the last third whole, so that few have to be compared in
        # full.
        if abs(len(form) - len(wanted)) <= 3 and (form.startswith(start) or form.endswith(end)):
            forms.setdefault(form, candidate)
            if len(forms) == _MOST_COMPARED:
                break
    matches = difflib.get_close_matches(wanted, forms, 1, 0.8) if wanted else []
    return forms[matches[0]] if matches else None


class Names:
    """The ids of a gallery's images, looked up by other ways to write them; `folder` is where they are."""

    def __init__(self, ids: Iterable[str], folder: str = "") -> None:
        self._ids, self._folder = tuple(ids), tuple(part for part in folder.replace("\\", "/").split("/") if part)

    def find(self, name: str) -> Match:
        """Return the image that `name` means.

        These are tried in turn, and the first that fits any image decides:

        1. the id;
        2. the end of the file's path from a folder on, whatever its separators or Unicode form;
        3. such an end without suffix;
        4. one of these but for suffix, case and blanks.

        It has to fit one image alone. A folder that is written has to be the image's own.
        """
        if name in self._known:
            return Match((name,), exact=True)
        path = name.replace("\\", "/")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts:
            return Match()
        absolute = path.startswith("/") or bool(_DRIVE.fullmatch(parts[0]))
        if not absolute and (same := self.same("/".join(parts))):
            return Match((same,), exact=True)
        for weak, form, cut in _STEPS:
            if not cut:
                key = form(parts[-1])
            elif weak or stem(parts[-1]) == parts[-1]:
                key = stem(form(parts[-1]))
            else:
                continue
            same_name = self._by(form, cut).get(key, ())
            ids = [image_id for image_id in same_name if self._in_folder(image_id, parts[:-1], absolute, form)]
            whole = [image_id for image_id in ids if image_id.count("/") == len(parts) - 1 > 0]
            if ids:  # "winter/a" is first of all the one of the gallery's own folder "winter"
                return Match(tuple(whole if len(whole) == 1 else ids), weak=weak)
        return Match()

    def nearest(self, name: str) -> str | None:
        """Return the id most like `name`, by its whole or by its last part, None where nothing is near."""
        return nearest(name, self._ids) or nearest(name.replace("\\", "/").rpartition("/")[2], self._ids)

    def same(self, name: str) -> str | None:
        """Return the id that is `name`, or the only one that is it in another Unicode form, else None."""
        if name in self._known:
            return name
        ids = self._whole.get(nfc(name), [])
        return ids[0] if len(ids) == 1 else None

    def _in_folder(self, image_id: str, parts: Sequence[str], absolute: bool, form: Callable[[str], str]) -> bool:
        """Tell whether `parts`, the folders that were written before a name, are those of the image."""
        own = image_id.split("/")[:-1]
        whole = [form(part) for part in (*self._folder, *own)][::-1]
        wanted = [form(part) for part in parts][::-1]
        shared = next(
            (depth for depth, pair in enumerate(zip(whole, wanted, strict=False)) if pair[0] != pair[1]), None
        )
        if shared is None:
            return len(wanted) <= len(whole) or (absolute and bool(whole))
        # A path from another place, or machine: the same from the gallery's folder on, or from that
        # folder's name.
        return absolute and shared >= max(1, len(own))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._ids)

    @cached_property
    def _whole(self) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = {}
        for image_id in self._ids:
            ids.setdefault(nfc(image_id), []).append(image_id)
        return ids

    def _by(self, form: Callable[[str], str], cut: bool) -> dict[str, list[str]]:
        """Return the ids by the last part of their path in `form`, without its suffix where that is `cut`."""
        if (form, cut) not in self._last:
            ids: dict[str, list[str]] = {}
            for image_id in self._ids:
                name = form(image_id.rpartition("/")[2])
                ids.setdefault(stem(name) if cut else name, []).append(image_id)
            self._last[form, cut] = ids
        return self._last[form, cut]

    @cached_property
    def _last(self) -> dict[tuple[Callable[[str], str], bool], dict[str, list[str]]]:
        return {}


# Whether what fits is weak, the form that is compared, whether suffixes are cut.
_STEPS: tuple[tuple[bool, Callable[[str], str], bool], ...] = (
    (False, nfc, False),
    (False, nfc, True),
    (True, nfc, True),
    (True, loose, False),
    (True, loose, True),
)
