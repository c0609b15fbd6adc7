"""Tables as text for terminals and as HTML for notebooks, and wrapped lines."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

from finetunelib._escapes import escaped

#: The longest line of a report, in characters.
WIDTH = 100

_GAP = "  "


def wrapped(text: str, *, indent: str = "") -> list[str]:
    """Return a text as lines of at most 100 characters, unless a single word is longer.

    Args:
        text: The text. Control characters are escaped.
        indent: What each line begins with.
    """
    # A number and the next word stay together. An escaped text contains no such space.
    together = re.sub(r"(?<=\d) (?=\w)", "\xa0", escaped(text))
    lines = textwrap.wrap(
        together,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


def text_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Collection[str] = (),
    rules: bool = False,
) -> list[str]:
    """Return the lines of a table whose columns are as wide as their longest cell.

    Args:
        headings: The heading of each column.
        rows: The cells of each row, without line breaks.
        numeric: The headings of the columns that are aligned to the right.
        rules: Whether there is a line above and below the rows.
    """
    table = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        _GAP.join(
            cell.rjust(width) if heading in numeric else cell.ljust(width)
            for heading, cell, width in zip(headings, cells, widths, strict=True)
        ).rstrip()
        for cells in table
    ]
    if not rules:
        return lines
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:], rule]
