"""The default task: a loss that compares the model's outputs with targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.batch import WeightedBatch, arguments_of, call, inputs_of, split
from finetunelib._forward.outputs import logits_of
from finetunelib._typing import Batch, LossFunction
from finetunelib.errors import InvalidArgumentError, InvalidTargetError, InvalidTypeError
from finetunelib.training._tasks.convention import Convention, convention_of
from finetunelib.training._tasks.measured import measured_weighting, nothing_counted
from finetunelib.training._tasks.sample_weights import weighted_loss
from finetunelib.training._tasks.task import StepOutput, Task
from finetunelib.training._tasks.weighting import (
    Weighting,
    function_of,
    ignored_by,
    known_weighting,
)


class SupervisedTask(Task):
    """Compares outputs with targets, for batches that are pairs (inputs, targets) or mappings.

    In a mapping, `labels` are the targets, and the rest is passed to the model by name. The
    model returns a tensor, or an object with `.logits` as the models of transformers do.
    """

    def __init__(self, loss_fn: LossFunction | None) -> None:
        self.default_loss = loss_fn is None
        self.loss_fn: LossFunction = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
        self._weighting = known_weighting(self.loss_fn)
        self._provisional: Weighting | None = None
        self._row: torch.Size | None = None
        self._convention: tuple[Weighting, Convention] | None = None

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the model on a batch and compare its outputs with the targets.

        Raises:
            InvalidTypeError: If the batch has no targets, or the output is not a tensor.
            InvalidTargetError: If a target is not the index of a class.
        """
        inputs, targets = split(batch)
        outputs = call(model, inputs)
        if isinstance(batch, WeightedBatch):
            return self.weighted(outputs, targets, batch.sample_weight)
        loss = self.loss(outputs, targets)
        return StepOutput(loss, outputs, targets, self.weight(outputs, targets))

    def weighted(self, outputs: Tensor, targets: Tensor, sample_weight: Tensor) -> StepOutput:
        """Compare outputs with targets that count differently."""
        try:
            loss, weight = weighted_loss(self.loss_fn, outputs, targets, sample_weight)
        except IndexError as error:
            raise _no_class(outputs, error) from error
        return StepOutput(loss, outputs, targets, weight, sample_weight)

    def weight(self, outputs: Tensor, targets: Tensor) -> Tensor | float:
        """Return what the loss of a batch is a mean over.

        Raises:
            InvalidArgumentError: If the loss is a sum, or the rows of batches have different
                shapes and it is unknown whether the loss counts rows or elements.
        """
        known = self._weighting
        if known is not None and self._row is None:
            return known.weight(targets)  # At every step but the first.
        weighting = self.weighting(outputs, targets)
        if self._row is not None and targets.shape[1:] != self._row:
            raise InvalidArgumentError(
                f"The targets of a batch have rows of shape {tuple(targets.shape[1:])}, those of "
                f"an earlier one {tuple(self._row)}, and it is unknown whether `loss_fn` is a mean "
                "over rows or over elements. Return what it is a mean over as "
                "`StepOutput.weight` from a Task."
            )
        return weighting.weight(targets)

    def weighting(self, outputs: Tensor, targets: Tensor) -> Weighting:
        """Return what the loss is a mean over, which is measured once if it is not known."""
        if self._weighting is None:
            self._provisional = nothing_counted(targets)
            if self._provisional is not None:
                return self._provisional  # The next batch may tell.
            self._weighting = measured_weighting(self.loss_fn, outputs.detach(), targets)
            if self._weighting.weight is len and targets.dim() > 1:
                self._row = targets.shape[1:]
        return self._weighting

    @property
    def convention(self) -> Convention:
        """What outputs and targets mean, according to the loss."""
        weighting = self._weighting or self._provisional
        # It is asked for at the start of each pass, and does not change once this is known.
        if self._convention is None or self._convention[0] is not weighting:
            ignored = ignored_by(self.loss_fn) if weighting is None else weighting.ignored
            found = convention_of(function_of(self.loss_fn), ignored)
            if weighting is None:
                return found
            self._convention = weighting, found
        return self._convention[1]

    @property
    def is_measured(self) -> bool:
        """Whether it is known what the loss is a mean over, or that it is not."""
        return self._weighting is not None

    @property
    def counts_targets(self) -> bool:
        """Whether the loss is a mean over the class indices that it does not ignore."""
        return self._weighting is not None and self._weighting.counts_targets

    @property
    def sizes_must_be_equal(self) -> bool:
        """Whether only batches of the same size can be averaged."""
        return self._weighting is not None and not self._weighting.known

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Run the model on a batch, with or without targets, and return its logits or outputs."""
        inputs = inputs_of(batch)
        # As in `call`, but a mapping or tuple is a result, too.
        output = model(inputs) if isinstance(inputs, Tensor) else arguments_of(inputs).call(model)
        logits = logits_of(output)
        return output if logits is None else logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare outputs with targets."""
        try:
            return self.loss_fn(outputs, targets)
        except IndexError as error:
            raise _no_class(outputs, error) from error


def _no_class(outputs: Tensor, error: IndexError) -> InvalidTargetError:
    return InvalidTargetError(
        f"Targets must be in 0 to {outputs.shape[1] - 1}, because the model has "
        f"{outputs.shape[1]} classes: {error}"
    )


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
