"""`benchmarks/fit_start.py`: each part returns what the documentation shows."""

from __future__ import annotations

import pytest

import fit_start
from support_process import reads_memory


@reads_memory
def test_each_part_returns_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rounds and rows, which say nothing about the speed."""
    monkeypatch.setattr(fit_start, "WARM_UP", 0)
    found = fit_start.fits(2)
    for kind in ("train", "train_and_val"):
        for which in ("new_trainer", "same_trainer"):
            assert found[kind][which]["plain_ms"] > 0
            assert len(found[kind][which]["added_ms_quartiles"]) == 2
    grown = fit_start.many(20)
    assert all(part["fits"] == 20 and part["last_to_first"] > 0 for part in grown.values())
    rows = fit_start.many_rows(2000)
    assert rows["number"] == 2000
    assert rows["batch_size_1"]["first_step_ms"] > 0
