"""What a training does with one batch: the base class that users extend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finetunelib._public import public
from finetunelib._typing import Batch
from finetunelib.errors import InvalidTypeError


# Not frozen, since that makes its construction, once a micro-batch, four times as dear.
@public("finetunelib.training")
@dataclass(slots=True, eq=False)
class StepOutput:
    """What a task made of one batch.

    Attributes:
        loss: The mean loss of the batch: a scalar with a gradient.
        outputs: What the metrics get as outputs, a tensor of them detached; as a rule
            `(batch, ...)`.
        targets: What the metrics get as targets.
        weight: What `loss` is a mean over: the number of samples or tokens, or the sum of the
            class weights. Losses and gradients of several batches are averaged by it.

    Example:
        >>> import torch
        >>> from finetunelib.training import StepOutput
        >>> outputs, targets = torch.zeros(2, 1), torch.ones(2, 1)
        >>> StepOutput((outputs - targets).square().mean(), outputs, targets, weight=2).loss
        tensor(1.)
    """

    loss: Tensor
    outputs: Any  # Any: a task and its metrics agree on the structure between themselves.
    targets: Any
    weight: Tensor | float


@public("finetunelib.training")
class Task(ABC):
    """What is done with one batch: extend it where inputs and targets are not a plain pair.

    The model is passed in by the Trainer (it may be a compiled or wrapped form of the user's
    own), already in the right mode, and the batch is on its device.

    Example:
        A model of two inputs, compared with targets by the distance of its outputs:

        >>> import torch
        >>> from torch import nn
        >>> from finetunelib import Trainer
        >>> from finetunelib.training import StepOutput, Task
        >>> class TwoInputs(Task):
        ...     def step(self, model, batch):
        ...         left, right, targets = batch
        ...         outputs = model(left, right)
        ...         loss = nn.functional.mse_loss(outputs, targets)
        ...         return StepOutput(loss, outputs.detach(), targets, weight=len(targets))
        >>> batches = [(torch.ones(4, 2), torch.ones(4, 3), torch.ones(4, 5))] * 3
        >>> trainer = Trainer(nn.Bilinear(2, 3, 5), task=TwoInputs(), progress=False)
        >>> len(trainer.fit(batches, epochs=2))
        2
    """

    @abstractmethod
    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of a batch.

        Args:
            model: The model to call.
            batch: A batch of the data, on the model's device.

        Returns:
            The loss, and what metrics need.
        """

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the outputs of a batch; those of `step`, where this is not extended.

        Args:
            model: The model to call.
            batch: A batch of the data, on the model's device; it may lack targets.

        Returns:
            The outputs, `(batch, ...)`.
        """
        outputs: Tensor = self.step(model, batch).outputs
        return outputs


def validate_output(output: object, task: Task) -> StepOutput:
    """Return what a task returned, which must be a `StepOutput` with a scalar loss.

    Raises:
        InvalidTypeError: It is something else.
    """
    if not isinstance(output, StepOutput):
        found = type(output).__name__
    elif not isinstance(output.loss, Tensor):
        found = f"a loss of type {type(output.loss).__name__}"
    elif output.loss.dim() == 0:
        return output
    else:
        found = f"a loss of shape {tuple(output.loss.shape)}; reduce it to its mean"
    raise InvalidTypeError(
        f"`{type(task).__name__}.step` must return a StepOutput with a scalar loss, but returned "
        f"{found}."
    )
