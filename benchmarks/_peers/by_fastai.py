"""Fastai."""

# pyright: reportMissingImports=false
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn

from _peers.base import LR, MOMENTUM, Arrays, Feed, Job, Peer, as_loader, loader_of


class _Nothing(Callback):  # type: ignore[misc]
    def after_batch(self) -> None:
        """Do nothing."""


class Fastai(Peer):
    """A `Learner` whose recorder computes the metric of training. It validates on no batch."""

    name = "fastai"
    statement = "from fastai.learner import Learner"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        nobody: list[Any] = []
        self.learner = Learner(
            DataLoaders(nobody, nobody, path=job.folder, device="cpu"),
            model,
            loss_func=nn.CrossEntropyLoss(),
            opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=MOMENTUM),
            metrics=[accuracy] if job.metric else [],
            cbs=[_Nothing() for _ in range(job.callbacks)],
            train_bn=False,
        )
        self.learner.recorder.train_metrics = job.metric
        self.learner.recorder.valid_metrics = False
        if not job.bar:
            self.learner.remove_cb(ProgressCallback)
            self.learner.logger = lambda *_: None

    def fit(self, feed: Feed) -> None:
        self.learner.dls.loaders = [as_loader(feed), []]
        with self.learner.no_logging():
            self.learner.fit(self.job.epochs, lr=LR)

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        self.learner.recorder.valid_metrics = True
        with self.learner.no_bar():
            found = self.learner.validate(dl=loader_of(data, self.job))
        return float(found[0]), float(found[1])

    def predict(self, inputs: Tensor) -> Tensor:
        data = inputs, torch.zeros(len(inputs), dtype=torch.int64)
        with self.learner.no_bar():
            outputs: Tensor = self.learner.get_preds(
                dl=loader_of(data, self.job), act=nn.Identity()
            )[0]
        return outputs

    def save(self, folder: Path) -> None:
        self.learner.path, self.learner.model_dir = folder, "."
        self.learner.save("fastai")

    def restore(self, folder: Path) -> None:
        self.learner.path, self.learner.model_dir = folder, "."
        self.learner.load("fastai")
