"""The base class of tasks, and the output of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finetunelib._forward.batch import describe
from finetunelib._public import public
from finetunelib._typing import Batch
from finetunelib.errors import InvalidTypeError


# Not frozen: that would make its construction, once per micro-batch, four times slower.
@public("finetunelib.training")
@dataclass(slots=True, eq=False)
class StepOutput:
    """The result of `Task.step` for one batch.

    Attributes:
        loss: The mean loss of the batch, a scalar tensor with a gradient.
        outputs: The outputs that metrics receive, usually a tensor `(batch, ...)`. A tensor is
            detached first.
        targets: The targets that metrics receive.
        weight: What `loss` is a mean over: the number of samples or tokens, or the sum of the
            class weights. It weights the batch in means of losses and gradients.
        sample_weight: How much each sample counts in the metrics, `(batch,)`, or `None` if all
            count equally.

    Example:
        >>> import torch
        >>> from finetunelib.training import StepOutput
        >>> outputs, targets = torch.zeros(2, 1), torch.ones(2, 1)
        >>> StepOutput((outputs - targets).square().mean(), outputs, targets, weight=2).loss
        tensor(1.)
    """

    loss: Tensor
    outputs: Any  # Any: the structure is up to the task and its metrics.
    targets: Any
    weight: Tensor | float
    sample_weight: Tensor | None = None

    def __repr__(self) -> str:
        shown = (
            n for n in self.__slots__ if n != "sample_weight" or self.sample_weight is not None
        )
        parts = (f"{name}={_short(getattr(self, name))}" for name in shown)
        return f"StepOutput({', '.join(parts)})"


@public("finetunelib.training")
class Task(ABC):
    """Base class of tasks, which compute the loss of a batch.

    Write one if batches are not pairs (inputs, targets), or if the loss needs more than outputs
    and targets. The Trainer passes the model, which may be a compiled or wrapped form of yours,
    in the right mode, and the batch on the model's device.

    Attributes:
        counts_tokens: Whether `StepOutput.weight` is a number of tokens. If it is,
            `TrainContext.tokens_per_second` measures the speed in tokens. `False` by default.

    Example:
        A model with two inputs:

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

    counts_tokens: bool = False

    @abstractmethod
    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of a batch.

        Args:
            model: The model to call.
            batch: A batch of the data, on the model's device.

        Returns:
            The loss and its weight, and the outputs and targets for the metrics.
        """

    def predict(self, model: nn.Module, batch: Batch) -> Any:  # Any: as StepOutput.outputs.
        """Compute the outputs of a batch. By default these are the outputs of `step`.

        Args:
            model: The model to call.
            batch: A batch of the data, on the model's device. It may lack targets.

        Returns:
            The outputs with one row for each sample, as a tensor `(batch, ...)`, a mapping or tuple
            of tensors, or a list with one entry for each sample.
        """
        return self.step(model, batch).outputs


def _short(value: object) -> str:
    if isinstance(value, Tensor) and value.dim() == 0:
        return f"{value.item():.4g}"
    return repr(value) if value is None or isinstance(value, int | float) else describe(value)


def validate_output(output: object, task: Task) -> StepOutput:
    """Return the output of a task's `step` if it is a `StepOutput` with a scalar loss.

    Raises:
        InvalidTypeError: If it is not.
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
        f"`{type(task).__name__}.step` must return a StepOutput with a scalar loss, got {found}."
    )
