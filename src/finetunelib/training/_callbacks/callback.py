"""Callbacks: the base class that users extend, and the calls that the loop makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from finetunelib._public import public
from finetunelib.errors import CallbackError, CheckpointError, InvalidTypeError
from finetunelib.training._callbacks.context import TrainContext


@public("finetunelib.training")
class Callback:
    """Something that happens beside a training. Extend the hooks that are needed.

    Hooks are called in the order of the list that the Trainer was given. They see the training
    through a `TrainContext`. An exception in a hook ends the training, and names the callback.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.training import Callback
        >>> class PrintLoss(Callback):
        ...     def on_epoch_end(self, context):
        ...         print(f"epoch {context.state.epoch}: {context.history['train_loss'][-1]:.2f}")
        >>> model = build_mlp(4, [], 2, seed=0)
        >>> trainer = Trainer(model, callbacks=[PrintLoss()], progress=False)
        >>> _ = trainer.fit((torch.zeros(8, 4), torch.zeros(8).long()), epochs=1)
        epoch 1: 0.79
    """

    def on_fit_start(self, context: TrainContext) -> None:
        """Run before the first epoch of a `fit`; the data was checked."""

    def on_epoch_start(self, context: TrainContext) -> None:
        """Run before the first step of an epoch."""

    def on_step_end(self, context: TrainContext) -> None:
        """Run after each update of the weights."""

    def on_validation_start(self, context: TrainContext) -> None:
        """Run before the model is measured on the validation data."""

    def on_validation_end(self, context: TrainContext) -> None:
        """Run after that, also when measuring failed."""

    def on_epoch_end(self, context: TrainContext) -> None:
        """Run when an epoch's row stands in the history."""

    def on_fit_end(self, context: TrainContext) -> None:
        """Run after the last epoch of a `fit`, also when an error ended it."""

    def on_interrupt(self, context: TrainContext) -> None:
        """Run when Ctrl-C or SIGTERM ends the training, between two steps.

        A checkpoint that is requested here is still written.
        """

    def on_checkpoint(self, context: TrainContext) -> None:
        """Run after a checkpoint was written; `context.last_checkpoint` is its folder."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for this callback to go on as if never stopped.

        Numbers, strings, tensors, and lists and dicts of them. A callback that returns nothing
        has no state.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned, before `on_fit_start` is called.

        Raises:
            CheckpointError: This callback has no state.
        """
        if state:
            raise CheckpointError(
                f"The checkpoint holds a state for {type(self).__name__}, which has no "
                "`load_state_dict`. Resume with the callback that wrote it."
            )


class Callbacks:
    """The callbacks of a training, called in their order.

    What begins is ended: the hooks that end something are called for every callback, also when
    one of them fails, and the first failure comes out.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.on_fit_start = _caller(callbacks, "on_fit_start")
        self.on_epoch_start = _caller(callbacks, "on_epoch_start")
        self.on_step_end = _caller(callbacks, "on_step_end")
        self.on_validation_start = _caller(callbacks, "on_validation_start")
        self.on_validation_end = _caller(callbacks, "on_validation_end", ends=True)
        self.on_epoch_end = _caller(callbacks, "on_epoch_end")
        self.on_fit_end = _caller(callbacks, "on_fit_end", ends=True)
        self.on_interrupt = _caller(callbacks, "on_interrupt")
        self.on_checkpoint = _caller(callbacks, "on_checkpoint")


def by_name(callbacks: Iterable[Callback]) -> dict[str, Callback]:
    """Return callbacks under the names of their states: their class, numbered from the second."""
    named: dict[str, Callback] = {}
    for callback in callbacks:
        name = kind = type(callback).__name__
        number = 1
        while name in named:
            number += 1
            name = f"{kind}.{number}"
        named[name] = callback
    return named


def check_callbacks(callbacks: Iterable[object]) -> list[Callback]:
    """Return the callbacks as a list.

    Raises:
        InvalidTypeError: One is a class instead of an object, or no callback; or there is no
            list.
    """
    if not isinstance(callbacks, Iterable):
        raise InvalidTypeError(
            f"`callbacks` must be a list of callbacks, but is {callbacks!r}. Pass [callback]."
        )
    checked: list[Callback] = []
    for position, callback in enumerate(callbacks):
        if isinstance(callback, type):
            raise InvalidTypeError(
                f"callbacks[{position}] is the class {callback.__name__}. Pass an object: "
                f"{callback.__name__}(...)."
            )
        if not isinstance(callback, Callback):
            raise InvalidTypeError(
                f"callbacks[{position}] is of type {type(callback).__name__}, which does not "
                "derive from finetunelib.training.Callback."
            )
        checked.append(callback)
    return checked


def _caller(
    callbacks: Sequence[Callback], hook: str, *, ends: bool = False
) -> Callable[[TrainContext], None]:
    """Return a function that calls one hook of those callbacks that extend it."""
    extended = [
        callback
        for callback in callbacks
        if getattr(type(callback), hook) is not getattr(Callback, hook)
    ]

    def call(context: TrainContext) -> None:
        failure: CallbackError | None = None
        for callback in extended:
            try:
                getattr(callback, hook)(context)
            # Whatever a user's hook raises is reported with the name of its callback.
            except Exception as error:
                named = CallbackError(
                    f"The callback {type(callback).__name__} failed in `{hook}`: "
                    f"{type(error).__name__}: {error}"
                )
                named.__cause__ = error
                if not ends:
                    raise named from error
                failure = failure or named
        if failure is not None:
            raise failure

    return call
