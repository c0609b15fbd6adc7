"""Escapes characters that a terminal or page would interpret, in names that come from files."""

from __future__ import annotations


def escaped(text: str) -> str:
    r"""Return a text without control characters, except line breaks and tabs.

    Escape sequences of terminals, characters that reverse the direction of text, and surrogates
    that cannot be printed are replaced by their escapes in Python, such as `\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else _escape(character)
        for character in text
    )


def one_line(text: str, longest: int = 200) -> str:
    """Return a name as `escaped`, with escaped line breaks too, and cut if it is very long."""
    if len(text) > longest:
        text = f"{text[: longest - 3]}..."
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
