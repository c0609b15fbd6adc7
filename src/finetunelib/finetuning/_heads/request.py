"""What a call of `replace_head` asks for, and the checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from finetunelib._forward.inputs import ModelInputs
from finetunelib.errors import HeadError, InvalidArgumentError, InvalidTypeError

#: A module that becomes the head, or a function from its number of input features to one.
NewHead: TypeAlias = nn.Module | Callable[[int], nn.Module]


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """The arguments of `replace_head`, other than the model."""

    num_classes: int | None
    head: NewHead | None
    at: str | None
    example_input: ModelInputs | None


def check_request(model: nn.Module, request: HeadRequest) -> None:
    """Check the arguments for an unwrapped model.

    Raises:
        HeadError: If the new head contains the model.
        InvalidArgumentError: If not exactly one of `num_classes` and `head` is given, or there are
            too few classes.
        InvalidTypeError: If an argument has another type.
    """
    if (request.num_classes is None) == (request.head is None):
        given = "neither" if request.head is None else "both"
        raise InvalidArgumentError(
            f"Pass either `num_classes` or `head`, got {given}. `num_classes` creates a layer "
            "like the old one; `head` is a module, or a function from a width to a module."
        )
    _check_num_classes(request.num_classes)
    _check_head(model, request.head)
    if request.at is not None and not isinstance(request.at, str):
        raise InvalidTypeError(
            "`at` must be the dotted name of a module, such as 'classifier.6', got "
            f"{type(request.at).__name__}."
        )


def _check_num_classes(num_classes: int | None) -> None:
    if num_classes is None:
        return
    if isinstance(num_classes, bool) or not hasattr(num_classes, "__index__"):
        raise InvalidTypeError(
            f"`num_classes` must be an integer, got {num_classes!r} ({type(num_classes).__name__})."
        )
    if num_classes < 1:
        raise InvalidArgumentError(f"`num_classes` must be at least 1, got {num_classes}.")


def _check_head(model: nn.Module, head: NewHead | None) -> None:
    if isinstance(head, type):
        raise InvalidTypeError(
            f"`head` is the class {head.__name__}. Pass a module, or a function from a width to "
            f"one: `head=lambda features: {head.__name__}(features, 10)`."
        )
    if head is not None and not callable(head):
        raise InvalidTypeError(
            "`head` must be a module, or a function from a width to a module, got "
            f"{head!r} ({type(head).__name__})."
        )
    if isinstance(head, nn.Module) and model in head.modules():
        raise HeadError(
            "`head` contains the model itself, which cannot be a part of its own head. Pass only "
            "the new last layers."
        )
