"""The hand-written loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from _peers.base import Arrays, Data, Feed, Job, Peer, accuracy_of, concatenated, nothing, sgd


class Hand(Peer):
    """A loop over the batches; tensors are shuffled and indexed without a `DataLoader`."""

    name = "hand"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        self.optimizer = sgd(model)
        self.loss_fn = nn.CrossEntropyLoss()

    def fit(self, feed: Feed) -> None:
        model, optimizer, loss_fn = self.model, self.optimizer, self.loss_fn
        metric, callbacks = self.job.metric, [nothing] * self.job.callbacks
        model.train()
        for _ in range(self.job.epochs):
            correct = torch.zeros((), dtype=torch.int64)
            for inputs, targets in feed:
                outputs = model(inputs)
                loss = loss_fn(outputs, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if metric:
                    correct += (outputs.argmax(1) == targets).sum()
                for callback in callbacks:
                    callback()

    def train(self, data: Data) -> None:
        if not isinstance(data, tuple):
            super().train(data)
            return
        self.fit(_Shuffled(data, self.job.batch_size))

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        outputs = self.predict(data[0])
        return float(functional.cross_entropy(outputs, data[1])), accuracy_of(outputs, data[1])

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        self.model.eval()
        return concatenated(self.model(part) for part in torch.split(inputs, self.job.batch_size))

    def save(self, folder: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, folder / "hand.pt")

    def restore(self, folder: Path) -> None:
        state = torch.load(folder / "hand.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class _Shuffled:
    def __init__(self, data: Arrays, batch_size: int) -> None:
        self._data = data
        self._batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._data[0]) / self._batch_size)

    def __iter__(self) -> Iterator[Arrays]:
        inputs, targets = self._data
        for rows in torch.split(torch.randperm(len(inputs)), self._batch_size):
            yield inputs.index_select(0, rows), targets.index_select(0, rows)
