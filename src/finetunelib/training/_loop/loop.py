"""The loop of a training.

with session:                                   # random states and modes, put back at the end
    for epoch in epochs left:
        reseed(seed, epoch); callbacks          # or: random states of the checkpoint, set again
        for window in train: step(window); callbacks; requests are carried out
        evaluate(val)
        history.append(one row); callbacks; requests are carried out
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from finetunelib._preserve import (
    derive_seed,
    random_state_preserved,
    random_states,
    reseed,
    set_random_states,
)
from finetunelib._progress import Progress
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, length_of, to_device
from finetunelib.data._batches import Batches
from finetunelib.errors import CallbackError, PathNotWritableError, TrainingInterrupted
from finetunelib.finetuning._freezing.certificate import FreezeAudit
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._callbacks.hooks import Callbacks
from finetunelib.training._checkpointing.run import check_same_reading
from finetunelib.training._loop.session import certified, gradients_dropped, session
from finetunelib.training._loop.signals import Signals
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._optimization.step import Step
from finetunelib.training._tasks.first_batch import check_batch


class _ValidationInterrupted(BaseException):
    """A signal was received in validation."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One training: the parts that do the work, and what they report to.

    Attributes:
        begun: Is called when the training has begun, and nothing of `inside` is needed again.
        reading: What decides which samples a batch inside an epoch holds, and what is measured.
        save: Writes a checkpoint into a folder, with the state of the epoch in progress.
        inside: The state of an epoch in progress to go on from, where there is one.
        window_size: The micro-batches of one step.
        last_epoch: The epoch after which to stop.
        last_step: The step after which to stop, also inside an epoch.
    """

    step: Step
    evaluation: Evaluator
    train: Batches
    val: Batches | None
    measured: MetricAccumulator
    validated: MetricAccumulator
    context: TrainContext
    freeze_audit: FreezeAudit
    callbacks: Callbacks
    progress: Progress
    begun: Callable[[], None]
    reading: Mapping[str, Any]
    save: Callable[[Path, Mapping[str, Any]], Path]
    inside: Mapping[str, Any] | None
    seed: int
    window_size: int
    last_epoch: float
    last_step: float
    signals: Signals = field(default_factory=Signals)

    def run(self) -> None:
        """Train until a limit is reached or a callback asks to stop."""
        context = self.context
        with (
            self.signals.noticed(),
            session(context.model),
            certified(context, self.freeze_audit),
        ):
            self._check_validation_data()
            started = time.perf_counter()
            batches = self._begin_fit()
            with self._ended_by(self.callbacks.on_fit_end), gradients_dropped(context.model):
                with random_state_preserved():
                    self.callbacks.on_fit_start(context)
                self.begun()
                try:
                    while self._goes_on():
                        self._run_epoch(batches, started)
                        batches, started = None, time.perf_counter()
                finally:
                    context.state.batch = 0
            self._write_checkpoints()
            self._end_if_interrupted(running=False)

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

    def _begin_fit(self) -> Iterator[Batch] | None:
        """Return the batches to begin with: a new epoch's, or what is left of one in progress."""
        state, inside = self.context.state, self.inside
        if inside is None:
            state.batch = 0
        elif inside:
            if state.batch:
                check_same_reading(inside["reading"], self.reading)
            # In this order: where both have one generator, it is the training's.
            if self.val is not None:
                self.val.load_state_dict(inside["val"])
            self.train.load_state_dict(inside["train"])
        if not self._goes_on():
            return None
        if not inside or state.batch == 0:
            batches = self._begin_epoch()
            first = next(batches)
            self._check(first, self.train, "train")
            return chain([first], batches)
        rest = self._read(skip=state.batch)
        self.measured.load_state_dict(inside["measured"])
        # Not before: what was used before the checkpoint is read again, which may draw numbers.
        set_random_states(inside["random"])
        return rest

    def _begin_epoch(self) -> Iterator[Batch]:
        """Return an epoch's batches, of which there is at least one."""
        self.measured.reset()
        batches = self._read()
        return chain([first_of(batches, "train")], batches)

    def _read(self, skip: int = 0) -> Iterator[Batch]:
        """Start to read the epoch at hand, with the random states that belong to it."""
        epoch = self.context.state.epoch
        reseed(derive_seed(self.seed, epoch))
        return self.train.epoch(epoch, skip=skip)

    def _goes_on(self) -> bool:
        state = self.context.state
        within = state.epoch < self.last_epoch and state.step < self.last_step
        return (within or state.batch > 0) and self.context.stop_reason is None

    def _run_epoch(self, batches: Iterator[Batch] | None, started: float) -> None:
        context, state = self.context, self.context.state
        if state.batch == 0:
            # With numbers of its own: in a fit's first epoch, the data has begun to draw already.
            with random_state_preserved():
                reseed(derive_seed(self.seed, state.epoch, 1))
                self.callbacks.on_epoch_start(context)
        batches = self._begin_epoch() if batches is None else batches
        self.progress.start(f"epoch {state.epoch + 1}{self._total}", self._steps)
        try:
            samples = self._train_epoch(batches)
            self._end_if_interrupted()
            trained = time.perf_counter()
            row = self.measured.compute() | self._validate()
        except BaseException:
            self.progress.abort()
            raise
        state.epoch, state.batch = state.epoch + 1, 0
        row["lr"] = self.step.schedule.lr
        row["seconds"] = time.perf_counter() - started
        row["samples_per_second"] = samples / (trained - started)
        context.history.append({"epoch": state.epoch, "step": state.step} | row)
        self.step.schedule.after_epoch(row)
        try:
            self.callbacks.on_epoch_end(context)
            self._write_checkpoints()
        finally:
            self.progress.finish(self._line(row))
        self._end_if_interrupted()

    def _train_epoch(self, batches: Iterator[Batch]) -> int:
        """Take the steps of one epoch, and return how many samples they saw."""
        context, state = self.context, self.context.state
        samples = 0
        # A checkpoint of the last step that is allowed lacks only the end of the epoch.
        done = state.batch > 0 and state.step >= self.last_step
        for window in () if done else self._windows(batches):
            self.step(window, self.measured.update)
            state.batch += len(window)
            for micro_batch in window:
                samples += length_of(micro_batch)
            self.progress.advance()
            self.callbacks.on_step_end(context)
            self._write_checkpoints()
            self._end_if_interrupted()
            if state.step >= self.last_step or context.stop_reason is not None:
                break
        return samples

    def _windows(self, batches: Iterator[Batch]) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one update at a time, on the device."""
        device = self.evaluation.device
        on_device = (to_device(batch, device) for batch in batches)
        try:
            while window := list(islice(on_device, self.window_size)):
                yield window
        except Exception:
            # A terminal's Ctrl-C ends the data's worker processes too.
            if self.signals.received is None:
                raise

    def place(self) -> dict[str, Any]:
        """Return what of this training is in no part's own state: where it is in its data."""
        inside_epoch = self.context.state.batch > 0
        return {
            "random": random_states(),
            "reading": self.reading,
            "measured": self.measured.state_dict() if inside_epoch else {},
            "train": self.train.state_dict(inside_epoch=inside_epoch),
            "val": {} if self.val is None else self.val.state_dict(inside_epoch=False),
        }

    def _write_checkpoints(self) -> None:
        """Carry out the requests for checkpoints, where there are any."""
        context = self.context
        if not context.requested_checkpoints:
            return
        if context.state.batch:
            context.check_resumable()
        place = self.place()
        requests = dict(context.requested_checkpoints)
        context.requested_checkpoints.clear()
        for path, on_error in requests.items():
            try:
                context.last_checkpoint = self.save(path, place)
            except PathNotWritableError as error:
                if on_error == "raise":
                    raise
                warnings.warn(f"A checkpoint is missing: {error} Training goes on.", stacklevel=2)
                continue
            with random_state_preserved():
                self.callbacks.on_checkpoint(context)

    def _validate(self) -> dict[str, float]:
        if self.val is None:
            return {}
        before = random_states(), self.val.state_dict(inside_epoch=False)
        try:
            with self._ended_by(self.callbacks.on_validation_end):
                self.callbacks.on_validation_start(self.context)
                batches = self._until_interrupted(self.val.in_order())
                return self.evaluation.evaluate(batches, self.validated, "val")
        except _ValidationInterrupted:
            # Who resumes validates anew, with the random states of now.
            set_random_states(before[0])
            self.val.load_state_dict(before[1])
            self._end_if_interrupted()
            raise

    def _until_interrupted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches until a signal is received, and raise then."""
        for batch in batches:
            if self.signals.received is not None:
                raise _ValidationInterrupted
            yield batch

    def _end_if_interrupted(self, *, running: bool = True) -> None:
        """End the training where a signal asked for it, with a last checkpoint if one is wanted.

        Args:
            running: Whether callbacks still see the training, or have seen its end.

        Raises:
            TrainingInterrupted: A signal was received.
        """
        context, number = self.context, self.signals.received
        if number is None:
            return
        if running:
            self.callbacks.on_interrupt(context)
            self._write_checkpoints()
        where = (
            f" A checkpoint is in `{context.last_checkpoint}`."
            if context.last_checkpoint is not None
            else ""
        )
        raise TrainingInterrupted(
            f"The training was ended by {signal.Signals(number).name} after step "
            f"{context.state.step}.{where}",
            history=context.history,
            signal_number=number,
        )

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
