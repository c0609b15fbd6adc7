"""Checks of the first batch of tokens, and of token targets that the default task gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.batch import arguments_of
from finetunelib._forward.run import run_once
from finetunelib._preserve import unchanged
from finetunelib.errors import InvalidInputError, InvalidTargetError
from finetunelib.training._tasks.class_targets import check_class_range
from finetunelib.training._tasks.convention import CLASS_LOSSES
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.tokens.alignment import suggested_task
from finetunelib.training._tasks.tokens.loss import check_shapes
from finetunelib.training._tasks.tokens.task import TokenTask


def check_token_targets(
    task: TokenTask, logits: Tensor, targets: Tensor, values: Tensor, name: str
) -> None:
    """Check the dtype, the shape and the range of targets.

    Args:
        task: The task.
        logits: The logits of the first batch, `(batch, tokens, classes)`.
        targets: The targets of the first batch.
        values: All targets that are in memory.
        name: The name of the data, for messages.

    Raises:
        InvalidTargetError: If they do not fit.
    """
    if targets.dtype != torch.int64:
        raise InvalidTargetError(
            f"The targets of `{name}` must be class indices of dtype torch.int64, got "
            f"{targets.dtype}. Convert indices with `.long()`."
        )
    check_shapes(logits, targets)
    if values is not targets and not bool((values != task.ignore_index).any()):
        raise InvalidTargetError(
            f"All targets of `{name}` are {task.ignore_index}, which does not count, so nothing "
            "would be learned or measured. Give at least one token a class index."
        )
    check_class_range(
        values, logits.shape[-1], name, task.ignore_index, "task=TokenTask(ignore_index={})"
    )


def refuse_tokens(
    task: SupervisedTask,
    model: nn.Module,
    inputs: Any,
    output: object,
    logits: Tensor,
    targets: Tensor,
    name: str,
) -> None:
    """Refuse logits whose classes are on the last axis: PyTorch's losses need them on axis 1.

    If there are as many tokens as classes, the shapes do not tell. Models of transformers have the
    classes on the last axis; other models of token indices are run on one token less.

    Raises:
        InvalidTargetError: If the targets are those of tokens.
    """
    classes = task.default_loss or type(task.loss_fn) in CLASS_LOSSES
    if not classes or logits.dim() != 3 or targets.shape != logits.shape[:2]:
        return
    ambiguous = logits.shape[1] == logits.shape[2] and isinstance(output, Tensor)
    if ambiguous and not _has_tokens_first(model, inputs, logits):
        return
    other = (
        "let the model return `outputs.movedim(-1, 1)`"
        if task.default_loss
        else "use a `loss_fn` that moves the last axis to axis 1"
    )
    instead = "" if task.default_loss else " instead of `loss_fn`"
    raise InvalidTargetError(
        f"The targets of `{name}` have the shape {tuple(targets.shape)} and the logits "
        f"{tuple(logits.shape)}: one class for each token, with the classes on the last axis. Pass "
        f"`task={suggested_task(model, inputs, targets)}`{instead} "
        f"(finetunelib.training.TokenTask), or {other}."
    )


def _has_tokens_first(model: nn.Module, inputs: Any, logits: Tensor) -> bool:
    """Return whether one token less in the inputs makes axis 1 of the logits shorter."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.is_floating_point():
        return False
    if inputs.shape[1] != logits.shape[1] or logits.shape[1] < 2:
        return False
    try:
        with unchanged(model):
            output = run_once(model, arguments_of(inputs[:, 1:]))
    except InvalidInputError:
        return False
    expected = (logits.shape[0], logits.shape[1] - 1, logits.shape[2])
    return isinstance(output, Tensor) and output.shape == expected
