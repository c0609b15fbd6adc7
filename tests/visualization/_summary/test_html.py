"""The HTML table of a summary, as shown in notebooks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from finetunelib import build_mlp
from finetunelib.visualization import summary
from support_chromium import chromium, find_chromium
from support_html import jupyterlab_page, read


def test_table_contains_all_rows() -> None:
    """The table consists of a header and one row per module, with the notes below."""
    table = summary(build_mlp(784, [500], 10))
    reader = read(table)
    assert len(reader.rows) == 1 + len(table.rows)
    head = ["head", "Linear", "2x10", "5,010", "5,010", "train", "float32", "20.0 kB"]
    assert reader.rows[-1] == head
    assert reader.paragraphs[0] == "MLP on a guessed input of 2x784 float32"
    assert reader.paragraphs[1].startswith("397,510 parameters")


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
    assert "<img src=x" in reader.paragraphs[-1]


def test_failed_row_is_marked() -> None:
    """The row of the layer that failed has the CSS class `failed`."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(5, 4), nn.Linear(4, 2))
    assert summary(model, torch.zeros(2, 8))._repr_html_().count('<tr class="failed">') == 1


#: The left edges of the names, and whether each heading is above its cells and legible.
_LAYOUT = """(() => {
    const left = (cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return range.getBoundingClientRect();
    };
    const rows = [...document.querySelectorAll("tr")].map((row) => [...row.children]);
    return {
        names: rows.slice(1).map((cells) => Math.round(left(cells[0]).left)),
        classes: [...new Set(rows.map((cells) => Math.round(left(cells[1]).left)))],
        memory: [...new Set(rows.map((cells) => Math.round(left(cells[7]).right)))],
        heights: rows.slice(1).map((cells) => cells[0].offsetHeight),
        colors: [...new Set(rows.flat().map((cell) => getComputedStyle(cell).color))],
    };
})()"""


@pytest.mark.slow
def test_layout_in_jupyterlab(tmp_path: Path) -> None:
    """The style sheets of JupyterLab change neither the indentation nor the alignment.

    The browser requests only the file.
    """
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed")
    table = summary(build_mlp(784, [500], 10))
    with chromium(path) as browser:
        for theme, color in (("light", "rgba(0, 0, 0, 0.87)"), ("dark", "rgb(255, 255, 255)")):
            file = tmp_path / f"{theme}.html"
            file.write_text(jupyterlab_page(theme, table), encoding="utf-8")
            layout, requests = browser.loaded(file.as_uri(), _LAYOUT)
            assert requests == [file.as_uri()]
            whole, *parts = layout["names"]
            first = parts[0] - whole
            depths = [row.depth for row in table.rows[1:]]
            assert first > 5
            assert all(
                abs(place - whole - first * depth) <= 1
                for place, depth in zip(parts, depths, strict=True)
            )
            assert len(layout["classes"]) == len(layout["memory"]) == 1
            assert max(layout["heights"]) - min(layout["heights"]) <= 1
            assert layout["colors"] == [color]
