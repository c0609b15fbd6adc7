"""`benchmarks/memory.py`: each recipe trains, and what saves memory makes the estimate smaller."""

from __future__ import annotations

from pathlib import Path

import pytest

import memory

for _name in ("peft", "transformers"):
    pytest.importorskip(_name)


@pytest.mark.slow
def test_each_recipe_is_estimated_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small model; the peak of this process says nothing about it."""
    monkeypatch.setattr(memory, "SMALL_WIDTH", 8)
    monkeypatch.setattr(memory, "LAYERS", 2)
    peaks = iter(range(0, 100_000_000, 10_000_000))
    monkeypatch.setattr(memory, "peak", lambda: next(peaks))
    memory.write_bases(32, tmp_path)
    rows = [memory.measure(name, 32, 4, tmp_path) for name in memory.RECIPES]
    estimates = [row["estimated_mb"] for row in rows]
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[0] > estimates[-1] > 0
    assert all(row["measured_mb"] == 10 for row in rows)
    assert rows[2]["parameters"] > rows[0]["parameters"] == rows[1]["parameters"]
