"""The Trainer refuses to run in one of several processes."""

from __future__ import annotations

import pytest

from finetunelib.errors import InvalidArgumentError
from training.tiny import Untouched, plain_network, points, quiet_trainer


def test_several_processes_are_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message contains the variable and the number, and nothing is changed."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    model = plain_network()
    untouched = Untouched(model)
    trainer = quiet_trainer(model)
    with pytest.raises(InvalidArgumentError, match=r"one of 4.*WORLD_SIZE"):
        trainer.fit(points(8), epochs=1)
    untouched.check()
    monkeypatch.delenv("WORLD_SIZE")
    assert trainer.fit(points(8), epochs=1)["step"] == [2]


@pytest.mark.parametrize("value", ["1", "", " ", "all", "-1"])
def test_single_process_trains(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A launcher may start one process, and the variable may have another meaning."""
    monkeypatch.setenv("WORLD_SIZE", value)
    assert quiet_trainer(plain_network()).fit(points(8), epochs=1)["step"] == [2]
