"""The check of the first batch before training starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from finetunelib._typing import Batch
from finetunelib.data._batch import to_device
from finetunelib.data._batches import Batches
from finetunelib.training._tasks.first_batch import check_batch
from finetunelib.training._tasks.task import Task


@dataclass(frozen=True, slots=True)
class FirstBatchCheck:
    """Checks that the model and the loss accept a batch, without changing the model."""

    model: nn.Module
    task: Task
    device: torch.device

    def __call__(self, first: Batch, batches: Batches, name: str) -> None:
        """Raise if the first batch of the data called `name` cannot be used."""
        on_device = to_device(first, self.device)
        check_batch(self.model, self.task, on_device, batches.all_targets(), name)
