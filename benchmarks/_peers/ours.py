"""This library."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from _peers.base import Arrays, Data, Feed, Job, Peer
from finetunelib import Trainer
from finetunelib.training import Callback, TrainContext


class _Nothing(Callback):
    def on_step_end(self, context: TrainContext) -> None:
        """Do nothing."""


class Ours(Peer):
    """`finetunelib.Trainer`, whose default optimizer is that of the others."""

    name = "finetunelib"
    statement = "from finetunelib import Trainer"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        self.trainer = Trainer(
            model,
            metrics=None if job.metric else {},
            callbacks=[_Nothing() for _ in range(job.callbacks)],
            batch_size=job.batch_size,
            device="cpu",
            progress=job.bar,
        )

    def fit(self, feed: Feed) -> None:
        self.trainer.fit(feed, epochs=self.job.epochs)

    def train(self, data: Data) -> None:
        self.trainer.fit(data, epochs=self.job.epochs)

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        found = self.trainer.evaluate(data)
        return found["loss"], found["accuracy"]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.trainer.predict(inputs)

    def save(self, folder: Path) -> None:
        self.trainer.save_checkpoint(folder / "ours")

    def restore(self, folder: Path) -> None:
        self.trainer.load_checkpoint(folder / "ours")
