"""Groups of hooks: their order, errors and random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetunelib.training._callbacks.hooks import do_nothing
from finetunelib.training._loop.moments import (
    Moment,
    ended_by,
    with_random_state_preserved,
    with_seed_of_epoch,
)
from finetunelib.training._state import TrainState
from training.tiny import random_states


class Context:
    """The part of a context that hooks of this module read."""

    def __init__(self, epoch: int = 0) -> None:
        self.state = TrainState(epoch=epoch)


def context(epoch: int = 0) -> Any:
    """Return a context in an epoch."""
    return Context(epoch)


def test_hooks_of_a_moment_are_called_in_order() -> None:
    """Each hook gets the context, and the first error stops the others."""
    calls: list[Any] = []

    def fail(_: Any) -> None:
        raise KeyError

    given = context()
    moment = Moment(lambda c: calls.append(("a", c)), lambda c: calls.append(("b", c)))
    moment(given)
    assert calls == [("a", given), ("b", given)]
    with pytest.raises(KeyError):
        Moment(fail, moment)(given)
    assert len(calls) == 2


@pytest.mark.parametrize("error", [KeyError("first"), KeyboardInterrupt()])
def test_hook_that_fails_at_the_end_does_not_hide_an_error_of_the_block(
    error: BaseException,
) -> None:
    """The error of the block is raised, and the hook has been called."""
    calls: list[Any] = []

    def fail(given: Any) -> None:
        calls.append(given)
        raise ValueError("second")

    with pytest.raises(type(error)) as caught, ended_by(fail, context()):
        raise error
    assert caught.value is error
    assert "ValueError: second" in caught.value.__notes__[-1]
    assert len(calls) == 1


def test_hook_may_draw_random_numbers() -> None:
    """The random states of training are the same afterwards."""
    before = random_states()

    def draw(_: object) -> None:
        torch.rand(3)

    with_random_state_preserved(draw)(context())
    assert random_states() == before


def test_random_numbers_of_a_hook_depend_on_seed_and_epoch_alone() -> None:
    """They are the same in a resumed run, and different in the next epoch."""
    drawn: list[float] = []
    hook = with_seed_of_epoch(lambda _: drawn.append(float(torch.rand(()))), seed=3)
    before = random_states()
    hook(context(0))
    assert random_states() == before
    torch.rand(1)
    hook(context(0))
    hook(context(1))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_hook_that_does_nothing_stays_what_it_is() -> None:
    """Saving the random states for it would take a part of each `fit`."""
    assert with_random_state_preserved(do_nothing) is do_nothing
    assert with_seed_of_epoch(do_nothing, seed=3) is do_nothing
