"""One step: an update of the weights from the micro-batches of a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from finetunelib._typing import Batch
from finetunelib.training._optimization.gradients import Clipping, mean_over
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._optimization.schedule import Schedule
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput, Task, validate_output
from finetunelib.training._updates.update import Update


@dataclass(slots=True)
class LastStep:
    """The losses of the last step and the norm of its gradients.

    Attributes:
        losses: The loss of each micro-batch, with its graph, whose tensors `backward` has freed.
        weights: What each loss is a mean over.
        norm: The norm of the gradients before they were clipped, or `None` if it was not computed.
    """

    losses: list[Tensor] = field(default_factory=list)
    weights: list[Tensor | float] = field(default_factory=list)
    norm: Tensor | None = None

    def start(self) -> None:
        """Forget the step before."""
        self.losses.clear()
        self.weights.clear()
        self.norm = None

    def add(self, loss: Tensor, weight: Tensor | float) -> None:
        """Keep the loss of a micro-batch."""
        self.losses.append(loss)
        self.weights.append(weight)

    def read_loss(self) -> float | None:
        """Return the mean over the micro-batches, or `None` before the first step.

        It waits for an accelerator.
        """
        if len(self.losses) < 2:
            return self.losses[0].item() if self.losses else None
        # The mean of a micro-batch without weight is nan, which must not be added.
        counted = [
            (loss.item(), float(weight))
            for loss, weight in zip(self.losses, self.weights, strict=True)
            if float(weight)
        ]
        total = sum(weight for _, weight in counted)
        return sum(loss * weight for loss, weight in counted) / total if total else math.nan

    def read_norm(self) -> float | None:
        """Return the norm, or `None` if it was not computed. It waits for an accelerator."""
        return None if self.norm is None else float(self.norm)


class LossCheck(Protocol):
    """What looks at the losses of a step: a guard that stops the run, or nothing."""

    def start(self) -> None:
        """Prepare for a step."""
        ...

    def check(self, output: StepOutput, batch: Batch) -> None:
        """Look at the loss of a micro-batch, before its backward pass."""
        ...

    def check_norm(self, norm: Tensor | None, batch: Batch) -> None:
        """Look at the norm of the gradients before the update, if clipping has computed it."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """Updates the weights of a model.

    Attributes:
        model: The model to call; it may be a compiled form of the user's model.
        task: Computes the loss of a micro-batch.
        update: Clears the gradients, and updates the weights with the optimizer.
        precision: The number format of the forward pass, and the scale of the loss.
        guard: Stops the run if the loss is not finite, unless the steps will be undone.
        clip: Clips the gradients.
        schedule: The learning-rate schedule.
        state: The counters; each call adds one to `step`.
        parameters: The parameters of the optimizer.
        last: What callbacks can read about the last step.
        checkpointed: Returns the context of the forward and backward passes, in which blocks of the
            model may be checkpointed.
    """

    model: nn.Module
    task: Task
    update: Update
    precision: Precision
    guard: LossCheck
    clip: Clipping
    schedule: Schedule
    state: TrainState
    parameters: list[nn.Parameter]
    last: LastStep
    checkpointed: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, window: Sequence[Batch], measure: Callable[[StepOutput], None]) -> None:
        """Update the weights once.

        Args:
            window: The micro-batches of the update, on the device.
            measure: Called with the output of the task for each micro-batch.

        Raises:
            NonFiniteError: If a loss is not finite. There is no update then.
        """
        self.guard.start()
        self.last.start()
        self.update.clear()
        mean = mean_over(window)
        with self.checkpointed():
            for micro_batch in window:
                with self.precision.autocast():
                    output = validate_output(self.task.step(self.model, micro_batch), self.task)
                self.last.add(output.loss, output.weight)
                self.guard.check(output, micro_batch)
                self.precision.backward(mean.scale_loss(output.loss, output.weight))
                measure(output)
        self.precision.unscale(self.update.optimizer)
        mean.normalize(self.parameters)
        self.last.norm = self.clip(self.parameters)
        self.guard.check_norm(self.last.norm, window[-1])
        self.precision.step(self.update)
        self.schedule.after_step()
        self.state.step += 1
