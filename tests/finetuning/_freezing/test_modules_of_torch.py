"""A sample of the sweep over PyTorch's own modules, and its stored results."""

from __future__ import annotations

import json

import pytest

from conformance import frozen_models, modules

_SAMPLE = ("nn.BatchNorm2d", "nn.LSTM", "nn.MultiheadAttention", "nn.Embedding")


@pytest.mark.slow
@pytest.mark.parametrize("name", _SAMPLE)
@pytest.mark.filterwarnings("ignore")  # PyTorch's list of modules imports deprecated modules.
def test_a_module_stays_frozen_under_a_new_head(name: str) -> None:
    """The head is found, frozen tensors are unchanged, and the weights survive a round trip."""
    cases = [case for case in modules.cases(name) if case.name.startswith(f"{name}/")][:4]
    assert cases
    for case in cases:
        assert modules.check(case.model) == ""


def test_the_stored_sweep_of_modules_has_no_failure() -> None:
    """Only norms without statistics were refused."""
    stored = json.loads(modules.RESULTS.read_text(encoding="utf-8"))
    assert stored["failed"] == {}
    assert stored["modules"] >= 100
    assert all("without running statistics" in message for message in stored["refused"].values())


def test_the_page_shows_the_stored_table_of_models() -> None:
    """The documentation shows the stored results, and no model failed."""
    stored = json.loads(frozen_models.RESULTS.read_text(encoding="utf-8"))
    assert {case.name for case in frozen_models.models()} == set(stored["models"])
    assert not any(outcome["problem"] for outcome in stored["models"].values())
    assert frozen_models.page(stored) == frozen_models.PAGE.read_text(encoding="utf-8")
