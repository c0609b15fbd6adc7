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
    if targets.is_cpu and ignored < 0 <= targets.min().item():
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
    if outputs.dim() < 2:
        raise InvalidTargetError(
            f"The default loss needs logits of shape (batch, classes), but the model returns "
            f"the shape {tuple(outputs.shape)}. For another task, pass `loss_fn`, such as "
            "nn.MSELoss()."
        )
    classes = outputs.shape[1]
    if targets.dtype != torch.int64:
        raise InvalidTargetError(
            f"The targets of `{name}` must be class indices of dtype torch.int64, got "
            f"{targets.dtype}. Convert indices with `.long()` and one-hot rows with `.argmax(1)`; "
            "pass `loss_fn=nn.CrossEntropyLoss()` for class probabilities, and "
            "`loss_fn=nn.MSELoss()` for regression."
        )
    expected = (outputs.shape[0], *outputs.shape[2:])
    if tuple(targets.shape) != expected:
        raise InvalidTargetError(
            f"The targets of `{name}` must have the shape {expected}, one class index per "
            f"row of the logits {tuple(outputs.shape)}, got {tuple(targets.shape)}. Convert "
            "one-hot rows with `.argmax(1)`."
        )
    check_class_range(values, classes, name)


def check_class_range(targets: Tensor, classes: int, name: str) -> None:
    """Check that targets are indices of classes, or `IGNORED`.

    Args:
        targets: Class indices, integer, of any shape.
        classes: The number of classes.
        name: The name of the data, for messages.

    Raises:
        InvalidTargetError: If one of them is outside 0 to `classes - 1`.
    """
    counted = targets[targets != IGNORED]
    if len(counted) and not (int(counted.min()) >= 0 and int(counted.max()) < classes):
        raise InvalidTargetError(
            f"The targets of `{name}` must be in 0 to {classes - 1}, because the model has "
            f"{classes} outputs, got values from {int(counted.min())} to {int(counted.max())}."
        )
