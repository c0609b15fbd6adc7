"""Class indices as targets: which are ignored, how many count, and if they are valid."""

from __future__ import annotations

import torch
from torch import Tensor

from finetunelib.errors import InvalidTargetError

#: The class index that PyTorch's losses ignore by default.
IGNORED = -100


def count_targets(targets: Tensor, ignored: int) -> Tensor | int:
    """Return how many targets differ from the ignored class index."""
    # On the CPU, reading the minimum costs a quarter of counting. Elsewhere it would synchronize.
    if type(targets) is Tensor and targets.is_cpu and ignored < 0 <= targets.min().item():
        return targets.numel()
    return (targets != ignored).sum()


def check_class_targets(outputs: Tensor, targets: Tensor, values: Tensor, name: str) -> None:
    """Check that targets are class indices that match the logits.

    Args:
        outputs: Logits of the first batch, `(batch, classes, ...)`.
        targets: The targets of the first batch.
        values: All targets that are in memory.
        name: The name of the data, for messages.

    Raises:
        InvalidTargetError: If the dtype, the shape or a value of the targets is wrong.
    """
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        advice = _advice_for_one(outputs, targets, values)
        raise InvalidTargetError(
            f"The default loss needs logits of shape (batch, classes) for at least two classes, "
            f"but the model returns the shape {tuple(outputs.shape)}. {advice}"
        )
    classes = outputs.shape[1]
    if targets.dtype != torch.int64:
        raise InvalidTargetError(
            f"The targets of `{name}` must be class indices of dtype torch.int64, got "
            f"{targets.dtype}. {_advice_for_dtype(outputs, targets, values)}"
        )
    expected = (outputs.shape[0], *outputs.shape[2:])
    if tuple(targets.shape) != expected:
        raise InvalidTargetError(
            f"The targets of `{name}` must have the shape {expected}, one class index per "
            f"row of the logits {tuple(outputs.shape)}, got {tuple(targets.shape)}. "
            f"{_advice_for_shape(outputs, targets)}"
        )
    check_class_range(values, classes, name)


def _advice_for_one(outputs: Tensor, targets: Tensor, values: Tensor) -> str:
    if outputs.shape[:1] != targets.shape[:1]:
        return "It must return one row for each sample of a batch."
    if values.numel() and bool(((values == 0) | (values == 1)).all()):
        return (
            "For targets of 0 and 1 and one output, pass `loss_fn=nn.BCEWithLogitsLoss()` with "
            "targets `.float()` of the shape of the outputs, or use two outputs."
        )
    return "For another task, pass `loss_fn`, such as nn.MSELoss()."


def _advice_for_dtype(outputs: Tensor, targets: Tensor, values: Tensor) -> str:
    if targets.shape == outputs.shape:
        one_each = bool((values.sum(1) == 1).all())
        binary = bool(((values == 0) | (values == 1)).all())
        if binary and not one_each:
            return (
                "For several labels per sample, pass `loss_fn=nn.BCEWithLogitsLoss()` with targets "
                "`.float()`."
            )
        several = (
            ""
            if not binary
            else (" If these are several labels per sample, pass `loss_fn=nn.BCEWithLogitsLoss()`.")
        )
        return (
            "Convert one-hot rows with `.argmax(1)`; pass `loss_fn=nn.CrossEntropyLoss()` for "
            f"class probabilities.{several}"
        )
    if targets.is_floating_point() and bool((values != values.round()).any()):
        return "For a regression, pass `loss_fn=nn.MSELoss()` and one output for each value."
    return "Convert indices with `.long()`; for a regression, pass `loss_fn=nn.MSELoss()`."


def _advice_for_shape(outputs: Tensor, targets: Tensor) -> str:
    if targets.dim() > 1 and targets.shape[1] == 1 and outputs.dim() == targets.dim():
        return "Remove the second axis with `.squeeze(1)`."
    if targets.shape == outputs.shape:
        return "Convert one-hot rows with `.argmax(1)`."
    if outputs.dim() > 2 and tuple(targets.shape) == tuple(outputs.shape[:-1]):
        return (
            "The classes must be on axis 1: let the model return `outputs.movedim(-1, 1)`, or pass "
            "a `loss_fn` that moves them."
        )
    return "Give each row of the logits one class index."


def _are_between(targets: Tensor, lowest: int, highest: int) -> bool:
    low, high = torch.aminmax(targets)
    return low.item() >= lowest and high.item() <= highest


def check_class_range(
    targets: Tensor,
    classes: int,
    name: str,
    ignored: int = IGNORED,
    remedy: str = "loss_fn=nn.CrossEntropyLoss(ignore_index={})",
) -> None:
    """Check that targets are indices of classes, or the index that is ignored.

    Args:
        targets: Class indices, integer, of any shape.
        classes: The number of classes.
        name: The name of the data, for messages.
        ignored: The index that is ignored.
        remedy: What to pass to ignore another index, which replaces `{}`.

    Raises:
        InvalidTargetError: If one of them is outside 0 to `classes - 1`.
    """
    # Both in one pass, and mostly enough: only targets that are ignored need a copy of the others.
    if not targets.numel() or _are_between(targets, 0, classes - 1):
        return
    counted = targets[targets != ignored]
    if not len(counted) or _are_between(counted, 0, classes - 1):
        return
    low, high = int(counted.min()), int(counted.max())
    advice = ""
    if (high == 255 and low >= 0) or (low == -1 and high < classes):
        value = 255 if high == 255 else -1
        advice = f" If {value} marks targets that do not count, pass `{remedy.format(value)}`."
    elif low == 1 and high == classes:
        advice = " Class indices start from 0: subtract 1."
    raise InvalidTargetError(
        f"The targets of `{name}` must be in 0 to {classes - 1}, because the model has "
        f"{classes} outputs, got values from {low} to {high}.{advice}"
    )
