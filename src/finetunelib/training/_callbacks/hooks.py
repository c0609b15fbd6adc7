"""The hooks of a list of callbacks, as the loop calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence

from finetunelib._messages import nearest
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext

#: The names of all hooks.
HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


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
        self.on_row = _caller(callbacks, "on_row")
        self.on_epoch_end = _caller(callbacks, "on_epoch_end")
        # One callback after the other, since a callback may change the row for those after it.
        self.on_row_of_epoch = _caller(callbacks, "on_row", "on_epoch_end")
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
        InvalidTypeError: If `callbacks` is not iterable, one of them is not a `Callback`, or a
            hook does not take one argument.
        InvalidArgumentError: If a method that starts with `on_` is not a hook.
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
        _check_hooks(callback, position)
        checked.append(callback)
    return checked


def _check_hooks(callback: Callback, position: int) -> None:
    """Raise if a method looks like a hook and would never be called, or could not be.

    Raises:
        InvalidArgumentError: If a method that starts with `on_` is not a hook.
        InvalidTypeError: If a hook does not take the context alone.
    """
    kind = type(callback).__name__
    for name in dir(callback):
        if not name.startswith("on_") or not callable(getattr(callback, name)):
            continue
        if name not in HOOKS:
            meant = _meant_by(name)
            hint = f"Did you mean `{meant}`? " if meant else f"The hooks are {', '.join(HOOKS)}. "
            raise InvalidArgumentError(
                f"callbacks[{position}] ({kind}) has a method `{name}`, which is not a hook and "
                f"would never be called. {hint}A method that is not a hook needs a name that does "
                "not start with `on_`."
            )
        if _overrides(callback, name) and not _takes_context(getattr(callback, name)):
            raise InvalidTypeError(
                f"callbacks[{position}] ({kind}): the hook `{name}` must take one argument besides "
                f"`self`, the context. Define it as `def {name}(self, context)`."
            )


def _meant_by(name: str) -> str | None:
    """Return the hook that a method was probably meant to be; other libraries use other words."""
    for theirs, ours in (("begin", "start"), ("train_batch", "step"), ("batch", "step")):
        name = name.replace(theirs, ours)
    return nearest(name.replace("train", "fit"), HOOKS)


def _overrides(callback: Callback, hook: str) -> bool:
    """Return whether a callback defines a hook: in its class, or as an attribute of its own."""
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def _takes_context(method: Callable[..., object]) -> bool:
    try:
        inspect.signature(method).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # Written in C, for example.
    return True


def do_nothing(context: TrainContext) -> None:
    """Do nothing: the hook that no callback overrides."""


def _caller(
    callbacks: Sequence[Callback], *hooks: str, ends: bool = False
) -> Callable[[TrainContext], None]:
    """Return a function that calls hooks of the callbacks that override them."""
    if not callbacks:
        return do_nothing
    overriding = [
        (callback, hook) for callback in callbacks for hook in hooks if _overrides(callback, hook)
    ]
    if not overriding:
        return do_nothing

    def call(context: TrainContext) -> None:
        failure: Exception | None = None
        for callback, hook in overriding:
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
