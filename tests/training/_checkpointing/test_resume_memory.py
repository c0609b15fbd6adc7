"""Resuming needs memory for the state of the optimizer once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from finetunelib import Trainer
from finetunelib.callbacks import EMA
from finetunelib.training import Callback

WIDTH = 256
POINTS = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def trainer(*callbacks: Callback) -> Trainer:
    """Return a Trainer of six equal layers, with AdamW."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(6)), nn.Linear(WIDTH, 3))
    return Trainer(
        model,
        batch_size=4,
        optimizer=torch.optim.AdamW,
        callbacks=callbacks,
        device="cpu",
        progress=False,
    )


def size_of(model: nn.Module) -> int:
    """Return the bytes of the parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("averages", [0, 1])
def test_the_state_is_read_into_its_place(tmp_path: Path, averages: int) -> None:
    """Loading takes the two moments, the averages, and nothing that grows with the model."""
    first = trainer(*(EMA() for _ in range(averages)))
    first.fit(POINTS, max_steps=2)
    first.save_checkpoint(tmp_path / "checkpoint")
    again = trainer(*(EMA() for _ in range(averages)))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        again.load_checkpoint(tmp_path / "checkpoint")
    results: Any = recorded.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    weights = size_of(first.model)
    file = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    # The file of weights is mapped while its header is checked, which takes no memory.
    peak = max(accumulate(size for size in sizes if abs(size) < file - 65536))
    state = (2 + averages) * weights
    assert state <= peak < state + weights / 3


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Free memory when the last reference disappears, and not because a cycle is found."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_a_damaged_checkpoint_is_freed_before_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of both are never in memory at the same time."""
    first = trainer()
    for steps in (1, 2):
        first.fit(POINTS, max_steps=1)
        first.save_checkpoint(tmp_path / str(steps))
    with (tmp_path / "2" / "state.pt").open("r+b") as file:
        file.seek(-WIDTH * WIDTH, 2)  # Within the values of a tensor.
        file.write(b"damaged")
    moments: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    load = torch.load

    def recorded(*args: Any, **kwargs: Any) -> Any:
        alive.append(sum(reference() is not None for reference in moments))
        state = load(*args, **kwargs)
        moments.extend(weakref.ref(s["exp_avg"]) for s in state["optimizer"]["state"].values())
        return state

    monkeypatch.setattr(torch, "load", recorded)
    again = trainer()
    with pytest.warns(UserWarning, match="skipped"):
        again.load_checkpoint(tmp_path)
    assert again.state.step == 1
    assert len(moments) == 2 * len(list(again.model.parameters()))
    assert alive == [0, 0]
