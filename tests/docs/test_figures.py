"""Every measured number on a page agrees with a file that a script wrote.

A number on a page is followed by a comment that names the file and the key in it:
`1.10<!-- figure: benchmarks/results/checkpoint.json:1.ratio -->`, or for a quotient
`6.5<!-- figure: benchmarks/results/tutorial.json:tutorial_seconds over example_seconds -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support_pages import DOCS, ROOT, name_of, pages, prose_of

_MARK = re.compile(
    r"(?P<shown>\d[\d,]*(?:\.\d+)?)(?P<percent>%?)"
    r"<!-- figure: (?P<file>[^\s:]+):(?P<place>\S+)(?: over (?P<by>\S+))? -->"
)

#: Numbers with these units were measured: a speed, a duration, a percentage.
_MEASURED = re.compile(
    r"\d(?:%| times as| s\b| ms\b| µs\b| (?:milli|micro)?seconds?\b)(?!<!-- figure: )"
)

#: Numbers that this project did not measure.
GIVEN = ("chance is 20%",)

#: Pages whose numbers are not marked yet.
NOT_YET = {"README.md", "README.zh-CN.md"}


def value_at(file: str, place: str) -> float:
    """Return the number at a key such as `1.ratio` in a JSON file of the repository."""
    value = json.loads((ROOT / file).read_text(encoding="utf-8"))
    for key in place.split("."):
        if isinstance(value, list):
            value = value[int(key)]
        else:  # A space in a name becomes an underscore.
            value = value[key if key in value else key.replace("_", " ")]
    assert isinstance(value, int | float)
    return value


def shown_as(value: float, like: str, *, percent: bool) -> str:
    """Return a value with as many decimals as another number."""
    decimals = len(like.partition(".")[2])
    return f"{100 * value if percent else value:.{decimals}f}"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_a_marked_figure_agrees_with_its_file(page: Path) -> None:
    """A number on a page equals that in its file, rounded to the digits shown."""
    text = page.read_text(encoding="utf-8")
    found = list(_MARK.finditer(text))
    assert len(found) == text.count("<!-- figure:"), "A mark has no number in front of it."
    for mark in found:
        value = value_at(mark["file"], mark["place"])
        if mark["by"]:
            value /= value_at(mark["file"], mark["by"])
        shown = mark["shown"].replace(",", "")
        assert shown == shown_as(value, shown, percent=bool(mark["percent"])), mark[0]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_a_measured_number_is_marked(page: Path) -> None:
    """No page states a speed, a duration or a percentage without its file."""
    if page.name in NOT_YET:
        return
    prose = prose_of(page.read_text(encoding="utf-8"))
    for given in GIVEN:
        prose = prose.replace(given, "")
    unmarked = [prose[max(0, m.start() - 40) : m.end() + 20] for m in _MEASURED.finditer(prose)]
    assert not unmarked, unmarked


def test_figures_are_found() -> None:
    """The tests above have numbers to check."""
    marked = [page for page in pages() if "<!-- figure:" in page.read_text(encoding="utf-8")]
    assert DOCS / "concepts" / "heads.md" in marked
    assert DOCS / "how-to" / "stop-and-resume.md" in marked


def test_a_wrong_figure_would_be_noticed() -> None:
    """Values are rounded to the digits shown, and fractions are compared as percentages."""
    assert shown_as(1.096, "1.10", percent=False) == "1.10"
    assert shown_as(1.096, "1.2", percent=False) != "1.2"
    assert shown_as(0.9736, "97.36", percent=True) == "97.36"
    assert _MEASURED.search("takes 6.5 times as long")
    assert not _MEASURED.search("takes 6.5<!-- figure: a.json:b --> times as long")
