"""Checks of the first batch, before anything is changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.batch import (
    WeightedBatch,
    arguments_of,
    describe,
    inputs_of,
    outputs_of,
    shapes_of,
    split,
)
from finetunelib._forward.guess import first_layer
from finetunelib._forward.inputs import Inputs
from finetunelib._forward.run import INPUT_ERRORS, run_once
from finetunelib._messages import first_line, type_and_line
from finetunelib._preserve import evaluating, random_state_preserved, unchanged
from finetunelib._typing import Batch
from finetunelib.errors import (
    DataError,
    FinetuneLibError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.training._tasks.first_loss import check_targets, loss_of_first_batch
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.sample_weights import check_weighted
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.task import StepOutput, Task, validate_output
from finetunelib.training._tasks.tokens.alignment import (
    arguments_for,
    check_kind,
    check_shift,
    kind_of,
)
from finetunelib.training._tasks.tokens.first_batch import check_token_targets, refuse_tokens
from finetunelib.training._tasks.tokens.head import first_row
from finetunelib.training._tasks.tokens.rows import targets_of
from finetunelib.training._tasks.tokens.task import TokenTask

#: What Python says about a call with a wrong or missing name.
_WRONG_NAME = re.compile(r"(keyword|positional) arguments?\b")

#: What models of transformers say if the decoder gets nothing.
_NO_DECODER_INPUTS = re.compile(r"decoder_input|inputs_embeds")


def check_batch(
    model: nn.Module,
    task: Task,
    batch: Batch,
    all_targets: Tensor | None,
    name: str,
    *,
    training: bool = False,
) -> StepOutput:
    """Check that the model and the loss accept a batch, without side effects on the modules.

    Args:
        model: The model, on the batch's device.
        task: The task that will process the batch. The user's own is called in the modes of the
            moment, and its errors keep their type.
        batch: The first batch of the data.
        all_targets: The targets of all samples, if they are in memory.
        name: The name of the data, for messages.
        training: Whether the batch is trained on. The loss then needs a gradient.

    Returns:
        The output of the task.

    Raises:
        InvalidInputError: If the model does not accept the inputs.
        InvalidTargetError: If the loss does not accept the targets.
        InvalidTypeError: If the batch has no targets.
        InvalidArgumentError: If the loss is not a mean, or has no gradient.
    """
    if not isinstance(task, SupervisedTask | TokenTask):
        return _check_step(model, task, batch, name, training=training)
    inputs, targets = (targets_of if isinstance(task, TokenTask) else split)(batch)
    if not isinstance(targets, Tensor) or targets.dim() == 0:
        raise InvalidTypeError(_no_targets(targets, name))
    values = targets if all_targets is None else all_targets
    if isinstance(task, TokenTask):
        return _check_tokens(model, task, batch, values, name)
    output = _run(model, arguments_of(inputs), inputs, name)
    outputs = outputs_of(output)
    refuse_tokens(task, model, inputs, output, outputs, targets, name)
    check_targets(task, outputs, targets, values, name)
    loss = loss_of_first_batch(task, outputs, targets, name, training=training)
    if isinstance(batch, WeightedBatch):
        return _check_weighted(task, outputs, targets, batch.sample_weight)
    return StepOutput(loss, outputs, targets, task.weight(outputs, targets))


def _check_weighted(
    task: SupervisedTask, outputs: Tensor, targets: Tensor, sample_weight: Tensor
) -> StepOutput:
    """Check that the loss can be weighted, and return the output of the task."""
    modules = [task.loss_fn] if isinstance(task.loss_fn, nn.Module) else []
    with torch.no_grad(), random_state_preserved(), unchanged(*modules):
        check_weighted(task.loss_fn, outputs, targets, sample_weight)
        return task.weighted(outputs, targets, sample_weight)


def _check_tokens(
    model: nn.Module, task: TokenTask, batch: Batch, values: Tensor, name: str
) -> StepOutput:
    """Check that a model of tokens and its targets fit together."""
    inputs, targets = split(batch)
    ignored = task.ignore_index
    check_kind(model, shift=task.shift)
    check_shift(model, inputs, targets, name, shift=task.shift, ignored=ignored)
    arguments = arguments_for(model, inputs, targets, ignored)
    if task.chunk_size is None:
        logits = outputs_of(_run(model, arguments, inputs, name))
        check_token_targets(task, logits, targets, values, name)
        with torch.no_grad():
            return task._compare(logits, targets)  # noqa: SLF001 - not for users to call
    # The logits of all rows may not fit into memory.
    one = first_row(arguments, len(targets))
    try:
        logits = task._find_head(model, lambda: _run(model, one, inputs, name))  # noqa: SLF001
    except InvalidInputError:  # An argument may not have rows.
        logits = task._find_head(model, lambda: _run(model, arguments, inputs, name))  # noqa: SLF001
        logits = logits[:1]
    check_token_targets(task, logits, targets[:1], values, name)
    with evaluating(model), random_state_preserved(), unchanged(model):
        return task.step(model, batch)


def dry_run(model: nn.Module, batch: Batch, name: str) -> Tensor:
    """Return the model's outputs for a batch in eval mode. The model is left as it was.

    Raises:
        InvalidInputError: If the model does not accept the inputs.
        InvalidTypeError: If the model does not return a tensor.
    """
    inputs = inputs_of(batch)
    return outputs_of(_run(model, arguments_of(inputs), inputs, name))


def _run(model: nn.Module, arguments: Inputs, inputs: Any, name: str) -> object:
    """Return what the model returns for the inputs of a batch."""
    with unchanged(model):
        return run_once(
            model, arguments, explain=lambda error: _explain(model, inputs, name, error)
        )


def _check_step(
    model: nn.Module, task: Task, batch: Batch, name: str, *, training: bool
) -> StepOutput:
    """Run a task of the user's on copies of what it may change."""
    modules = TrainedModules(model, task).others.values()
    mode = torch.enable_grad() if training else evaluating(model)
    with unchanged(model, *modules, others=[task]), random_state_preserved(), mode:
        try:
            output = validate_output(task.step(model, batch), task)
        except Exception as error:
            error.add_note(
                f"In the check of the first batch of `{name}`, {shapes_of(batch)}, before training."
            )
            raise
    return output


