"""The loop of a training.

with session:                                   # random states and modes, put back at the end
    for epoch in epochs left:
        reseed(seed, epoch)
        for batch in train: step(batch)
        evaluate(val)
        history.append(one row)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from finetunelib._preserve import derive_seed, random_state_preserved, reseed
from finetunelib._progress import Progress
from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.training._checks import check_batch, first_of
from finetunelib.training._device import length_of, to_device
from finetunelib.training._evaluation import Measurement, evaluate
from finetunelib.training._history import History
from finetunelib.training._metrics import Metric
from finetunelib.training._session import session
from finetunelib.training._state import TrainState
from finetunelib.training._step import Step
from finetunelib.training._task import SupervisedTask


@dataclass(frozen=True, slots=True)
class Loop:
    """One training: what it works on and what it reports to.

    Attributes:
        last_epoch: The epoch after which to stop.
        last_step: The step after which to stop, also inside an epoch.
    """

    model: nn.Module
    task: SupervisedTask
    step: Step
    train: Batches
    val: Batches | None
    metrics: dict[str, Metric]
    device: torch.device
    seed: int
    state: TrainState
    history: History
    progress: Progress
    last_epoch: float
    last_step: float

    def run(self) -> None:
        """Train until a limit is reached."""
        with session(self.model):
            self._check_validation_data()
            first = True
            while self.state.epoch < self.last_epoch and self.state.step < self.last_step:
                self._run_epoch(first)
                first = False

    def _run_epoch(self, first: bool) -> None:
        started = time.perf_counter()
        reseed(derive_seed(self.seed, self.state.epoch))
        self.progress.start(self._title(), self.train.steps)
        try:
            row, samples = self._train_epoch(first)
            trained = time.perf_counter()
            if self.val is not None:
                row |= evaluate(
                    self.model, self.task, self.val.in_order(), self.metrics, self.device, "val_"
                )
        except BaseException:
            self.progress.abort()
            raise
        self.state.epoch += 1
        row |= {
            "lr": float(self.step.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - started,
            "samples_per_second": samples / (trained - started),
        }
        self.history.append({"epoch": self.state.epoch, "step": self.state.step} | row)
        self.progress.finish(self._line(row))

    def _train_epoch(self, first: bool) -> tuple[dict[str, float], int]:
        """Return the measurements over one epoch of steps, and how many samples it saw."""
        measurement = Measurement(self.metrics)
        samples = 0
        batches = self.train.epoch(self.state.epoch)
        for batch in self._checked(batches) if first else batches:
            measurement.update(self.step(to_device(batch, self.device)))
            samples += length_of(batch)
            self.progress.advance()
            if self.state.step >= self.last_step:
                break
        return measurement.compute("train_"), samples

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, the first one checked before it is used."""
        first = first_of(batches, "train")
        on_device = to_device(first, self.device)
        check_batch(self.model, self.task, on_device, self.train.all_targets(), "train")
        return chain([first], batches)

    def _check_validation_data(self) -> None:
        """Find mistakes in the validation data now instead of after an epoch of training."""
        if self.val is None or not self.val.replayable:
            return
        with random_state_preserved():
            first = to_device(first_of(self.val.in_order(), "val"), self.device)
        check_batch(self.model, self.task, first, self.val.all_targets(), "val")

    def _title(self) -> str:
        epoch = self.state.epoch + 1
        total = f"/{self.last_epoch:.0f}" if self.last_epoch != float("inf") else ""
        return f"epoch {epoch}{total}"

    def _line(self, row: dict[str, float]) -> str:
        measured = [
            f"{name} {value:.4f}"
            for name, value in row.items()
            if name.startswith(("train", "val"))
        ]
        epoch = self.state.epoch
        total = f"/{self.last_epoch:.0f}" if self.last_epoch != float("inf") else ""
        return f"epoch {epoch}{total}: {', '.join(measured)}, {row['seconds']:.1f} s"
