"""Formats a summary as an HTML table for light and dark notebooks, without scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence

from finetunelib._escapes import escaped, one_line
from finetunelib.visualization._summary.rows import SummaryRow
from finetunelib.visualization._summary.text import (
    HEADINGS,
    NUMERIC,
    cells_of,
    parent_of,
    title_of,
)

#: Lines and backgrounds are half-transparent, which works on light and dark pages.
_STYLE = """
.finetunelib-summary { border-collapse: collapse; font-size: 0.9em; color: inherit; }
.finetunelib-summary caption { caption-side: top; text-align: left; padding: 0.4em 0.6em;
  color: inherit; font-weight: 600; }
.finetunelib-summary th, .finetunelib-summary td { padding: 0.2em 0.6em; text-align: left;
  white-space: nowrap; color: inherit; font-weight: normal; font-variant-numeric: tabular-nums;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.25); }
.finetunelib-summary thead th { font-weight: 600; border-bottom-width: 2px; }
.finetunelib-summary .number { text-align: right; }
.finetunelib-summary code { background: none; color: inherit; padding: 0; }
.finetunelib-summary code span { opacity: 0.55; }
.finetunelib-summary tr.quiet td { opacity: 0.65; }
.finetunelib-summary tr.failed th, .finetunelib-summary tr.failed td { font-weight: 600;
  background: rgba(220, 60, 50, 0.22); }
.finetunelib-summary .frozen { padding: 0 0.4em; border-radius: 0.6em;
  background: rgba(60, 130, 230, 0.25); }
.finetunelib-summary tfoot td { white-space: normal; border-bottom: 0; }
"""


def html_of(title: str, rows: Sequence[SummaryRow], notes: Sequence[str]) -> str:
    """Return an HTML table with the title as its caption and the notes in its footer."""
    head = "".join(
        f'<th scope="col"{_class("number" if name in NUMERIC else "")}>{name}</th>'
        for name in HEADINGS
    )
    body = "\n".join(map(_row, rows))
    foot = "<br>".join(html.escape(escaped(note)) for note in notes)
    return (
        f"<style>{_STYLE}</style>\n"
        '<div style="overflow-x: auto">'
        f'<table class="finetunelib-summary"><caption>{html.escape(escaped(title))}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        f'<tfoot><tr><td colspan="{len(HEADINGS)}">{foot}</td></tr></tfoot></table></div>'
    )


def _row(row: SummaryRow) -> str:
    kind = "failed" if row.status == "failed" else ""
    if row.status in ("not used", "not reached"):
        kind = "quiet"
    parent = one_line(parent_of(row))
    name = html.escape(title_of(row, short=True).removeprefix(parent))
    padding = 0.6 + 0.7 * row.depth
    label = f"<code><span>{html.escape(parent)}</span>{name}</code>"
    columns = [f'<th scope="row" style="padding-left: {padding:.1f}em">{label}</th>']
    for heading, cell in zip(HEADINGS[1:], cells_of(row)[1:], strict=True):
        text = html.escape(cell)
        if heading == "Mode" and cell == "frozen":
            text = f'<span class="frozen">{text}</span>'
        columns.append(f"<td{_class('number' if heading in NUMERIC else '')}>{text}</td>")
    return f"<tr{_class(kind)}>{''.join(columns)}</tr>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
