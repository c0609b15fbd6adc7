"""Reads the HTML that objects show in notebooks."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, Protocol


class Shown(Protocol):
    """An object that notebooks show as HTML."""

    def _repr_html_(self) -> str: ...


class Reader(HTMLParser):
    """Parses a table: its cells by row, the paragraphs around it, and the names of all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.paragraphs: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        elif "p" in self.open:
            self.paragraphs[-1] += data


def read(shown: Shown) -> Reader:
    """Parse the HTML of an object, in which each tag is closed."""
    reader = Reader()
    reader.feed(shown._repr_html_())
    reader.close()
    assert reader.open == []
    return reader


def selectors_of(page: str) -> list[str]:
    """Return the CSS selectors of the style sheet in a page."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    rules = [rule.partition("{")[0] for rule in style.split("}") if rule.strip()]
    return [selector.strip() for rule in rules for selector in rule.split(",")]


#: The style sheet of a cell's output in JupyterLab 4, with the colors of its two themes: what it
#: does to tables, paragraphs and code.
JUPYTERLAB = re.sub(
    r"\s+",
    " ",
    """
    body { margin: 0; padding: 8px; background: LAYOUT; }
    .out { color: FONT; font: 14px/1.6 system-ui, sans-serif; padding-right: 20px; }
    .out table { border-collapse: collapse; border-spacing: 0; border: none; color: FONT;
      font-size: 13px; table-layout: fixed; margin-left: auto; margin-bottom: 1em;
      margin-right: auto; }
    .out thead { border-bottom: 1px solid #808080; vertical-align: bottom; }
    .out td, .out th, .out tr { vertical-align: middle; padding: 0.5em; line-height: normal;
      white-space: normal; max-width: none; border: none; }
    :not(.md).out td, :not(.md).out th, :not(.md).out tr { text-align: right; }
    .out th { font-weight: bold; }
    .out tbody tr:nth-child(odd) { background: LAYOUT; }
    .out tbody tr:nth-child(even) { background: EVEN; }
    .out p { text-align: left; margin: 0; margin-bottom: 1em; }
    .themed .out pre, .themed .out code { border: 0; background-color: LAYOUT; color: FONT;
      font-family: monospace; font-size: inherit; line-height: 1.3; padding: 0;
      white-space: pre-wrap; }
    .themed .out :not(pre) > code { background-color: CODE; padding: 1px 5px; }
    """,
)

_THEMES = {
    "light": {"LAYOUT": "#ffffff", "FONT": "rgba(0,0,0,0.87)", "EVEN": "#f5f5f5", "CODE": "#eee"},
    "dark": {"LAYOUT": "#111111", "FONT": "#ffffff", "EVEN": "#212121", "CODE": "#424242"},
}


def jupyterlab_page(theme: str, *shown: Shown) -> str:
    """Return a page that shows objects as JupyterLab does, in its theme `light` or `dark`."""
    style = JUPYTERLAB
    for name, color in _THEMES[theme].items():
        style = style.replace(name, color)
    cells = "\n".join(f'<div class="out">{item._repr_html_()}</div>' for item in shown)
    return (
        f'<!doctype html><meta charset="utf-8"><style>{style}</style>'
        f'<body class="themed">{cells}</body>'
    )
