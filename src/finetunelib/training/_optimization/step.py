"""One step of training: from the micro-batches of a window to one update of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finetunelib._typing import Batch
from finetunelib.training._optimization.gradients import NoClipping, mean_over
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._optimization.schedule import NoSchedule
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput, Task, validate_output


@dataclass(frozen=True, slots=True)
class Step:
    """The update of a model's weights."""

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    precision: Precision
    clip: NoClipping
    schedule: NoSchedule
    state: TrainState
    parameters: list[nn.Parameter]

    def __call__(self, window: Sequence[Batch], measure: Callable[[StepOutput], None]) -> None:
        """Do one update.

        Args:
            window: The micro-batches of the update, on the device.
            measure: Takes in what the task made of each.
        """
        self.optimizer.zero_grad()
        mean = mean_over(window)
        for micro_batch in window:
            with self.precision.autocast():
                output = validate_output(self.task.step(self.model, micro_batch), self.task)
            self.precision.backward(mean.share(output.loss, output.weight))
            measure(output)
        self.precision.unscale(self.optimizer)
        mean.finish(self.parameters)
        self.clip(self.parameters)
        self.precision.step(self.optimizer)
        self.schedule.after_step()
        self.state.step += 1
