"""PyTorch Ignite."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar
from ignite.metrics import Accuracy, Loss
from torch import Tensor, nn

from _peers.base import Arrays, Feed, Job, Peer, concatenated, loader_of, nothing, sgd


class Ignite(Peer):
    """Supervised engines with attached metrics."""

    name = "ignite"
    statement = "import ignite.engine, ignite.metrics, ignite.handlers"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        self.optimizer, self.loss_fn = sgd(model), nn.CrossEntropyLoss()
        self.engine = create_supervised_trainer(
            model,
            self.optimizer,
            self.loss_fn,
            output_transform=(lambda _x, y, y_pred, _loss: (y_pred, y))
            if job.metric
            else (lambda *values: values[3]),
        )
        if job.metric:
            Accuracy().attach(self.engine, "accuracy")
            Loss(self.loss_fn).attach(self.engine, "loss")
        if job.bar:
            ProgressBar(ascii=True).attach(self.engine)
        for _ in range(job.callbacks):
            self.engine.add_event_handler(Events.ITERATION_COMPLETED, nothing)

    def fit(self, feed: Feed) -> None:
        self.engine.run(feed, max_epochs=self.job.epochs)

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        metrics = {"loss": Loss(self.loss_fn), "accuracy": Accuracy()}
        engine = create_supervised_evaluator(self.model, metrics)
        found = engine.run(loader_of(data, self.job)).metrics
        return found["loss"], found["accuracy"]

    def predict(self, inputs: Tensor) -> Tensor:
        parts: list[Tensor] = []

        @torch.no_grad()
        def step(_: object, batch: Any) -> None:
            self.model.eval()
            parts.append(self.model(batch[0]))

        Engine(step).run(loader_of((inputs,), self.job))  # type: ignore[arg-type]
        return concatenated(parts)

    def save(self, folder: Path) -> None:
        saver = DiskSaver(str(folder / "ignite"), require_empty=False)
        state = {"model": self.model, "optimizer": self.optimizer, "engine": self.engine}
        Checkpoint(state, saver, n_saved=1)(self.engine)

    def restore(self, folder: Path) -> None:
        (file,) = (folder / "ignite").glob("*.pt")
        state = {"model": self.model, "optimizer": self.optimizer, "engine": self.engine}
        Checkpoint.load_objects(state, torch.load(file))
