"""Whether an English text excludes something: "no stripes", "a skirt rather than a dress"."""

import re

_CUE = re.compile(r"\b(?:no|not|without|never|minus|instead of|rather than)\b|n't\b")


def excludes(text: str, name: str) -> bool:
    """Tell whether `text` names `name`, or its plural, after a word that excludes it and in the same clause."""
    text = text.lower()
    if not _CUE.search(text):  # most texts
        return False
    named = rf"(?<![\w-]){re.escape(name.lower())}(?:s|es)?(?![\w-])"
    return re.search(rf"(?:{_CUE.pattern})[^,;.:!?]*?{named}", text) is not None
