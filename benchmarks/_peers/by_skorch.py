"""Skorch."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring, ProgressBar
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from _peers.base import LR, MOMENTUM, Arrays, Data, Feed, Job, Peer


class _Nothing(Callback):  # type: ignore[misc]
    def on_batch_end(self, net: Any, **_: Any) -> None:
        """Do nothing."""


class Skorch(Peer):
    """A `NeuralNetClassifier` on arrays, without a validation split."""

    name = "skorch"
    statement = "import skorch, skorch.callbacks"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        callbacks: list[Any] = [_Nothing() for _ in range(job.callbacks)]
        if job.metric:
            callbacks.append(EpochScoring("accuracy", on_train=True, name="train_accuracy"))
        if job.bar:
            callbacks.append(ProgressBar())
        self._feed: Feed | None = None
        self.net = NeuralNetClassifier(
            model,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.SGD,
            optimizer__momentum=MOMENTUM,
            lr=LR,
            batch_size=job.batch_size,
            max_epochs=job.epochs,
            train_split=None,
            iterator_train=self._iterator,
            iterator_train__shuffle=True,
            callbacks=callbacks,
            verbose=0,
            classes=range(job.classes),
        ).initialize()

    def fit(self, feed: Feed) -> None:
        self._feed = feed
        self.net.partial_fit(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))

    def _iterator(self, dataset: Any, **options: Any) -> Feed:
        return DataLoader(dataset, **options) if self._feed is None else self._feed

    def train(self, data: Data) -> None:
        self._feed = None
        if isinstance(data, tuple):
            self.net.partial_fit(data[0].numpy(), data[1].numpy())
        else:
            self.net.partial_fit(data, None)

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        outputs = self.predict(data[0])
        correct = outputs.argmax(1) == data[1]
        return float(functional.cross_entropy(outputs, data[1])), float(correct.float().mean())

    def predict(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net.forward(inputs.numpy())
        return outputs

    def save(self, folder: Path) -> None:
        files = {f"f_{part}": folder / f"skorch-{part}" for part in ("params", "optimizer")}
        self.net.save_params(**files)

    def restore(self, folder: Path) -> None:
        files = {f"f_{part}": folder / f"skorch-{part}" for part in ("params", "optimizer")}
        self.net.load_params(**files)
