"""One step of training: from a batch to an update of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from finetunelib._typing import Batch
from finetunelib.training._state import TrainState
from finetunelib.training._task import StepOutput, SupervisedTask


@dataclass(frozen=True, slots=True)
class Step:
    """The update of a model's weights from one batch."""

    model: nn.Module
    task: SupervisedTask
    optimizer: torch.optim.Optimizer
    state: TrainState

    def __call__(self, batch: Batch) -> StepOutput:
        """Do one update, and return what the task made of the batch."""
        self.optimizer.zero_grad()
        output = self.task.step(self.model, batch)
        output.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.state.step += 1
        return output
