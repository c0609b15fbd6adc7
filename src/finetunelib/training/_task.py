"""What is done with one batch: from inputs and targets to a loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from finetunelib._typing import Batch, LossFunction
from finetunelib.errors import InvalidTargetError, InvalidTypeError


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a task made of one batch.

    Attributes:
        loss: The mean loss of the batch, a scalar that has a gradient.
        outputs: The model's outputs, detached.
        targets: What the outputs should have been.
        weight: What the loss is a mean over, such as the number of samples.
    """

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    weight: Tensor | float


class SupervisedTask:
    """The usual task: outputs from inputs, and a loss that compares them with targets."""

    def __init__(self, loss_fn: LossFunction | None) -> None:
        self.default_loss = loss_fn is None
        self._loss_fn = nn.CrossEntropyLoss() if loss_fn is None else loss_fn

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the model on a batch of (inputs, targets) and compute the loss.

        Raises:
            InvalidTypeError: The batch is no pair, or the model's output no tensor.
            InvalidTargetError: A class index is outside the classes.
        """
        inputs, targets = pair_of(batch)
        outputs = tensor_of(model(inputs))
        try:
            loss = self._loss_fn(outputs, targets)
        except IndexError as error:
            raise InvalidTargetError(
                f"A target lies outside the model's {outputs.shape[1]} classes: {error} "
                f"Targets must be in 0 to {outputs.shape[1] - 1}."
            ) from error
        return StepOutput(loss, outputs.detach(), targets, _weight(self._loss_fn, targets))

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on a batch of (inputs, targets) or of inputs alone."""
        return tensor_of(model(inputs_of(batch)))


def pair_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a batch.

    Raises:
        InvalidTypeError: The batch is not a pair.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise InvalidTypeError(
        f"A batch must be a pair (inputs, targets), but is {describe(batch)}. "
        "Let the dataset yield pairs, or the loader collate them."
    )


def inputs_of(batch: Batch) -> Tensor:
    """Return the inputs of a batch that may hold targets too."""
    if isinstance(batch, tuple | list):
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise InvalidTypeError(f"The inputs must be a tensor, but are {describe(batch)}.")
    return batch


def tensor_of(output: object) -> Tensor:
    """Return a model's output, which must be a tensor."""
    if isinstance(output, Tensor):
        return output
    raise InvalidTypeError(f"The model must return a tensor, but returned {describe(output)}.")


def describe(value: object) -> str:
    """Return a few words about what a value is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of length {len(value)}"
    return f"of type {type(value).__name__}"


def _weight(loss_fn: LossFunction, targets: Tensor) -> Tensor | float:
    """Return what the mean of `loss_fn` divides by, as far as a loss tells."""
    if isinstance(loss_fn, nn.CrossEntropyLoss) and not targets.is_floating_point():
        if loss_fn.weight is not None:
            counted = targets[targets != loss_fn.ignore_index]
            return loss_fn.weight[counted].sum()
        return (targets != loss_fn.ignore_index).sum()
    return len(targets)
