"""The Trainer of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from _peers.base import Arrays, Data, Feed, Job, Peer, loader_of, sgd


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module, *, metric: bool) -> None:
        super().__init__()
        self.model = model
        self.metric = metric
        self.correct = 0

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(inputs)
        if self.training and self.metric:
            self.correct = self.correct + (logits.argmax(1) == labels).sum()
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class _Named:
    """Batches as mappings."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.dataset = getattr(feed, "dataset", range(100))

    def __len__(self) -> int:
        return len(self._feed)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for inputs, labels in self._feed:
            yield {"inputs": inputs, "labels": labels}


class _Trainer(Trainer):
    feed: Any = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = self.feed
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        loader: DataLoader[Any] = eval_dataset
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        loader: DataLoader[Any] = test_dataset
        return loader


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    logits: Any = found.predictions
    return {"accuracy": float((logits.argmax(1) == found.label_ids).mean())}


class Transformers(Peer):
    """`transformers.Trainer` without reports and checkpoints. The model computes the accuracy."""

    name = "transformers"
    statement = "from transformers import Trainer, TrainingArguments"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        warnings.filterwarnings("ignore", module="transformers")
        self.trainer = self._trainer(_WithLoss(model, metric=job.metric))

    def _trainer(self, model: nn.Module, **options: Any) -> _Trainer:
        job, optimizer = self.job, sgd(model)
        settings: dict[str, Any] = {
            "num_train_epochs": job.epochs,
            "save_strategy": "no",
            "logging_strategy": "no",
        }
        arguments = TrainingArguments(
            output_dir=str(job.folder / "transformers"),
            per_device_train_batch_size=job.batch_size,
            per_device_eval_batch_size=job.batch_size,
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            disable_tqdm=not job.bar,
            dataloader_pin_memory=False,
            **(settings | options),
        )
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        callbacks = [TrainerCallback() for _ in range(job.callbacks)]
        return _Trainer(
            model,
            arguments,
            compute_metrics=_accuracy,
            optimizers=(optimizer, constant),
            callbacks=list(callbacks),
        )

    def fit(self, feed: Feed) -> None:
        self.trainer.feed = _Named(feed)
        self.trainer.train()

    def train(self, data: Data) -> None:
        self.fit(loader_of(data, self.job, shuffle=True))

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        found = self.trainer.evaluate(_Named(loader_of(data, self.job)))  # type: ignore[arg-type]
        return found["eval_loss"], found["eval_accuracy"]

    def predict(self, inputs: Tensor) -> Tensor:
        data = inputs, torch.zeros(len(inputs), dtype=torch.int64)
        batches: Any = _Named(loader_of(data, self.job))
        return torch.from_numpy(self.trainer.predict(batches).predictions)

    def save(self, folder: Path) -> None:  # noqa: ARG002 - it has a folder of its own
        """Save as its loop does after a step: there is no public function that does."""
        self.trainer._save_checkpoint(self.trainer.model, None)  # type: ignore[arg-type]  # noqa: SLF001

    def restore(self, folder: Path) -> None:  # noqa: ARG002
        (found,) = (self.job.folder / "transformers").glob("checkpoint-*")
        self.trainer._load_from_checkpoint(str(found))  # noqa: SLF001
        self.trainer._load_optimizer_and_scheduler(str(found))  # noqa: SLF001
