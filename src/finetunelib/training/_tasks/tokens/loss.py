"""The cross-entropy of tokens: the sum over the counted ones, divided by their number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from finetunelib.errors import InvalidTargetError


def check_shapes(logits: Tensor, targets: Tensor) -> None:
    """Check that there is one target for each position of the logits.

    Raises:
        InvalidTargetError: If the shapes do not fit.
    """
    if logits.dim() == 3 and logits.shape[:2] == targets.shape:
        return
    text = (
        f"`TokenTask` needs logits (batch, tokens, classes) and targets (batch, tokens), got the "
        f"shapes {tuple(logits.shape)} and {tuple(targets.shape)}."
    )
    if logits.dim() == 3 and targets.shape == (logits.shape[0], logits.shape[2]):
        text += (
            " If the classes are on axis 1, as the default task needs them, leave out `task`; or "
            "let the model return `outputs.movedim(1, -1)`."
        )
    elif logits.dim() == 2 and targets.dim() == 1:
        text += " For one class per sample, leave out `task`."
    elif logits.dim() == 3 and targets.dim() == 2 and logits.shape[1] > targets.shape[1]:
        more = logits.shape[1] - targets.shape[1]
        text += (
            f" The logits have {more} more positions than the targets. If these are the virtual "
            f"tokens of prompt tuning, begin each row of the targets with {more} times -100."
        )
    else:
        text += " Give each position of the logits one target, -100 if it does not count."
    raise InvalidTargetError(text)


def summed_loss(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Return the sum of the cross-entropies of the counted targets.

    Args:
        logits: `(tokens, classes)`. Half precision is converted to float32.
        targets: `(tokens,)`, int64.
        ignored: The index of the targets that do not count.

    Raises:
        InvalidTargetError: If a target is not the index of a class.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    try:
        return functional.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
    except IndexError as error:
        raise InvalidTargetError(
            f"Targets must be in 0 to {logits.shape[-1] - 1}, because the model has "
            f"{logits.shape[-1]} classes, or {ignored} if they do not count: {error}"
        ) from error


def mean_over(total: Tensor, counted: Tensor | int) -> Tensor:
    """Return a sum divided by the number of counted targets, or 0 if none counts.

    The bits are those of `cross_entropy(..., reduction="mean")`, whose mean over nothing is nan.
    """
    return total / (counted.clamp(min=1) if isinstance(counted, Tensor) else max(counted, 1))
