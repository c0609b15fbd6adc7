"""Formats a summary as an HTML table."""

from __future__ import annotations

from collections.abc import Sequence

from finetunelib._escapes import one_line
from finetunelib._html import Row, html_table
from finetunelib.visualization._summary.rows import SummaryRow
from finetunelib.visualization._summary.text import (
    HEADINGS,
    NUMERIC,
    cells_of,
    parent_of,
    title_of,
)


def html_of(title: str, rows: Sequence[SummaryRow], notes: Sequence[str]) -> str:
    """Return an HTML table with the title above and the notes below."""
    return html_table(
        HEADINGS,
        [_row(row) for row in rows],
        title=title,
        notes=notes,
        numeric=NUMERIC,
        code=("Module",),
        badges={"Mode": ("frozen",)},
    )


def _row(row: SummaryRow) -> Row:
    parent = one_line(parent_of(row))
    name = title_of(row, short=True).removeprefix(parent)
    cells = (name, *cells_of(row)[1:])
    if row.status == "failed":
        return Row(cells, "failed", row.depth, parent)
    quiet = row.status in ("not used", "not reached")
    return Row(cells, "quiet" if quiet else "", row.depth, parent)
