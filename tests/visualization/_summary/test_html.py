"""The HTML table of a summary, as shown in notebooks."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib import build_mlp
from finetunelib.visualization import Summary, summary
from support_chromium import chromium, find_chromium


class Reader(HTMLParser):
    """Parses a table: its cells by row, and the names of all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(table: Summary) -> Reader:
    """Parse the HTML of a summary."""
    reader = Reader()
    reader.feed(table._repr_html_())
    reader.close()
    return reader


def test_table_contains_all_rows() -> None:
    """The table consists of a header, one row per module, and the notes; all tags are closed."""
    table = summary(build_mlp(784, [500], 10))
    reader = read(table)
    assert reader.open == []
    assert len(reader.rows) == 1 + len(table.rows) + 1
    head = ["head", "Linear", "2x10", "5,010", "5,010", "train", "float32", "20.0 kB"]
    assert reader.rows[-2] == head
    assert reader.rows[-1][0].startswith("397,510 parameters")


def test_names_and_messages_are_escaped() -> None:
    """Markup in a name, a class or an error message is shown as text."""

    class Failing(nn.Module):
        def forward(self, inputs: object) -> object:
            raise ValueError("<img src=x onerror=alert(1)>")

    Failing.__name__ = "<b>&"
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", Failing())
    table = summary(model, torch.zeros(2, 3))
    reader = read(table)
    assert reader.tags.isdisjoint({"script", "img", "b"})
    assert reader.rows[2][:2] == ["<script>alert(1)</script>", "<b>&"]
    assert "<img src=x" in reader.rows[-1][0]


def test_style_applies_only_to_the_table() -> None:
    """Every CSS selector starts with the class of the table."""
    style = summary(nn.Linear(2, 2))._repr_html_().partition("</style>")[0].partition(">")[2]
    selectors = [rule.partition("{")[0] for rule in style.split("}") if rule.strip()]
    assert selectors
    for selector in ",".join(selectors).split(","):
        assert selector.strip().startswith(".finetunelib-summary")


def test_failed_row_is_marked() -> None:
    """The row of the layer that failed has the CSS class `failed`."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(5, 4), nn.Linear(4, 2))
    assert summary(model, torch.zeros(2, 8))._repr_html_().count('<tr class="failed">') == 1


@pytest.mark.slow
def test_table_loads_nothing(tmp_path: Path) -> None:
    """A browser that shows the table requests only the file."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed")
    file = tmp_path / "summary.html"
    file.write_text(summary(build_mlp(784, [500], 10))._repr_html_(), encoding="utf-8")
    with chromium(path) as browser:
        assert browser.plain(file.as_uri()).requests == [file.as_uri()]
