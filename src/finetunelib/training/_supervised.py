"""The default task: outputs from inputs, and a loss that compares them with targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from finetunelib._typing import Batch, LossFunction
from finetunelib.errors import InvalidArgumentError, InvalidTargetError, InvalidTypeError
from finetunelib.training._metrics import counted
from finetunelib.training._task import StepOutput, Task

#: Losses that compare outputs and targets value by value.
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss)


class SupervisedTask(Task):
    """Takes pairs (inputs, targets), and mappings as the models of transformers take them.

    A mapping's `labels` are the targets; the rest is passed to the model by name. The outputs
    are the model's own, or its `.logits`.
    """

    def __init__(self, loss_fn: LossFunction | None) -> None:
        self.default_loss = loss_fn is None
        self.loss_fn: LossFunction = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
        self._weight = _weight_of(self.loss_fn)
        reduction = getattr(self.loss_fn, "reduction", "mean")
        if reduction != "mean":
            raise InvalidArgumentError(
                f"`loss_fn` must average over the batch, but its reduction is {reduction!r}. "
                f'Use {type(self.loss_fn).__name__}(reduction="mean").'
            )

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the model on a batch and compare its outputs with the targets.

        Raises:
            InvalidTypeError: The batch holds no targets, or the output is no tensor.
            InvalidTargetError: A class index is outside the classes.
        """
        inputs, targets = split(batch)
        outputs = call(model, inputs)
        return StepOutput(self.loss(outputs, targets), outputs, targets, self._weight(targets))

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on a batch, with or without targets."""
        return call(model, inputs_of(batch))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare outputs with targets."""
        try:
            return self.loss_fn(outputs, targets)
        except IndexError as error:
            raise InvalidTargetError(
                f"A target lies outside the model's {outputs.shape[1]} classes: {error} "
                f"Targets must be in 0 to {outputs.shape[1] - 1}."
            ) from error


def _weight_of(loss_fn: LossFunction) -> Callable[[Tensor], Tensor | float]:
    """Return a function from targets to what the mean of a loss divides by."""
    if isinstance(loss_fn, ELEMENTWISE):
        return Tensor.numel
    if not isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return len
    ignored = loss_fn.ignore_index

    def class_weight(targets: Tensor) -> Tensor | float:
        if targets.is_floating_point():
            return len(targets)  # Class probabilities ignore nothing.
        if loss_fn.weight is not None:
            return loss_fn.weight[targets[targets != ignored]].sum()
        return counted(targets, ignored)

    return class_weight


def choose_task(task: Task | None, loss_fn: LossFunction | None) -> Task:
    """Return the user's task, or the default one with the user's loss.

    Raises:
        InvalidTypeError: `task` is no Task, or `loss_fn` no function.
        InvalidArgumentError: Both are given, or the loss does not average.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise InvalidTypeError(
            "`loss_fn` must be a function (outputs, targets) -> loss, but is "
            f"{loss_fn!r} ({type(loss_fn).__name__})."
        )
    if isinstance(loss_fn, type):
        raise InvalidTypeError(
            f"`loss_fn` is the class {loss_fn.__name__}. Pass an object: {loss_fn.__name__}()."
        )
    if task is None:
        return SupervisedTask(loss_fn)
    if not isinstance(task, Task):
        raise InvalidTypeError(
            f"`task` must derive from finetunelib.training.Task, but is {task!r}."
        )
    if loss_fn is not None:
        raise InvalidArgumentError(
            f"`loss_fn` is given beside the task {type(task).__name__}, which computes the loss "
            "itself. Pass one of the two."
        )
    return task


def module_of_loss(task: Task) -> nn.Module | None:
    """Return the loss of the default task, where it is a module and may hold class weights."""
    loss = task.loss_fn if isinstance(task, SupervisedTask) else None
    return loss if isinstance(loss, nn.Module) else None


def split(batch: Batch) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch.

    Raises:
        InvalidTypeError: The batch is neither a pair nor a mapping with `labels`.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    raise InvalidTypeError(
        "A batch must be a pair (inputs, targets), or a mapping with the targets under `labels`, "
        f"but is {describe(batch)}. Let the data yield one of these, or pass a `task`."
    )


def inputs_of(batch: Batch) -> Any:
    """Return the inputs of a batch that may hold targets too."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    return batch


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Run the model on inputs, by name where they are a mapping, and return its tensor.

    Raises:
        InvalidTypeError: The model returns something else than a tensor.
    """
    # Tensors are looked for first, since to ask an abstract class takes its time.
    if isinstance(inputs, Tensor) or not isinstance(inputs, Mapping):
        output = model(inputs)
    else:
        output = model(**inputs)
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise InvalidTypeError(
        f"The model must return a tensor, or an object with `.logits`, but returned "
        f"{describe(output)}. Pass a `task` that knows what to do with it."
    )


def describe(value: object) -> str:
    """Return a few words about what a value is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of length {len(value)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, value))}"
    return f"of type {type(value).__name__}"
