"""What is checked at the door of a training, while nothing has been changed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib._typing import Batch
from finetunelib.errors import (
    EmptyDataError,
    FinetuneLibError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTargetError,
)
from finetunelib.models._example_input import first_layer
from finetunelib.training._task import SupervisedTask, inputs_of, pair_of


def check_limits(epochs: int | None, max_steps: int | None) -> None:
    """Raise when a fit has no limit, or one below 1.

    Raises:
        InvalidArgumentError: Neither limit is given, or one is no whole number of at least 1.
    """
    if epochs is None and max_steps is None:
        raise InvalidArgumentError("`fit` needs a limit: pass `epochs`, `max_steps` or both.")
    for name, limit in (("epochs", epochs), ("max_steps", max_steps)):
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise InvalidArgumentError(
                f"`{name}` must be a whole number of at least 1, but is {limit!r}."
            )


def check_batch(
    model: nn.Module, task: SupervisedTask, batch: Batch, all_targets: Tensor | None, name: str
) -> None:
    """Raise when the model or the loss cannot take a batch, after a dry run that leaves no trace.

    Args:
        model: The model, on the batch's device.
        task: What will be done with the batch.
        batch: The first batch of the data.
        all_targets: The targets of the whole data where they are at hand.
        name: What the data is called, for messages.

    Raises:
        InvalidInputError: The model cannot take the inputs.
        InvalidTargetError: The default loss cannot take the targets.
    """
    _, targets = pair_of(batch)
    with random_state_preserved():
        outputs = dry_run(model, task, batch, name)
    if task.default_loss:
        check_class_targets(outputs, targets, targets if all_targets is None else all_targets, name)


def dry_run(model: nn.Module, task: SupervisedTask, batch: Batch, name: str) -> Tensor:
    """Return the model's outputs for a batch in eval mode, or explain why there are none.

    Raises:
        InvalidInputError: The model cannot take the inputs.
    """
    inputs = inputs_of(batch)
    found = first_layer(model)
    hint = ""
    if found is not None:
        layer_name, layer = found
        hint = f" The first layer, `{layer_name or type(model).__name__}`, is {layer}."
        if not isinstance(layer, nn.Embedding) and not (
            inputs.is_floating_point() or inputs.is_complex()
        ):
            raise InvalidInputError(
                f"The inputs of `{name}` must be floating point, but their dtype is "
                f"{inputs.dtype}.{hint} Convert them, for bytes with `inputs.float() / 255`."
            )
    try:
        with evaluating(model):
            return task.predict(model, batch)
    except FinetuneLibError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidInputError(
            f"The model cannot take the inputs of `{name}`, of shape {tuple(inputs.shape)} and "
            f"dtype {inputs.dtype}: {reason}.{hint}"
        ) from error


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
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise InvalidTargetError(
            f"The targets of `{name}` must be class indices of dtype torch.int64, but are {kind}. "
            "Convert indices with `.long()` and one-hot rows with `.argmax(1)`; pass "
            "`loss_fn=nn.CrossEntropyLoss()` and `metrics={}` for class probabilities, and "
            "`loss_fn=nn.MSELoss()` for regression."
        )
    expected = (outputs.shape[0], *outputs.shape[2:])
    if tuple(targets.shape) != expected:
        raise InvalidTargetError(
            f"The targets of `{name}` must have the shape {expected}, one class index for each "
            f"row of logits {tuple(outputs.shape)}, but have {tuple(targets.shape)}."
        )
    counted = values[values != nn.CrossEntropyLoss().ignore_index]
    if len(counted) and not (int(counted.min()) >= 0 and int(counted.max()) < classes):
        raise InvalidTargetError(
            f"The targets of `{name}` must be in 0 to {classes - 1}, since the model has "
            f"{classes} outputs, but they range from {int(counted.min())} to "
            f"{int(counted.max())}."
        )


def first_of(batches: Iterator[Batch], name: str) -> Batch:
    """Return the first batch of data.

    Raises:
        EmptyDataError: There is none.
    """
    for batch in batches:
        return batch
    raise EmptyDataError(
        f"`{name}` yielded no batch. An iterator that has been read once is empty; a list or a "
        "DataLoader can be read again."
    )
