"""Formats a summary as text for terminals, at most 100 columns wide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from finetunelib._escapes import one_line
from finetunelib._messages import readable_size, shape_text
from finetunelib._tables import WIDTH, wrapped
from finetunelib.visualization._summary.rows import SummaryRow

_GAP = "  "

#: The width to which class names are cut before module names are abbreviated, and the width to
#: which they are cut if abbreviated module names still do not fit.
_CLASS_WIDTH = 17
_LEAST_CLASS_WIDTH = 12

HEADINGS: tuple[str, ...] = (
    "Module",
    "Class",
    "Output",
    "Parameters",
    "Trainable",
    "Mode",
    "Type",
    "Memory",
)
NUMERIC = ("Parameters", "Trainable", "Memory")


def cells_of(row: SummaryRow) -> tuple[str, ...]:
    """Return the text of a row in each column."""
    return (
        title_of(row),
        one_line(row.class_name),
        output_of(row),
        f"{row.parameters:,}",
        f"{row.trainable_parameters:,}",
        row.mode,
        _dtype_of(row),
        readable_size(row.bytes),
    )


def title_of(row: SummaryRow, *, short: bool = False) -> str:
    """Return a row's dotted name. For repeated blocks, add the last name and their number.

    Args:
        row: The row.
        short: Whether only the number in the last name is shown.
    """
    name = one_line(row.name or "(model)")
    if row.last_name == row.name:
        return name
    first, last = (re.sub(r".*\D(?=\d)", "", text) for text in (row.name, row.last_name))
    end = last if short else one_line(row.last_name)
    return f"{name} to {end}  x{int(last) - int(first) + 1}"


def output_of(row: SummaryRow) -> str:
    """Return the output shapes of a row, or its status if it has none."""
    if row.status not in ("used", "not run"):
        return row.status
    if not row.output_shapes:
        return "-"
    first = shape_text(row.output_shapes[0])
    others = len(row.output_shapes) - 1
    return f"{first} +{others}" if others else first


def text_of(title: str, rows: Sequence[SummaryRow], notes: Sequence[str]) -> str:
    """Return a table with the title above and the notes below.

    A table that is too wide is narrowed in this order: names of repeated blocks are abbreviated, a
    mode or type that all rows share moves above the table, and names are indented, not dotted.
    """
    columns = dict(zip(HEADINGS, zip(*map(cells_of, rows), strict=True), strict=True))
    above = [title]
    if not _fits(columns):
        columns["Module"] = tuple(title_of(row, short=True) for row in rows)
    if not _fits(columns):
        above += _shared_by_all(columns)
    if not _fits(columns):
        columns["Module"] = tuple("  " * row.depth + _below_parent(row) for row in rows)
    table = [(heading, *cells) for heading, cells in columns.items()]
    widths = [max(map(len, column)) for column in table]
    spare = WIDTH - sum(widths[2:]) - len(_GAP) * (len(widths) - 1)
    widths[0] = min(widths[0], spare - min(widths[1], _LEAST_CLASS_WIDTH))
    widths[1] = min(widths[1], spare - widths[0])
    lines = [_line(cells, widths, list(columns)) for cells in zip(*table, strict=True)]
    rule = "-" * max(map(len, lines))
    above, below = ([line for text in texts for line in wrapped(text)] for texts in (above, notes))
    return "\n".join([*above, "", lines[0], rule, *lines[1:], rule, *below])


def _shared_by_all(columns: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Remove the mode or type column if its values are all equal, and yield the value as text."""
    for heading in ("Mode", "Type"):
        values = set(columns[heading]) - {"-"}
        if len(values) == 1:
            del columns[heading]
            yield f"{heading} of all rows: {values.pop()}"


def _fits(columns: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a table fits if class names are cut to `_CLASS_WIDTH`."""
    widths = {heading: max(map(len, (heading, *cells))) for heading, cells in columns.items()}
    widths["Class"] = min(widths["Class"], _CLASS_WIDTH)
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1) <= WIDTH


def _below_parent(row: SummaryRow) -> str:
    return title_of(row, short=True).removeprefix(one_line(parent_of(row)))


def parent_of(row: SummaryRow) -> str:
    """Return the beginning of a row's dotted name, up to its last dot."""
    return row.name[: row.name.rfind(".") + 1]


def _line(cells: Sequence[str], widths: Sequence[int], headings: Sequence[str]) -> str:
    padded = [
        f"{cell:>{width}}" if heading in NUMERIC else f"{_shortened(cell, width):<{width}}"
        for cell, width, heading in zip(cells, widths, headings, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _dtype_of(row: SummaryRow) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in row.dtypes]
    return "mixed" if len(names) > 1 else "".join(names) or "-"
