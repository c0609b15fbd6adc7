"""The loss of the first batch: whether it accepts the targets, and has a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finetunelib._forward.batch import describe, shapes_of
from finetunelib._messages import first_line
from finetunelib._preserve import random_state_preserved, unchanged
from finetunelib._typing import LossFunction
from finetunelib.errors import FinetuneLibError, InvalidArgumentError, InvalidTargetError
from finetunelib.training._tasks.broadcasting import broadcasting_in
from finetunelib.training._tasks.class_targets import check_class_range, check_class_targets
from finetunelib.training._tasks.convention import CLASS_LOSSES
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.weighting import ELEMENTWISE, ignored_by


def check_targets(
    task: SupervisedTask, outputs: Tensor, targets: Tensor, values: Tensor, name: str
) -> None:
    """Check the shape, the dtype and the range of targets, as far as the loss determines them.

    Args:
        task: The task with the loss.
        outputs: The outputs of the first batch.
        targets: Its targets.
        values: All targets that are in memory.
        name: The name of the data, for messages.

    Raises:
        InvalidTargetError: If the targets do not fit.
    """
    loss_fn = task.loss_fn
    if task.default_loss:
        check_class_targets(outputs, targets, values, name)
    elif type(loss_fn) in CLASS_LOSSES and outputs.dim() > 1 and values.dtype == torch.int64:
        check_class_range(values, outputs.shape[1], name, ignored_by(loss_fn))
    if isinstance(loss_fn, ELEMENTWISE) and outputs.shape != targets.shape:
        raise InvalidTargetError(
            f"The targets of `{name}` have the shape {tuple(targets.shape)} and the model's "
            f"outputs {tuple(outputs.shape)}; {type(loss_fn).__name__} would broadcast them. "
            f"Give both the same shape, {_advice(outputs, targets)}."
        )


def loss_of_first_batch(
    task: SupervisedTask, outputs: Tensor, targets: Tensor, name: str, *, training: bool
) -> Tensor:
    """Return the loss of a batch, without a graph.

    Raises:
        InvalidTargetError: If the loss does not accept the targets, or would broadcast them.
        InvalidArgumentError: If it is not a scalar, or has no gradient for the outputs.
    """
    if _is_plain(task.loss_fn) and _are_paired(task.loss_fn, outputs, targets):
        with torch.no_grad(), _explained(outputs, targets, name):
            return task.loss(outputs, targets)
    modules = [task.loss_fn] if isinstance(task.loss_fn, nn.Module) else []
    shapes = _shapes(outputs, targets, name)
    leaf = outputs.detach()
    if training and (leaf.is_floating_point() or leaf.is_complex()):
        leaf = leaf.clone().requires_grad_()
    with random_state_preserved(), unchanged(*modules):
        with _explained(outputs, targets, name):
            with torch.no_grad():
                found = broadcasting_in(task.loss, outputs, targets)
            _refuse_broadcasting(found, outputs, targets, shapes)
            with torch.set_grad_enabled(training):
                loss = task.loss(leaf, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise InvalidArgumentError(
                f"`loss_fn` must return a scalar, the mean over the batch, got {describe(loss)}. "
                "Reduce it, such as with `.mean()`."
            )
        if leaf.requires_grad:
            _check_gradient(task, loss, leaf, targets, shapes)
    return loss.detach()


def _is_plain(loss_fn: LossFunction) -> bool:
    """Return whether a loss is PyTorch's own, which changes nothing and has a gradient."""
    if type(loss_fn) not in (*CLASS_LOSSES, *ELEMENTWISE):
        return False
    own = vars(loss_fn)
    return "forward" not in own and not any(
        (
            own["_forward_hooks"],
            own["_forward_pre_hooks"],
            own["_backward_hooks"],
            own["_backward_pre_hooks"],
        )
    )


def _are_paired(loss_fn: LossFunction, outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a plain loss compares each row of the outputs with one row of the targets."""
    if not outputs.is_floating_point():
        return False
    if type(loss_fn) in CLASS_LOSSES and outputs.dim() > 1:
        rows = (outputs.shape[0], *outputs.shape[2:])
        return targets.dtype == torch.int64 and targets.shape == rows
    return targets.dtype == outputs.dtype and targets.shape == outputs.shape


def _shapes(outputs: Tensor, targets: Tensor, name: str) -> str:
    return f"outputs {shapes_of(outputs)} and the targets of `{name}` {shapes_of(targets)}"


@contextlib.contextmanager
def _explained(outputs: Tensor, targets: Tensor, name: str) -> Iterator[None]:
    """Raise an error that says what the loss got, if it fails in the block."""
    try:
        yield
    except (FinetuneLibError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidTargetError(
            f"`loss_fn(outputs, targets)` failed on {_shapes(outputs, targets, name)}: "
            f"{first_line(error)}. It receives the outputs first.{_dtype_advice(outputs, targets)}"
        ) from error


def _refuse_broadcasting(found: str | None, outputs: Tensor, targets: Tensor, shapes: str) -> None:
    if found is not None:
        raise InvalidTargetError(
            f"`loss_fn(outputs, targets)` would broadcast {found} on {shapes}, and compare every "
            f"output with every target. Give both the same shape, {_advice(outputs, targets)}."
        )


def _check_gradient(
    task: SupervisedTask, loss: Tensor, leaf: Tensor, targets: Tensor, shapes: str
) -> None:
    if not loss.requires_grad:
        raise InvalidArgumentError(
            f"`loss_fn` returned a loss without a gradient on {shapes}, so the model would not be "
            "trained. Compute it from the outputs without `.detach()`, `.argmax()` or numpy."
        )
    try:
        torch.autograd.grad(loss, leaf, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InvalidTargetError(
            f"The gradient of {type(task.loss_fn).__name__} failed on {shapes}: "
            f"{first_line(error)}.{_dtype_advice(leaf, targets)}"
        ) from error


def _advice(outputs: Tensor, targets: Tensor) -> str:
    if targets.dim() == outputs.dim() + 1:
        return "such as with `targets.squeeze(1)`"
    if outputs.dim() > 1 and outputs.shape[1] > 1 and targets.dim() == 1:
        return (
            "such as with `targets.unsqueeze(1)` for each column of the outputs, or a last layer "
            "with one output"
        )
    return "such as with `targets.unsqueeze(1)`"


def _dtype_advice(outputs: Tensor, targets: Tensor) -> str:
    if targets.dtype == outputs.dtype or targets.is_complex():
        return ""
    if targets.is_floating_point() or outputs.shape == targets.shape:
        return " Convert the targets with `.float()`, the dtype of the outputs."
    return ""
