"""Checks of what callbacks find in a checkpoint, before it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from finetunelib._arguments import is_count, is_number
from finetunelib._forward.state_tensors import state_tensors
from finetunelib._messages import quoted
from finetunelib.errors import CheckpointError


def check_value(callback: object, condition: bool, name: str, expected: str) -> None:
    """Raise if a condition about a value in the state of a callback does not hold.

    Args:
        callback: The callback, for the message.
        condition: The condition.
        name: The key of the value.
        expected: What the value must be.

    Raises:
        CheckpointError: If it does not hold.
    """
    if not condition:
        raise _damaged(callback, name, expected)


def _damaged(callback: object, name: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint's state of {type(callback).__name__} is damaged: `{name}` must be "
        f"{expected}. Resume from another checkpoint."
    )


def check_keys(callback: object, state: Mapping[str, Any], *names: str) -> None:
    """Raise if the state of a callback lacks one of these keys.

    Raises:
        CheckpointError: If a key is missing.
    """
    for name in names:
        check_value(callback, name in state, name, "present")


def check_tensors(callback: object, tensors: object, name: str, model: nn.Module) -> None:
    """Raise if a value is neither empty nor one tensor for each tensor in a model's state.

    Args:
        callback: The callback, for the message.
        tensors: The value.
        name: Its key.
        model: The model.

    Raises:
        CheckpointError: If a name, a shape or a type differs.
    """
    if not isinstance(tensors, dict):
        raise _damaged(callback, name, "a dict of tensors")
    own = state_tensors(model)
    different = [str(n) for n in own.keys() ^ tensors.keys()]
    if not different or not tensors:
        different = [n for n, value in tensors.items() if not _fits(value, own[n])]
    expected = f"the tensors of the model, from which it differs in {quoted(sorted(different))}"
    check_value(callback, not different, name, expected)


def _fits(value: object, own: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == own.shape
        and value.layout is own.layout
        and value.is_quantized == own.is_quantized
        and value.is_floating_point() == own.is_floating_point()
    )


def check_improvement(callback: object, state: object) -> None:
    """Raise if a value is not the state of an `Improvement`.

    Raises:
        CheckpointError: If a key is missing or a value has another type.
    """
    if not isinstance(state, dict):
        raise _damaged(callback, "improvement", "a dict")
    check_keys(callback, state, "monitor", "best")
    check_value(callback, isinstance(state["monitor"], str), "monitor", "the name of a column")
    best = state["best"]
    possible = is_number(best) and (math.isnan(best) or abs(best) < math.inf)
    check_value(callback, possible, "best", "a number")


def check_count(callback: object, value: object, name: str) -> None:
    """Raise if a value is not a whole number from 0.

    Raises:
        CheckpointError: If it is not.
    """
    check_value(callback, is_count(value), name, "a whole number from 0")
