"""The loop of a training.

with session:                                   # random states and modes, put back at the end
    for epoch in epochs left:
        reseed(seed, epoch); callbacks
        for window in train: step(window); callbacks; requests are carried out
        evaluate(val)
        history.append(one row); callbacks
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from finetunelib._preserve import derive_seed, random_state_preserved, reseed
from finetunelib._progress import Progress
from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.errors import CallbackError
from finetunelib.training._callback import Callbacks
from finetunelib.training._checks import check_batch, first_of
from finetunelib.training._context import TrainContext
from finetunelib.training._device import length_of, to_device
from finetunelib.training._evaluation import Evaluation, Measurement
from finetunelib.training._session import gradients_dropped, session
from finetunelib.training._step import Step


@dataclass(frozen=True, slots=True)
class Loop:
    """One training: the parts that do the work, and what they report to.

    Attributes:
        window_size: The micro-batches of one step.
        last_epoch: The epoch after which to stop.
        last_step: The step after which to stop, also inside an epoch.
    """

    step: Step
    evaluation: Evaluation
    train: Batches
    val: Batches | None
    measured: Measurement
    validated: Measurement
    context: TrainContext
    callbacks: Callbacks
    progress: Progress
    seed: int
    window_size: int
    last_epoch: float
    last_step: float

    def run(self) -> None:
        """Train until a limit is reached or a callback asks to stop."""
        context = self.context
        with session(context.model):
            self._check_validation_data()
            started = time.perf_counter()
            batches: Iterator[Batch] | None = self._begin_epoch(check=True)
            with self._ended_by(self.callbacks.on_fit_end), gradients_dropped(context.model):
                with random_state_preserved():
                    self.callbacks.on_fit_start(context)
                while self._goes_on():
                    self._run_epoch(batches, started)
                    batches, started = None, time.perf_counter()

    @contextlib.contextmanager
    def _ended_by(self, hook: Callable[[TrainContext], None]) -> Iterator[None]:
        """Call a hook at the end of a block, without hiding an error that ends it."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(CallbackError):
                hook(self.context)
            raise
        hook(self.context)

    def _begin_epoch(self, *, check: bool = False) -> Iterator[Batch]:
        """Return an epoch's batches, of which there is at least one."""
        epoch = self.context.state.epoch
        reseed(derive_seed(self.seed, epoch))
        batches = self.train.epoch(epoch)
        first = first_of(batches, "train")
        if check:
            self._check(first, self.train, "train")
        return chain([first], batches)

    def _goes_on(self) -> bool:
        state = self.context.state
        within = state.epoch < self.last_epoch and state.step < self.last_step
        return within and self.context.stop_reason is None

    def _run_epoch(self, batches: Iterator[Batch] | None, started: float) -> None:
        context, state = self.context, self.context.state
        self.callbacks.on_epoch_start(context)
        batches = self._begin_epoch() if batches is None else batches
        self.progress.start(f"epoch {state.epoch + 1}{self._total}", self._steps)
        try:
            samples = self._train_epoch(batches)
            trained = time.perf_counter()
            row = self.measured.compute() | self._validate()
        except BaseException:
            self.progress.abort()
            raise
        state.epoch += 1
        row["lr"] = self.step.schedule.lr
        row["seconds"] = time.perf_counter() - started
        row["samples_per_second"] = samples / (trained - started)
        context.history.append({"epoch": state.epoch, "step": state.step} | row)
        self.step.schedule.after_epoch(row)
        try:
            self.callbacks.on_epoch_end(context)
        finally:
            self.progress.finish(self._line(row))

    def _train_epoch(self, batches: Iterator[Batch]) -> int:
        """Take the steps of one epoch, and return how many samples they saw."""
        context, state = self.context, self.context.state
        self.measured.reset()
        samples = 0
        for window in self._windows(batches):
            self.step(window, self.measured.update)
            samples += sum(map(length_of, window))
            self.progress.advance()
            self.callbacks.on_step_end(context)
            if state.step >= self.last_step or context.stop_reason is not None:
                break
        return samples

    def _windows(self, batches: Iterator[Batch]) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one update at a time, on the device."""
        device = self.evaluation.device
        while window := [to_device(batch, device) for batch in islice(batches, self.window_size)]:
            yield window

    def _validate(self) -> dict[str, float]:
        if self.val is None:
            return {}
        with self._ended_by(self.callbacks.on_validation_end):
            self.callbacks.on_validation_start(self.context)
            return self.evaluation.evaluate(self.val.in_order(), self.validated, "val")

    def _check_validation_data(self) -> None:
        """Find mistakes in the validation data now instead of after an epoch of training."""
        if self.val is None or not self.val.replayable:
            return
        with random_state_preserved():
            first = first_of(self.val.in_order(), "val")
        self._check(first, self.val, "val")

    def _check(self, first: Batch, batches: Batches, name: str) -> None:
        on_device = to_device(first, self.evaluation.device)
        targets = batches.all_targets()
        check_batch(self.context.model, self.step.task, on_device, targets, name)

    @property
    def _steps(self) -> int | None:
        batches = self.train.steps
        return None if batches is None else math.ceil(batches / self.window_size)

    @property
    def _total(self) -> str:
        return "" if math.isinf(self.last_epoch) else f"/{self.last_epoch:.0f}"

    def _line(self, row: dict[str, float]) -> str:
        names = (*self.measured.names, *self.validated.names)
        values = [f"{name} {row[name]:.4f}" for name in names if name in row]
        line = f"epoch {self.context.state.epoch}{self._total}: {', '.join(values)}"
        reason = self.context.stop_reason
        return f"{line}, {row['seconds']:.1f} s" + (f"; stopped: {reason}" if reason else "")
