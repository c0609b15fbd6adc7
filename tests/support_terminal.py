"""A terminal whose text can be read."""

from __future__ import annotations

import io
import sys

import pytest


class Terminal(io.StringIO):
    """A text stream that reports to be a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr by a terminal whose text can be read.

    Not a fixture, because pytest replaces stderr between the setup of a test and its call.
    """
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream
