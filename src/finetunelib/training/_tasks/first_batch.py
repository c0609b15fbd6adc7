"""Checks of the first batch, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.batch import arguments_of, describe, inputs_of, outputs_of, split
from finetunelib._forward.guess import first_layer
from finetunelib._forward.run import INPUT_ERRORS, run_once
from finetunelib._messages import first_line
from finetunelib._preserve import random_state_preserved
from finetunelib._typing import Batch
from finetunelib.errors import (
    DataError,
    FinetuneLibError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTargetError,
    InvalidTypeError,
)
from finetunelib.training._tasks.class_targets import check_class_targets
from finetunelib.training._tasks.supervised import ELEMENTWISE, SupervisedTask
from finetunelib.training._tasks.task import Task


def check_batch(
    model: nn.Module, task: Task, batch: Batch, all_targets: Tensor | None, name: str
) -> None:
    """Check that the model and the loss accept a batch, by a dry run without side effects.

    A custom task is not checked, because its `step` may have side effects.

    Args:
        model: The model, on the batch's device.
        task: The task that will process the batch.
        batch: The first batch of the data.
        all_targets: The targets of all samples, if they are in memory.
        name: The name of the data, for messages.

    Raises:
        InvalidInputError: If the model does not accept the inputs.
        InvalidTargetError: If the loss does not accept the targets.
        InvalidTypeError: If the batch has no targets.
    """
    if not isinstance(task, SupervisedTask):
        return
    _, targets = split(batch)
    if not isinstance(targets, Tensor):
        raise InvalidTypeError(
            f"The targets of `{name}` must be a tensor, got {describe(targets)}."
        )
    outputs = dry_run(model, batch, name)
    if task.default_loss:
        check_class_targets(outputs, targets, targets if all_targets is None else all_targets, name)
    if isinstance(task.loss_fn, ELEMENTWISE) and outputs.shape != targets.shape:
        raise InvalidTargetError(
            f"The targets of `{name}` have the shape {tuple(targets.shape)} and the model's "
            f"outputs {tuple(outputs.shape)}; {type(task.loss_fn).__name__} would broadcast them. "
            "Give both the same shape, such as with `targets.unsqueeze(1)`."
        )
    _check_loss_runs(task, outputs, targets, name)


def dry_run(model: nn.Module, batch: Batch, name: str) -> Tensor:
    """Return the model's outputs for a batch in eval mode.

    Raises:
        InvalidInputError: If the model does not accept the inputs.
        InvalidTypeError: If the model does not return a tensor.
    """
    inputs = inputs_of(batch)
    output = run_once(
        model,
        arguments_of(inputs),
        explain=lambda error: _explain(model, inputs, name, error),
    )
    return outputs_of(output)


def _explain(model: nn.Module, inputs: Any, name: str, error: Exception) -> str:
    """Return the message about inputs that a model does not accept."""
    reason = first_line(error).rstrip(".")
    text = f"The model does not accept the inputs of `{name}`, {_shapes(inputs)}: {reason}."
    found = first_layer(model)
    if found is None or not isinstance(inputs, Tensor):
        return text
    layer_name, layer = found
    hint = f"The first layer, `{layer_name or type(model).__name__}`, is {layer}."
    takes_indices = any(
        isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in model.modules()
    )
    if not (takes_indices or inputs.is_floating_point() or inputs.is_complex()):
        return (
            f"The inputs of `{name}` must be floating point, got {inputs.dtype}. "
            f"{hint} Convert them, for bytes with `inputs.float() / 255`."
        )
    return f"{text} {hint}"


def _check_loss_runs(task: SupervisedTask, outputs: Tensor, targets: Tensor, name: str) -> None:
    try:
        with torch.no_grad(), random_state_preserved():
            loss = task.loss(outputs, targets)
    except FinetuneLibError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidTargetError(
            f"`loss_fn(outputs, targets)` failed on outputs {_shapes(outputs)} and the targets of "
            f"`{name}` {_shapes(targets)}: {first_line(error)}. It receives the outputs first."
        ) from error
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise InvalidArgumentError(
            f"`loss_fn` must return a scalar, the mean over the batch, got {describe(loss)}. "
            "Reduce it, such as with `.mean()`."
        )


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shapes(part)}" for key, part in value.items())
    return describe(value)


def predict_first(task: Task, model: nn.Module, runner: nn.Module, batch: Batch) -> Any:
    """Return a task's outputs for the first batch of a prediction.

    Raises:
        InvalidInputError: If the model does not accept the inputs.
        DataError: If the task needs targets to predict, or returns no outputs.
    """
    if isinstance(task, SupervisedTask):
        try:
            return task.predict(runner, batch)
        except INPUT_ERRORS as error:
            # InvalidInputError is a ValueError, raised by models of this library.
            other = isinstance(error, FinetuneLibError) and not isinstance(error, InvalidInputError)
            if other or isinstance(error, torch.OutOfMemoryError):
                raise
            raise InvalidInputError(_explain(model, inputs_of(batch), "data", error)) from error
    kind = type(task).__name__
    try:
        outputs = task.predict(runner, batch)
    except Exception as error:
        bare = isinstance(batch, Tensor) or (isinstance(batch, tuple | list) and len(batch) == 1)
        if bare and type(task).predict is Task.predict:
            raise DataError(
                f"`{kind}.step` failed on data without targets: {type(error).__name__}: "
                f"{first_line(error)}. Define `{kind}.predict(model, batch)`, which returns the "
                "outputs, or pass data with targets."
            ) from error
        raise
    if outputs is None:
        raise DataError(
            f"`{kind}.step` returns no outputs, so there is nothing to predict. Return them in the "
            f"StepOutput, or define `{kind}.predict(model, batch)`."
        )
    return outputs
