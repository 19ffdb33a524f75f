"""Names of images as people and tables write them → ids: other separators, Unicode forms, no folder or suffix."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Suffixes of images that are read."""
_CUT = (*SUFFIXES, ".jpe", ".jfif", ".avif", ".heic", ".heif", ".jxl", ".tif", ".tiff")
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST, _MOST_KNOWN, _MOST_COMPARED = 300, 100_000, 1000
_INVISIBLE = dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF))


@dataclass(frozen=True, slots=True)
class Match:
    """What a name was found to be: `ids` of one image, of several (nothing decides), or of none.

    `exact` where it is the id; `weak` where it differs in more than its folder, separators or Unicode form: in its
    suffix, in case or blanks.
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
    for each in islice(known, _MOST_KNOWN):
        form = loose(each)
        # One slip leaves the first or the last third whole, so that few have to be compared at length.
        if abs(len(form) - len(wanted)) <= 3 and (form.startswith(start) or form.endswith(end)):
            forms.setdefault(form, each)
            if len(forms) == _MOST_COMPARED:
                break
    found = difflib.get_close_matches(wanted, forms, 1, 0.8) if wanted else []
    return forms[found[0]] if found else None


class Names:
    """The ids of a gallery's images, found by other ways to write them; `folder` is where they are."""

    def __init__(self, ids: Iterable[str], folder: str = "") -> None:
        self._ids, self._folder = tuple(ids), tuple(part for part in folder.replace("\\", "/").split("/") if part)

    def find(self, name: str) -> Match:
        """Return the image that `name` means.

        It is the id; or the end of the file's path from a folder on, with other separators or in another Unicode form;
        or such an end without suffix; or one of these but for suffix, case and blanks. Each has to fit one image alone,
        and the first of them that fits any decides. A folder that is written has to be the image's own.
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
            some = self._by(form, cut).get(key, ())
            found = [each for each in some if self._in_folder(each, parts[:-1], absolute, form)]
            whole = [each for each in found if each.count("/") == len(parts) - 1 > 0]
            if found:  # "winter/a" is first of all the one of the gallery's own folder "winter"
                return Match(tuple(whole if len(whole) == 1 else found), weak=weak)
        return Match()

    def nearest(self, name: str) -> str | None:
        """Return the id most like `name`, by its whole or by its last part, None where nothing is near."""
        return nearest(name, self._ids) or nearest(name.replace("\\", "/").rpartition("/")[2], self._ids)

    def same(self, name: str) -> str | None:
        """Return the id that is `name`, or the only one that is it in another Unicode form, else None."""
        if name in self._known:
            return name
        found = self._whole.get(nfc(name), [])
        return found[0] if len(found) == 1 else None

    def _in_folder(self, each: str, parts: Sequence[str], absolute: bool, form: Callable[[str], str]) -> bool:
        """Tell whether `parts`, the folders that were written before a name, are those of the image `each`."""
        own = each.split("/")[:-1]
        whole = [form(part) for part in (*self._folder, *own)][::-1]
        wanted = [form(part) for part in parts][::-1]
        shared = next((at for at, pair in enumerate(zip(whole, wanted, strict=False)) if pair[0] != pair[1]), None)
        if shared is None:
            return len(wanted) <= len(whole) or (absolute and bool(whole))
        # A path from another place, or machine: the same from the gallery's folder on, or from that folder's name.
        return absolute and shared >= max(1, len(own))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._ids)

    @cached_property
    def _whole(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in self._ids:
            found.setdefault(nfc(each), []).append(each)
        return found

    def _by(self, form: Callable[[str], str], cut: bool) -> dict[str, list[str]]:
        """Return the ids by the last part of their path in `form`, without its suffix where that is `cut`."""
        if (form, cut) not in self._last:
            found: dict[str, list[str]] = {}
            for each in self._ids:
                name = form(each.rpartition("/")[2])
                found.setdefault(stem(name) if cut else name, []).append(each)
            self._last[form, cut] = found
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
