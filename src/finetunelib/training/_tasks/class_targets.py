"""Class indices as targets: which are ignored, how many count, and whether they are valid."""

from __future__ import annotations

import torch
from torch import Tensor

from finetunelib.errors import InvalidTargetError

#: The class index that PyTorch's losses ignore by default.
IGNORED = -100


def count_targets(targets: Tensor, ignored: int) -> Tensor | int:
    """Return how many class indices are not the ignored one."""
    # On the CPU, reading the minimum costs a quarter of counting. Elsewhere it would synchronize.
    if targets.is_cpu and ignored < 0 <= targets.min().item():
        return targets.numel()
    return (targets != ignored).sum()


def check_class_targets(outputs: Tensor, targets: Tensor, values: Tensor, name: str) -> None:
    """Raise when targets are no class indices for these outputs.

    Args:
        outputs: Logits of the first batch, `(batch, classes, ...)`.
        targets: The targets of the first batch.
        values: All targets that are at hand.
        name: What the data is called, for messages.

    Raises:
        InvalidTargetError: The dtype, shape or values of the targets are wrong.
    """
    if outputs.dim() < 2:
        raise InvalidTargetError(
            f"The default loss needs logits of shape (batch, classes), but the model returns "
            f"{tuple(outputs.shape)}. Pass `loss_fn`, such as nn.MSELoss(), for another task."
        )
    classes = outputs.shape[1]
    if targets.dtype != torch.int64:
        raise InvalidTargetError(
            f"The targets of `{name}` must be class indices of dtype torch.int64, but are "
            f"{targets.dtype}. Convert indices with `.long()` and one-hot rows with `.argmax(1)`; "
            "pass `loss_fn=nn.CrossEntropyLoss()` for class probabilities, and "
            "`loss_fn=nn.MSELoss()` for regression."
        )
    expected = (outputs.shape[0], *outputs.shape[2:])
    if tuple(targets.shape) != expected:
        raise InvalidTargetError(
            f"The targets of `{name}` must have the shape {expected}, one class index for each "
            f"row of logits {tuple(outputs.shape)}, but have {tuple(targets.shape)}. One-hot rows "
            "become indices with `.argmax(1)`."
        )
    check_class_range(values, classes, name)


def check_class_range(targets: Tensor, classes: int, name: str) -> None:
    """Raise if a target is not the index of a class; `IGNORED` is allowed.

    Args:
        targets: Class indices, integer, of any shape.
        classes: The number of classes.
        name: What the data is called, for messages.

    Raises:
        InvalidTargetError: If a target is outside 0 to `classes - 1`.
    """
    counted = targets[targets != IGNORED]
    if len(counted) and not (int(counted.min()) >= 0 and int(counted.max()) < classes):
        raise InvalidTargetError(
            f"The targets of `{name}` must be in 0 to {classes - 1}, because the model has "
            f"{classes} outputs, but they range from {int(counted.min())} to {int(counted.max())}."
        )
