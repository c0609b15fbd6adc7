"""The limits of a `fit`: epochs, steps, and how often its data can be read."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetunelib._arguments import is_whole
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._loop.feed import FitData, Window
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
        if state.batch and (state.step >= self.last_step or context.stop_reason is not None):
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


def check_rows(validate_every_n_steps: int | None, train: object, val: object) -> None:
    """Check the argument that lets rows of the history follow steps.

    Raises:
        InvalidArgumentError: If it is not a whole number of at least 1, there is no validation
            data, or validation would start the workers of training again.
    """
    n = validate_every_n_steps
    if n is None:
        return
    if not (is_whole(n) and n >= 1):
        raise InvalidArgumentError(
            f"`validate_every_n_steps` must be a whole number of at least 1, got {n!r}."
        )
    if val is None:
        raise InvalidArgumentError(
            f"`validate_every_n_steps` is {n}, but there is no `val`. Pass validation data."
        )
    shared = any(part is train for part in _sets_of(val))
    if shared and getattr(train, "persistent_workers", False):
        raise InvalidArgumentError(
            "`train` and `val` are the same DataLoader with `persistent_workers=True`, whose "
            "workers cannot read it twice at the same time. Pass a second DataLoader as `val`."
        )


def check_ends(data: Mapping[str, object], max_steps: int | None) -> None:
    """Check that no data is known to be endless, unless a number of steps ends the training.

    Only the iterators of `itertools` are known to be endless. A generator is not.

    Raises:
        InvalidArgumentError: If data is endless.
    """
    for name, value in data.items():
        endless = next(filter(_is_endless, _sets_of(value)), None)
        if endless is None:
            continue
        if name != "train":
            raise InvalidArgumentError(
                f"`{name}` is an endless {type(endless).__name__}, so its validation would not "
                "end. Pass a list or a DataLoader."
            )
        if max_steps is None:
            raise InvalidArgumentError(
                f"`{name}` is an endless {type(endless).__name__}, so an epoch would not end. Pass "
                "`max_steps`, and `validate_every_n_steps` to validate in between."
            )


def _sets_of(data: object) -> list[object]:
    """Return the sets of validation data, or the data itself."""
    return list(data.values()) if isinstance(data, Mapping) else [data]


def _is_endless(data: object) -> bool:
    if isinstance(data, itertools.repeat):
        return operator.length_hint(data, sys.maxsize) == sys.maxsize
    return isinstance(data, itertools.cycle | itertools.count)


def check_replayable(data: FitData, epochs: int | None, max_steps: int | None) -> None:
    """Check that data which can be read only once is not read again.

    Raises:
        InvalidArgumentError: If training data is an iterator, `epochs` is not 1, and no number of
            steps ends the first epoch; or if validation data is an iterator that is to be read
            more than once.
    """
    often = f"`epochs` must be 1, got {epochs}"
    if not data.train.replayable and epochs != 1 and (epochs is not None or max_steps is None):
        raise InvalidArgumentError(_read_once("train", often))
    if data.val is None or data.val.replayable:
        return
    if data.signature.validate_every_n_steps is not None:
        raise InvalidArgumentError(_read_once("val", "it cannot be read after every few steps"))
    if epochs != 1:
        raise InvalidArgumentError(_read_once("val", often))


def _read_once(name: str, consequence: str) -> str:
    return (
        f"`{name}` is an iterator, which can be read only once, so {consequence}. Pass a list, a "
        "DataLoader or another iterable for more."
    )
