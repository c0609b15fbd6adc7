"""The training loop: the order in which everything happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._callbacks.measured import Comparison
from finetunelib.training._loop.feed import EpochFeed, place_of
from finetunelib.training._loop.limits import Limits
from finetunelib.training._loop.moments import Moments
from finetunelib.training._loop.rows import Rows
from finetunelib.training._loop.session import Session
from finetunelib.training._loop.validation import Validation
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._optimization.schedule import Schedule
from finetunelib.training._optimization.step import Step
from finetunelib.training._reporting.report import Report


@dataclass(frozen=True, slots=True)
class FitLoop:
    """The loop of one `fit`. Every feature is one of its parts, or a hook in `moments`.

    Attributes:
        context: The run as callbacks see it.
        compare: Returns how the measures with these names can be compared.
        session: Signal handlers, modes, random states, and the audit of frozen tensors.
        limits: When the run ends.
        feed: The training data.
        step: One update of the weights.
        schedule: The learning-rate schedule.
        train_metrics: The loss and metrics, accumulated while training.
        validation: What is measured on validation data.
        rows: When a row of the history is measured.
        moments: What else happens, in order.
        report: The progress bar and the timings.
    """

    context: TrainContext
    compare: Callable[[tuple[str, ...]], Comparison]
    session: Session
    limits: Limits
    feed: EpochFeed
    step: Step
    schedule: Schedule
    train_metrics: MetricAccumulator
    validation: Validation
    rows: Rows
    moments: Moments
    report: Report

    def run(self) -> None:
        """Train until a limit is reached, a callback requests a stop, or a signal arrives."""
        context, moments = self.context, self.moments
        self.feed.check.first_fit.join(moments.fit_start, moments.step_end, moments.fit_done)
        with self.session.entered(context):
            self.validation.check_data()
            self.report.start_clock()
            self.train_metrics.reset()
            self.feed.restore()
            if self.limits.allow_epoch(context):  # A finished run reads no data.
                self.feed.start(context.state)
            context.comparison = self.compare((*self.train_metrics.names, *self.validation.names))
            self.schedule.check_monitor(context.measures, context.comparison.directions)
            with moments.during_fit(context), self.report.ended():
                while self.limits.allow_epoch(context):
                    self._run_epoch()
                self.rows.end_training()
            moments.fit_done(context)

    def _run_epoch(self) -> None:
        context, state = self.context, self.context.state
        first_fit = self.feed.check.first_fit
        self.rows.start_epoch()
        if state.batch == 0:
            self.moments.epoch_start(context)
        self.report.start_epoch(state)
        windows = self.feed.windows(state)  # A new epoch, or the rest of one.
        for window in self.limits.windows(windows, context):
            try:
                self.step(window, first_fit.update)
            except Exception as error:  # It comes from the user's model, loss or metrics.
                error.add_note(place_of(state, window))
                raise
            state.batch += len(window)
            self.report.advance(window)
            self.moments.step_end(context)
            self.rows.after_step()
        self.rows.end_epoch()
