"""A comparison that takes long shows its progress."""

from __future__ import annotations

import pytest

from finetunelib.export._verification import progress
from finetunelib.export._verification.progress import long_comparison


def test_only_a_long_comparison_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log gets one line at the end, and nothing after an error."""
    with long_comparison() as count:
        count(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_LONG", -1.0)
    with long_comparison() as count:
        count(5)
        count(6)
    assert "11 samples" in capsys.readouterr().err
    with pytest.raises(KeyError), long_comparison() as count:
        count(dict[str, int]()["samples"])
    assert capsys.readouterr().err == ""
