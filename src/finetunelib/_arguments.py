"""Checks of arguments that several packages share."""

from __future__ import annotations

import os

from torch import nn

from finetunelib.errors import InvalidArgumentError, InvalidTypeError


def check_model(model: object) -> nn.Module:
    """Return `model` if it is a module.

    Raises:
        InvalidTypeError: If `model` is not an `nn.Module`, such as a class or a path.
    """
    if isinstance(model, nn.Module):
        return model
    hint = ""
    if isinstance(model, type):
        hint = f" Pass an object: {model.__name__}(...)."
    elif isinstance(model, str | os.PathLike):
        hint = " The model is the first argument."
    raise InvalidTypeError(
        f"`model` must be a torch.nn.Module, got {model!r} ({type(model).__name__}).{hint}"
    )


def check_whole(**values: object) -> None:
    """Raise when one of some arguments, passed by name, is no whole number.

    Raises:
        InvalidTypeError: One is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(
                f"`{name}` must be a whole number, but is {value!r} ({type(value).__name__})."
            )


def check_at_least(least: int, **values: int) -> None:
    """Raise when one of some arguments, passed by name, is below its least value.

    Raises:
        InvalidArgumentError: One is.
        InvalidTypeError: One is no whole number.
    """
    check_whole(**values)
    for name, value in values.items():
        if value < least:
            raise InvalidArgumentError(f"`{name}` must be at least {least}, but is {value}.")
