"""HTML tables for notebooks with a light or dark style sheet, without scripts.

JupyterLab's style sheet aligns cells to the right, breaks lines in them and centers tables.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finetunelib._escapes import escaped

#: Repeated, because a rule must have precedence over those of JupyterLab (two classes and a tag).
_SCOPE = ".finetunelib-table" * 3

#: Lines and backgrounds are half-transparent, which works on light and dark pages.
_STYLE = """
SCOPE { overflow-x: auto; color: inherit; font-size: 0.9em; }
SCOPE p { margin: 0; padding: 0.2em 0.6em; max-width: 60em; text-align: left; color: inherit; }
SCOPE p.title { font-weight: 600; }
SCOPE table { border-collapse: collapse; table-layout: auto; width: auto; margin: 0.2em 0;
  border: 0; color: inherit; font-size: inherit; }
SCOPE thead { border: 0; }
SCOPE tr, SCOPE tbody tr { background: none; text-align: left; }
SCOPE tbody tr:hover { background: rgba(128, 128, 128, 0.12); }
SCOPE th, SCOPE td { padding: 0.2em 0.6em; text-align: left; vertical-align: baseline;
  white-space: nowrap; color: inherit; font-weight: normal; font-variant-numeric: tabular-nums;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.25); }
SCOPE thead th { font-weight: 600; border-bottom-width: 2px; }
SCOPE .number { text-align: right; }
SCOPE .wide { white-space: normal; min-width: 20em; max-width: 50em; overflow-wrap: anywhere; }
SCOPE code { background: none; color: inherit; padding: 0; border: 0; white-space: inherit; }
SCOPE p code { overflow-wrap: anywhere; }
SCOPE code span { opacity: 0.55; }
SCOPE tr.quiet td { opacity: 0.65; }
SCOPE tr.failed th, SCOPE tr.failed td { font-weight: 600; background: rgba(220, 60, 50, 0.22); }
SCOPE .badge { padding: 0 0.4em; border-radius: 0.6em; background: rgba(60, 130, 230, 0.25); }
""".replace("SCOPE", _SCOPE)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table with more than cells.

    Attributes:
        cells: The texts of the cells.
        kind: `"quiet"` for a less important row, `"failed"` for what is wrong.
        depth: How far the first cell is indented.
        prefix: A pale text in front of the first cell.
    """

    cells: Sequence[str]
    kind: Literal["", "quiet", "failed"] = ""
    depth: int = 0
    prefix: str = ""


def html_table(
    headings: Sequence[str],
    rows: Sequence[Row | Sequence[str]],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    numeric: Collection[str] = (),
    code: Collection[str] = (),
    wide: Collection[str] = (),
    badges: Mapping[str, Collection[str]] | None = None,
) -> str:
    """Return a table as HTML. All texts are escaped.

    Args:
        headings: The heading of each column. The first cell of a row names it.
        rows: The cells of each row, as texts or as a `Row`.
        title: The text above the table.
        notes: The paragraphs below it. Text in backquotes is shown as code.
        numeric: The headings of the columns that are aligned to the right.
        code: The headings of the columns that are shown in the font of code.
        wide: The headings of the columns with long texts, which are broken into lines.
        badges: For a heading, the texts that are shown as badges in its column.
    """
    columns = [
        _Column(
            "number" if name in numeric else "wide" if name in wide else "",
            name in code,
            (badges or {}).get(name, ()),
        )
        for name in headings
    ]
    head = "".join(
        f'<th scope="col"{_class(column.kind)}>{_text(name)}</th>'
        for name, column in zip(headings, columns, strict=True)
    )
    body = "\n".join(_row(row if isinstance(row, Row) else Row(row), columns) for row in rows)
    above = f'<p class="title">{_prose(title)}</p>\n' if title else ""
    below = "".join(f"\n<p>{_prose(note)}</p>" for note in notes)
    return (
        f'<style>{_STYLE}</style>\n<div class="finetunelib-table">{above}'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>{below}</div>"
    )


@dataclass(frozen=True, slots=True)
class _Column:
    kind: str
    is_code: bool
    badges: Collection[str]

    def content(self, cell: str, prefix: str = "") -> str:
        """Return the HTML in a cell."""
        text = _text(cell)
        if cell in self.badges:
            text = f'<span class="badge">{text}</span>'
        if prefix:
            text = f"<span>{_text(prefix)}</span>{text}"
        return f"<code>{text}</code>" if self.is_code else text


def _row(row: Row, columns: Sequence[_Column]) -> str:
    # Also without the style sheet, which a notebook that is not trusted drops.
    indent = f"text-align: left; padding-left: {0.6 + row.depth:.1f}em"
    style = f' style="{indent}"' if row.depth else ""
    first, *others = zip(row.cells, columns, strict=True)
    name = first[1].content(first[0], row.prefix)
    cells = [
        f'<th scope="row"{_class(first[1].kind)}{style}>{name}</th>',
        *(f"<td{_class(column.kind)}>{column.content(cell)}</td>" for cell, column in others),
    ]
    return f"<tr{_class(row.kind)}>{''.join(cells)}</tr>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _text(text: str) -> str:
    return html.escape(escaped(text))


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))
