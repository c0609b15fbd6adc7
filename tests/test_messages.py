"""Names, sizes and errors as they appear in messages."""

from __future__ import annotations

import pytest

from finetunelib._messages import first_line, listed, quoted, readable_size


def test_eight_names_are_listed_and_the_rest_is_counted() -> None:
    """A message with hundreds of names could not be read."""
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert listed(list("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"


def test_quoted_names_are_in_backquotes() -> None:
    """This is the format of names in all messages."""
    assert quoted(["a.weight", "b"]) == "`a.weight`, `b`"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (KeyError("name"), "'name'"),
    ],
    ids=["two lines", "leading newline", "no message", "KeyError"],
)
def test_first_line_of_an_error(error: Exception, line: str) -> None:
    """An error without a message is named by its class."""
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_590_040, "1.6 MB"),
        (2_000_000_000, "2.0 GB"),
        (3_000_000_000_000, "3000.0 GB"),
    ],
)
def test_sizes_are_in_decimal_units(size: int, text: str) -> None:
    """The unit is the largest one that the size reaches."""
    assert readable_size(size) == text
