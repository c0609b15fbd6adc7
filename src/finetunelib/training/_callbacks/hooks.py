"""The hooks of a list of callbacks, as the loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from finetunelib.errors import InvalidTypeError
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext


class Callbacks:
    """The callbacks of a training run, with one function per hook that calls them in order.

    An exception in a hook keeps later callbacks from being called, except in the hooks that end
    something: those are called for every callback, and then the first exception is raised. It
    keeps its type, and a note names the callback, the hook, the epoch and the step.
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
    """Return the callbacks by the name of their state: the class, then the class with `.2`, ..."""
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
        InvalidTypeError: If `callbacks` is not iterable, or one of them is not a `Callback`.
    """
    if not isinstance(callbacks, Iterable):
        raise InvalidTypeError(
            f"`callbacks` must be a list of callbacks, got {callbacks!r}. Pass [callback]."
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
                f"callbacks[{position}] must be a finetunelib.training.Callback, got "
                f"{type(callback).__name__}. Derive its class from Callback."
            )
        checked.append(callback)
    return checked


def _caller(
    callbacks: Sequence[Callback], hook: str, *, ends: bool = False
) -> Callable[[TrainContext], None]:
    """Return a function that calls one hook of the callbacks that override it."""
    overriding = [
        callback
        for callback in callbacks
        if getattr(type(callback), hook) is not getattr(Callback, hook)
    ]

    def call(context: TrainContext) -> None:
        failure: Exception | None = None
        for callback in overriding:
            try:
                getattr(callback, hook)(context)
            # A hook is user code and may raise anything.
            except Exception as error:
                error.add_note(
                    f"In `{hook}` of the callback {type(callback).__name__}, after "
                    f"{context.state.epoch} epochs and {context.state.step} steps."
                )
                if not ends:
                    raise
                failure = failure or error
        if failure is not None:
            raise failure

    return call
