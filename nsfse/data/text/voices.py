"""Voices: how different people say an edit, beside the plain templates (docs/catalogue.md).

A voice is a list of sentences with fields for the new value, and for the old one where the sentence names it. How a
kind of edit fills the fields is said once for all voices, so that a few hundred sentences become thousands of texts.
`voices/en-reserved.toml` holds voices for evaluation alone: no option of a data set opens it.
"""

import functools
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypeVar

import msgspec

from nsfse.data.text.templates import DOUBLE, Edit, TemplateSet
from nsfse.suggest import did_you_mean
from nsfse_runtime.errors import DataError, NotFoundError, UsageError
from nsfse_runtime.regular_files import read_regular

FOLDER = Path(__file__).parent / "voices"
AROUND_PROB = 0.25
"""How often a voice that has fillers puts one before a sentence, and how often one after."""
OLD_PROB = 0.5
"""How often a voice names the old value, where that is known and the voice has such sentences."""
NEW_FIELDS, OLD_FIELDS = frozenset({"new", "be", "in", "one"}), frozenset({"old", "old_be", "the_old"})
_RESERVED = "-reserved"
T = TypeVar("T")


class Forms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a value is in a sentence, by kind of edit: "stripes", "striped", "with stripes", "a striped one"."""

    new: tuple[str, ...]
    be: tuple[str, ...]
    in_: tuple[str, ...] = msgspec.field(name="in")
    one: tuple[str, ...]
    the: tuple[str, ...] = ()
    """How a reference that has the value is called; a kind without it cannot be an old value."""


class Voice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sentences of one voice."""

    says: tuple[str, ...]
    refuses_old: tuple[str, ...] = ()
    """They name the new value, and the old one as not wanted."""
    refers_to_old: tuple[str, ...] = ()
    """They name the new value, and the old one only to tell what the reference is."""
    refuses: tuple[str, ...] = ()
    """They name only what must not be there."""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    mistyped: bool = False
    """Whether words that no other voice says are typing slips, which no vocabulary should have."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    voices: dict[str, Voice]
    forms: dict[str, Forms] = {}
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text in a voice. `old` says what it tells of the old value: `refused`, `named`, or nothing."""

    text: str
    voice: str
    old: str = ""
    typos: tuple[str, ...] = ()


@dataclass(frozen=True)
class VoiceSet:
    """The voices of one language and how each kind of edit fills their sentences."""

    voices: dict[str, Voice]
    forms: dict[str, Forms]

    def speaks(self, edits: Sequence[Edit]) -> bool:
        """Return whether some voice can say the edits."""
        return all(edit.kind in self.forms for edit in edits) and (len(edits) == 1 or not any(e.absent for e in edits))

    def say(self, edits: Sequence[Edit], old: Edit | None, templates: TemplateSet, rng: random.Random) -> Spoken:
        """Return one or two edits in the words of a random voice.

        Args:
            edits: What `speaks` accepts.
            old: The edit that would request the value of the reference, where it is known.
            templates: Gives the articles of nouns, and the phrases of two edits.
            rng: Makes the choices.
        """
        name = _choice(list(self.voices), rng)
        voice = self.voices[name]
        sentences, mention = self._sentences(voice, edits, old, rng)
        text = self._fill(_choice(sentences, rng), edits, old if mention else None, templates, rng)
        if voice.before and rng.random() < AROUND_PROB:
            text = f"{_choice(voice.before, rng)} {text}"
        if voice.after and rng.random() < AROUND_PROB:
            text = f"{text} {_choice(voice.after, rng)}"
        typos = tuple(word for word in _words(text) if word in self.slips) if voice.mistyped else ()
        return Spoken(text, name, mention, typos)

    @functools.cached_property
    def slips(self) -> frozenset[str]:
        """The words that only mistyped voices say."""
        said: dict[bool, set[str]] = {True: set(), False: set()}
        for voice in self.voices.values():
            for sentence in (*voice.says, *voice.refuses_old, *voice.refers_to_old, *voice.refuses):
                said[voice.mistyped].update(_words(re.sub(r"\{\w*\}", " ", sentence)))
        return frozenset(said[True] - said[False])

    def every(self, edit: Edit, old: Edit | None, templates: TemplateSet) -> list[Spoken]:
        """Return every sentence of every voice for one edit that requests a value, always in the same words and order.

        Sentences that name the old value are left out where `old` cannot be named.
        """
        said: list[Spoken] = []
        named = old if old and self._can_name(edit, old) else None
        for name, voice in self.voices.items():
            kinds = (("", voice.says), ("named", voice.refers_to_old), ("refused", voice.refuses_old))
            for mention, sentences in kinds if named else kinds[:1]:
                said += [Spoken(self._fill(s, [edit], named, templates, None), name, mention) for s in sentences]
        return said

    def _sentences(
        self, voice: Voice, edits: Sequence[Edit], old: Edit | None, rng: random.Random
    ) -> tuple[tuple[str, ...], str]:
        """Return the sentences to choose from, and what they tell of the old value."""
        if edits[0].absent:
            return voice.refuses or voice.says, ""
        both = len(voice.refuses_old) + len(voice.refers_to_old)
        if old and both and len(edits) == 1 and self._can_name(edits[0], old) and rng.random() < OLD_PROB:
            refuses = rng.random() * both < len(voice.refuses_old)
            return (voice.refuses_old, "refused") if refuses else (voice.refers_to_old, "named")
        return voice.says, ""

    def _can_name(self, edit: Edit, old: Edit) -> bool:
        """Return whether both values can be in one text, each by a word of its own: not "blue" and "light blue"."""
        apart = set(edit.words) - set(old.words) and set(old.words) - set(edit.words)
        return bool(apart) and old.kind in self.forms and bool(self.forms[old.kind].the)

    def _fill(
        self, sentence: str, edits: Sequence[Edit], old: Edit | None, templates: TemplateSet, rng: random.Random | None
    ) -> str:
        """Return the sentence with its fields; without `rng` each value has its first form."""
        forms = self.forms[edits[0].kind if len(edits) == 1 else DOUBLE]
        options = {"new": forms.new, "be": forms.be, "in": forms.in_, "one": forms.one}
        values = {name: templates.fill(_choice(option, rng), edits) for name, option in options.items()}
        if old:
            past = self.forms[old.kind]
            mention = {"old": past.new[0], "old_be": past.be[0], "the_old": _choice(past.the, rng)}
            values |= {name: templates.fill(form, [old]) for name, form in mention.items()}
        return sentence.format_map(values)


