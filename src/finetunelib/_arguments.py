"""Checks of arguments that several packages share."""

from __future__ import annotations

import itertools
import os

from torch import nn
from torch.nn.parameter import is_lazy
from typing_extensions import TypeIs

from finetunelib.errors import InvalidArgumentError, InvalidTypeError

#: The largest whole number that files of this library contain.
LARGEST_IN_FILES = 2**63 - 1


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


def uninitialized(model: nn.Module, name: str = "", *, recurse: bool = True) -> str | None:
    """Return a message about the first lazy parameter or buffer without values, if any.

    Args:
        model: The module to search.
        name: Its dotted name in the user's model.
        recurse: Whether to search the modules inside it too.
    """
    tensors = itertools.chain(
        model.named_parameters(name, recurse), model.named_buffers(name, recurse)
    )
    for tensor_name, tensor in tensors:
        if is_lazy(tensor):
            return f"`{tensor_name}` is lazy and has no values yet. Run the model once on a batch."
    return None


def is_whole(value: object) -> TypeIs[int]:
    """Return whether a value is an `int` and not a `bool`."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: object) -> TypeIs[int]:
    """Return whether a value is an `int` from 0 on and not a `bool`."""
    return is_whole(value) and value >= 0


def is_number(value: object) -> TypeIs[int | float]:
    """Return whether a value is an `int` or a `float` and not a `bool`."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole(**values: object) -> None:
    """Check that arguments, passed by name, are whole numbers.

    Raises:
        InvalidTypeError: If one of them is not.
    """
    for name, value in values.items():
        if not is_whole(value):
            raise InvalidTypeError(
                f"`{name}` must be a whole number, got {value!r} ({type(value).__name__})."
            )


def check_at_least(least: int, **values: object) -> None:
    """Check that arguments, passed by name, are whole numbers of at least `least`.

    Raises:
        InvalidArgumentError: If one of them is smaller.
        InvalidTypeError: If one of them is not a whole number.
    """
    check_whole(**values)
    for name, value in values.items():
        if is_whole(value) and value < least:
            raise InvalidArgumentError(f"`{name}` must be at least {least}, got {value}.")
