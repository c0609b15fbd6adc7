"""The limits of a `fit`: epochs, steps, and how often its data can be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetunelib._arguments import is_whole
from finetunelib.data._batches import Batches
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._loop.feed import Window
from finetunelib.training._optimization.horizon import Plan
from finetunelib.training._state import TrainState


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends: after an epoch, after a step, or when a callback requests it.

    Attributes:
        last_epoch: The number of the last epoch, or infinity.
        last_step: The number of the last step, or infinity. It may be inside an epoch.
    """

    last_epoch: float
    last_step: float

    @classmethod
    def after(cls, start: TrainState, epochs: int | None, max_steps: int | None) -> Limits:
        """Return the limits of a run that counts from `start`."""
        return cls(
            math.inf if epochs is None else start.epoch + epochs,
            math.inf if max_steps is None else start.step + max_steps,
        )

    def plan(self, state: TrainState, batches: int | None, accumulation_steps: int) -> Plan:
        """Return what is left of the run, as far as it is known before it starts.

        Args:
            state: The counters at the start.
            batches: The number of batches in an epoch, or `None` if unknown.
            accumulation_steps: The number of batches in an update.
        """
        epochs, steps = self.last_epoch - state.epoch, self.last_step - state.step
        if batches is None:
            return Plan(_whole(epochs), _whole(steps), None, None, None)
        per_epoch = math.ceil(batches / accumulation_steps)
        used = math.ceil(state.batch / accumulation_steps)  # of an unfinished epoch
        steps = max(0.0, min(steps, epochs * per_epoch - used))
        if not math.isinf(steps):
            epochs = math.ceil((used + steps) / per_epoch)
        all_batches = epochs * batches - state.batch
        return Plan(_whole(epochs), _whole(steps), _whole(all_batches), per_epoch, batches)

    def allow_epoch(self, context: TrainContext) -> bool:
        """Return whether another epoch, or the rest of an unfinished one, may be trained."""
        state = context.state
        within = state.epoch < self.last_epoch and state.step < self.last_step
        return (within or state.batch > 0) and context.stop_reason is None

    def windows(self, windows: Iterator[Window], context: TrainContext) -> Iterator[Window]:
        """Yield windows until the epoch or the run ends. No window beyond a limit is read."""
        state = context.state
        if state.batch and state.step >= self.last_step:
            return  # A checkpoint of the last step lacks only the end of its epoch.
        for window in windows:
            yield window
            if state.step >= self.last_step or context.stop_reason is not None:
                return


def _whole(number: float) -> int | None:
    return None if math.isinf(number) else int(number)


def check_limits(epochs: int | None, max_steps: int | None) -> None:
    """Check that a `fit` has a limit.

    Raises:
        InvalidArgumentError: If neither limit is given, or one is not a whole number of at least
            1.
    """
    if epochs is None and max_steps is None:
        raise InvalidArgumentError("`fit` needs a limit: pass `epochs`, `max_steps` or both.")
    for name, limit in (("epochs", epochs), ("max_steps", max_steps)):
        if limit is not None and not (is_whole(limit) and limit >= 1):
            raise InvalidArgumentError(
                f"`{name}` must be a whole number of at least 1, got {limit!r}."
            )


def check_replayable(data: Mapping[str, Batches | None], epochs: int | None) -> None:
    """Check that data which can be read only once is not read again.

    Raises:
        InvalidArgumentError: If it is an iterator and `epochs` is not 1.
    """
    for name, batches in data.items():
        if batches is not None and not batches.replayable and epochs != 1:
            raise InvalidArgumentError(
                f"`{name}` is an iterator, which can be read only once, so `epochs` must be 1, "
                f"got {epochs}. Pass a list, a DataLoader or another iterable for more."
            )
