"""The hooks of a list of callbacks, as the loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from finetunelib.errors import CallbackError, InvalidTypeError
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext


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