def _no_targets(targets: object, name: str) -> str:
    if isinstance(targets, int | float | Tensor):
        return (
            f"The targets of `{name}` must be a tensor (batch, ...), got a single value. A list, "
            "or another iterable, yields ready batches, but these are single samples. Make batches "
            f"of them: `DataLoader({name}, batch_size=64, shuffle=True)`."
        )
    text = f"The targets of `{name}` must be a tensor, got {describe(targets)}."
    if isinstance(targets, Mapping):
        return (
            f"{text} For several targets by name, pass a `task` (finetunelib.training.Task), whose "
            "`step` gets a batch (inputs, targets) with this mapping."
        )
    if isinstance(targets, list | tuple) and targets and isinstance(targets[0], str):
        return f"{text} They are texts, such as {targets[0]!r}; map them to class indices."
    return f"{text} Convert them with torch.tensor(...) in the dataset or in `collate_fn`."


def _explain(model: nn.Module, inputs: Any, name: str, error: Exception) -> str:
    """Return the message about inputs that a model does not accept."""
    reason = first_line(error).rstrip(".")
    text = f"The model does not accept the inputs of `{name}`, {_shapes(inputs)}: {reason}."
    if kind_of(model) == "encoder-decoder" and _NO_DECODER_INPUTS.search(reason):
        return f"{text} Pass `task=TokenTask()`, which decodes the shifted targets of a batch."
    if isinstance(inputs, Mapping) and _WRONG_NAME.search(reason):
        return f"{text} {_names_of(model)}"
    found = first_layer(model)
    if found is None or not isinstance(inputs, Tensor):
        return text
    layer_name, layer = found
    hint = f"The first layer, `{layer_name or type(model).__name__}`, is {layer}."
    takes_indices = any(
        isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in model.modules()
    )
    if inputs.dtype == torch.float64 and layer.weight.dtype != torch.float64:
        return f"{text} {hint} Convert the inputs of `{name}` with `.float()`."
    if not (takes_indices or inputs.is_floating_point() or inputs.is_complex()):
        return (
            f"The inputs of `{name}` must be floating point, got {inputs.dtype}. "
            f"{hint} Convert them, for bytes with `inputs.float() / 255`."
        )
    return f"{text} {hint}"


def _names_of(model: nn.Module) -> str:
    """Return which names the inputs need, since a mapping is passed by name."""
    names = list(inspect.signature(model.forward).parameters)
    return (
        f"A mapping is passed by name, and `{type(model).__name__}.forward` takes: "
        f"{', '.join(names)}. Rename or remove entries of the inputs."
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
    if isinstance(task, SupervisedTask | TokenTask):
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
                f"`{kind}.step` failed on data without targets: "
                f"{type_and_line(error)}. Define `{kind}.predict(model, batch)`, which returns the "
                "outputs, or pass data with targets."
            ) from error
        raise
    if outputs is None:
        raise DataError(
            f"`{kind}.step` returns no outputs, so there is nothing to predict. Return them in the "
            f"StepOutput, or define `{kind}.predict(model, batch)`."
        )
    return outputs
