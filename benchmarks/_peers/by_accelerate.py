"""Accelerate."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from _peers.base import (
    Arrays,
    Feed,
    Job,
    Peer,
    accuracy_of,
    as_loader,
    concatenated,
    loader_of,
    nothing,
    sgd,
)


class Accelerate(Peer):
    """A hand-written loop with prepared objects."""

    name = "accelerate"
    statement = "from accelerate import Accelerator"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        self.accelerator = Accelerator(cpu=True)
        self.prepared, self.optimizer = self.accelerator.prepare(model, sgd(model))

    def fit(self, feed: Feed) -> None:
        loader = self.accelerator.prepare(as_loader(feed))
        callbacks = [nothing] * self.job.callbacks
        self.prepared.train()
        for _ in range(self.job.epochs):
            correct = torch.zeros((), dtype=torch.int64)
            for inputs, targets in tqdm(loader, disable=not self.job.bar):
                outputs = self.prepared(inputs)
                loss = functional.cross_entropy(outputs, targets)
                self.optimizer.zero_grad()
                self.accelerator.backward(loss)
                self.optimizer.step()
                if self.job.metric:
                    found, wanted = self.accelerator.gather_for_metrics((outputs, targets))
                    correct += (found.argmax(1) == wanted).sum()
                for callback in callbacks:
                    callback()

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        outputs = self.predict(data[0])
        return float(functional.cross_entropy(outputs, data[1])), accuracy_of(outputs, data[1])

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        loader = self.accelerator.prepare(loader_of((inputs,), self.job))  # type: ignore[arg-type]
        self.prepared.eval()
        gather: Any = self.accelerator.gather_for_metrics
        return concatenated(gather(self.prepared(batch)) for (batch,) in loader)

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder / "accelerate"))

    def restore(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder / "accelerate"))
