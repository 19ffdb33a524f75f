"""Text from outside (file names, captions) made safe to print: no escape sequence or direction mark survives."""


def printable(text: str) -> str:
    """Return `text` with every character that does not print (control, format, lone surrogate) as its escape."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