def load_voices(named: str) -> VoiceSet:
    """Read the voices that training may use.

    Args:
        named: A shipped language (`en`) or the path of a TOML file.

    Raises:
        NotFoundError: There is no such language and no such file.
        DataError: The file is not in its form, or it is reserved for evaluation.
    """
    path = FOLDER / f"{named}.toml"
    path = path if path.is_file() else Path(named)
    file = _read(path)
    if file.reserved:
        raise DataError(f"{path} is reserved for evaluation; name voices to train on")
    for kind, forms in file.forms.items():
        for key in ("new", "be", "in_", "one"):
            if not getattr(forms, key):
                raise DataError(f"{path}: forms.{kind}.{key.rstrip('_')} is empty; write one at least")
    return VoiceSet(file.voices, file.forms)


def reserved_voices(language: str = "en") -> VoiceSet:
    """Return the voices of a shipped language that are for evaluation alone. Raises NotFoundError, DataError."""
    return VoiceSet(_read(FOLDER / f"{language}{_RESERVED}.toml").voices, load_voices(language).forms)


def training_voices(voices: str | None, without: Sequence[str], templates: TemplateSet) -> VoiceSet | None:
    """Return the voices of a data set's options; None where the templates' language has none.

    Args:
        voices: What `load_voices` takes, or None for those of the templates' language.
        without: Names of voices to leave out.
        templates: The templates that voices stand beside.

    Raises:
        UsageError: `without` names a voice that is not there, or all of them.
        NotFoundError, DataError: As `load_voices`.
    """
    if voices is None and not (FOLDER / f"{templates.name}.toml").is_file():
        return None
    whole = load_voices(voices or templates.name)
    for name in without:
        if name not in whole.voices:
            raise UsageError(
                f"without_voices: no voice {name!r}{did_you_mean(name, whole.voices) or ';'} there are: "
                f"{', '.join(whole.voices)}"
            )
    kept = {name: voice for name, voice in whole.voices.items() if name not in without}
    if not kept:
        raise UsageError("without_voices leaves no voice; set voice_ratio to 0 to train without voices")
    return VoiceSet(kept, whole.forms)


def _read(path: Path) -> _File:
    try:
        file = msgspec.toml.decode(read_regular(path), type=_File)
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, ValueError):
        raise NotFoundError(f"no voices {str(path)!r}; name a TOML file, or a language of the package: en") from None
    for name, voice in file.voices.items():
        wanted = {"says": False, "refuses": False, "refuses_old": True, "refers_to_old": True}
        for key, names_old in wanted.items():
            for sentence in getattr(voice, key):
                _check(sentence, names_old, f"{path}: voices.{name}.{key}")
    return file


def _check(sentence: str, names_old: bool, where: str) -> None:
    try:
        fields = {field for _, field, spec, change in Formatter().parse(sentence) if field is not None}
    except ValueError as error:
        raise DataError(f"{where}: {sentence!r} is no template: {error}") from None
    if fields - NEW_FIELDS - OLD_FIELDS or not fields & NEW_FIELDS or bool(fields & OLD_FIELDS) is not names_old:
        kinds = " and ".join(["{new}, {be}, {in} or {one}"] + ["{old}, {old_be} or {the_old}"] * names_old)
        raise DataError(f"{where}: {sentence!r} must hold {kinds}, and nothing else in braces")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text)


def _choice(options: Sequence[T], rng: random.Random | None) -> T:
    return options[int(rng.random() * len(options))] if rng else options[0]
