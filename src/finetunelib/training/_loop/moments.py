"""What happens besides the steps of a run, and in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from finetunelib._preserve import derive_seed, random_state_preserved, reseed
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._callbacks.hooks import do_nothing

Hook: TypeAlias = Callable[[TrainContext], None]


class Moment:
    """Hooks that are called one after the other."""

    __slots__ = ("_hooks",)

    def __init__(self, *hooks: Hook) -> None:
        self._hooks = tuple(hook for hook in hooks if hook is not do_nothing)

    def call_once(self, hook: Hook) -> None:
        """Call a hook before the others, in the next call only."""
        others = self._hooks

        def first(context: TrainContext) -> None:
            self._hooks = others
            hook(context)

        self._hooks = (first, *others)

    def __call__(self, context: TrainContext) -> None:
        """Call every hook in order."""
        for hook in self._hooks:
            hook(context)


@dataclass(frozen=True, slots=True)
class Moments:
    """The hooks of a `fit`.

    Attributes:
        fit_start: Before the first epoch, when the data was checked.
        epoch_start: Before the data of an epoch is read.
        step_end: After each update.
        training_end: After the last step of an epoch, before validation.
        row: After the row of an interval was appended to the history.
        epoch_end: At the end of an epoch, after its row was appended to the history if it has one.
        fit_end: After the last epoch, and after an error, which it does not hide.
        fit_done: After `fit_end`, if there was no error.
    """

    fit_start: Moment
    epoch_start: Moment
    step_end: Moment
    training_end: Moment
    row: Moment
    epoch_end: Moment
    fit_end: Moment
    fit_done: Moment

    @contextlib.contextmanager
    def during_fit(self, context: TrainContext) -> Iterator[None]:
        """Call `fit_start` before the block, and `fit_end` after it or after an error."""
        with ended_by(self.fit_end, context):
            self.fit_start(context)
            try:
                yield
            finally:
                context.state.batch = 0  # The next `fit` starts an unfinished epoch again.


@contextlib.contextmanager
def ended_by(hook: Hook, context: TrainContext) -> Iterator[None]:
    """Call a hook at the end of a block without hiding an error in the block."""
    try:
        yield
    except BaseException as error:
        try:
            hook(context)
        except Exception as second:  # noqa: BLE001 - a hook may raise anything
            where = " ".join(getattr(second, "__notes__", ()))
            error.add_note(f"Afterwards {type(second).__name__}: {second} {where}".rstrip())
        raise
    hook(context)


def with_random_state_preserved(hook: Hook) -> Hook:
    """Return a hook that may draw random numbers without changing those of training."""
    if hook is do_nothing:
        return hook

    def call(context: TrainContext) -> None:
        with random_state_preserved():
            hook(context)

    return call


def with_seed_of_epoch(hook: Hook, seed: int) -> Hook:
    """Return a hook that draws random numbers of its own, which depend on the seed and epoch."""
    if hook is do_nothing:
        return hook

    def call(context: TrainContext) -> None:
        with random_state_preserved():
            reseed(derive_seed(seed, context.state.epoch, 1))
            hook(context)

    return call
