"""Lines and tables of text."""

from __future__ import annotations

from finetunelib._tables import text_table, wrapped


def test_lines_have_at_most_100_characters() -> None:
    """Words are not broken, and a number stays next to its noun."""
    name = "layer." * 30
    lines = wrapped(f"{'word ' * 19}5 more: {name} a\tb\x1b[2J", indent="  ")
    assert lines[:3] == ["  " + "word " * 18 + "word", "  5 more:", f"  {name}"]
    assert lines[3].split() == ["a", "b\\x1b[2J"]
    assert wrapped("") == []


def test_table_is_as_wide_as_its_cells() -> None:
    """Numbers are aligned to the right, and no line ends in spaces."""
    rows = [("a", "1", "x"), ("long name", "1,000", "")]
    assert text_table(("Name", "Size", "Note"), rows, numeric=("Size",), rules=True) == [
        "Name        Size  Note",
        "----------------------",
        "a              1  x",
        "long name  1,000",
        "----------------------",
    ]
    assert text_table(("A",), []) == ["A"]
