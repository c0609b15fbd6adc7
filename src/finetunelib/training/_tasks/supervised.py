"""The default task: a loss that compares the model's outputs with targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from finetunelib._forward.batch import arguments_of, call, inputs_of, split
from finetunelib._forward.outputs import logits_of
from finetunelib._typing import Batch, LossFunction
from finetunelib.errors import InvalidArgumentError, InvalidTargetError, InvalidTypeError
from finetunelib.training._tasks.class_targets import count_targets
from finetunelib.training._tasks.task import StepOutput, Task

#: Losses that compare outputs and targets element by element.
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss)


class SupervisedTask(Task):
    """Compares outputs with targets, for batches that are pairs (inputs, targets) or mappings.

    In a mapping, `labels` are the targets, and the rest is passed to the model by name. The
    model returns a tensor, or an object with `.logits` as the models of transformers do.
    """

    def __init__(self, loss_fn: LossFunction | None) -> None:
        self.default_loss = loss_fn is None
        self.loss_fn: LossFunction = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
        self._weight = _weight_of(self.loss_fn)
        reduction = getattr(self.loss_fn, "reduction", "mean")
        if reduction != "mean":
            raise InvalidArgumentError(
                f"`loss_fn` must average over the batch, got the reduction {reduction!r}. "
                f'Use {type(self.loss_fn).__name__}(reduction="mean").'
            )

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the model on a batch and compare its outputs with the targets.

        Raises:
            InvalidTypeError: If the batch has no targets, or the output is not a tensor.
            InvalidTargetError: If a target is not the index of a class.
        """
        inputs, targets = split(batch)
        outputs = call(model, inputs)
        return StepOutput(self.loss(outputs, targets), outputs, targets, self._weight(targets))

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Run the model on a batch, with or without targets, and return its logits or outputs."""
        output = arguments_of(inputs_of(batch)).call(model)
        logits = logits_of(output)
        return output if logits is None else logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare outputs with targets."""
        try:
            return self.loss_fn(outputs, targets)
        except IndexError as error:
            raise InvalidTargetError(
                f"Targets must be in 0 to {outputs.shape[1] - 1}, because the model has "
                f"{outputs.shape[1]} classes: {error}"
            ) from error


def _weight_of(loss_fn: LossFunction) -> Callable[[Tensor], Tensor | float]:
    """Return a function that computes, from targets, what the loss is a mean over."""
    if isinstance(loss_fn, ELEMENTWISE):
        return Tensor.numel
    if not isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return len
    ignored = loss_fn.ignore_index

    def class_weight(targets: Tensor) -> Tensor | float:
        if targets.is_floating_point():
            return len(targets)  # class probabilities: none is ignored
        if loss_fn.weight is not None:
            return loss_fn.weight[targets[targets != ignored]].sum()
        return count_targets(targets, ignored)

    return class_weight


def choose_task(task: Task | None, loss_fn: LossFunction | None) -> Task:
    """Return the user's task, or the default one with the user's loss.

    Raises:
        InvalidTypeError: If `task` is not a `Task`, or `loss_fn` is not callable or a class.
        InvalidArgumentError: If both are given, or the loss does not average over the batch.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise InvalidTypeError(
            "`loss_fn` must be a function (outputs, targets) -> loss, got "
            f"{loss_fn!r} ({type(loss_fn).__name__})."
        )
    if isinstance(loss_fn, type):
        raise InvalidTypeError(
            f"`loss_fn` is the class {loss_fn.__name__}. Pass an object: {loss_fn.__name__}()."
        )
    if task is None:
        return SupervisedTask(loss_fn)
    if not isinstance(task, Task):
        raise InvalidTypeError(f"`task` must be a finetunelib.training.Task, got {task!r}.")
    if loss_fn is not None:
        raise InvalidArgumentError(
            f"`loss_fn` cannot be combined with the task {type(task).__name__}, which computes "
            "its own loss. Pass one of the two."
        )
    return task
