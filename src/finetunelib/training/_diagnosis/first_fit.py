"""Warnings about what keeps a model from learning, in the first `fit` of a Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.data._named import NamedBatches
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._diagnosis.observer import Observer
from finetunelib.training._diagnosis.warn import Warnings
from finetunelib.training._optimization.schedule import StepSchedule
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.task import StepOutput, Task

Measure: TypeAlias = Callable[[StepOutput], None]


class Moment(Protocol):
    """A place in the loop."""

    def call_once(self, hook: Callable[[TrainContext], None]) -> None:
        """Call a hook the next time."""
        ...


class FirstFit(Protocol):
    """What is examined in a `fit`.

    Attributes:
        update: Takes the output of each micro-batch.
    """

    update: Measure

    def checking(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context in which the first batch is checked."""
        ...

    def first_batch(self, batch: Batch) -> None:
        """Examine the first batch, which was checked."""
        ...

    def join(self, fit_start: Moment, step_end: Moment, fit_done: Moment) -> None:
        """Add hooks to those of the `fit`."""
        ...


class LaterFit:
    """Examines nothing: an earlier `fit` of the same Trainer did.

    Args:
        update: Takes the output of each micro-batch.
    """

    def __init__(self, update: Measure) -> None:
        self.update = update

    def checking(self, batch: Batch) -> AbstractContextManager[None]:  # noqa: ARG002 - the protocol's form
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def first_batch(self, batch: Batch) -> None: ...

    def join(self, fit_start: Moment, step_end: Moment, fit_done: Moment) -> None: ...


class ExaminedFit:
    """Examines the first batch, the first step and the end of a `fit`. Later steps cost nothing.

    Args:
        observer: Reports findings.
        report: What the observer reports to.
        run: The run.
        update: Takes the output of each micro-batch.
    """

    def __init__(
        self, observer: Observer, report: Warnings, run: TrainingRun, update: Measure
    ) -> None:
        self._observer = observer
        self._report = report
        self._run = run
        self._update = update
        self._started_at = run.record.state.step
        #: Replaced after the first micro-batch.
        self.update: Measure = self._first_update

    def checking(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context in which the first batch is checked."""
        return self._observer.checking(batch)

    def first_batch(self, batch: Batch) -> None:
        """Examine the first batch, which was checked."""
        self._observer.first_batch(batch)

    def join(self, fit_start: Moment, step_end: Moment, fit_done: Moment) -> None:
        """Examine the first step and the end of the `fit` too."""
        fit_start.call_once(self._before_step)
        step_end.call_once(self._after_first_step)
        fit_done.call_once(self._after_fit)

    def _before_step(self, context: TrainContext) -> None:
        constant = not isinstance(self._run.schedule, StepSchedule)
        self._observer.before_step(context.optimizer, constant_lr=constant)

    def _first_update(self, output: StepOutput) -> None:
        self.update = self._update
        self._observer.outputs(output, untrained=self._started_at == 0)
        self._update(output)

    def _after_first_step(self, _: TrainContext) -> None:
        self._observer.after_first_step()

    def _after_fit(self, context: TrainContext) -> None:
        self._report.done = True
        self._observer.after_steps(context.state.step - self._started_at)


def choose_first_fit(
    report: Warnings,
    run: TrainingRun,
    task: Task,
    train: Batches,
    val: Batches | NamedBatches | None,
    update: Measure,
) -> FirstFit:
    """Return what is examined in a `fit`.

    Args:
        report: Warns about findings.
        run: The run.
        task: The task.
        train: The training data.
        val: The validation data, if any, or several sets of it.
        update: Takes the output of each micro-batch.
    """
    if report.done:
        return LaterFit(update)
    observer = Observer(TrainedModules(run.model, task), train, val, report)
    return ExaminedFit(observer, report, run, update)
