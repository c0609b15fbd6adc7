"""The default task: outputs from inputs, and a loss that compares them with targets."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from finetunelib._forward.batch import call, inputs_of, split
from finetunelib._typing import Batch, LossFunction
from finetunelib.errors import InvalidArgumentError, InvalidTargetError, InvalidTypeError
from finetunelib.training._tasks.class_targets import count_targets
from finetunelib.training._tasks.task import StepOutput, Task

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
        return count_targets(targets, ignored)

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
