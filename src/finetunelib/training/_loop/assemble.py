"""Assembles the loop of one `fit` from its parts."""

from __future__ import annotations

import math
from collections.abc import Callable

from finetunelib._progress import choose_progress
from finetunelib.training._callbacks.context import Origin, TrainContext
from finetunelib.training._callbacks.hooks import Callbacks
from finetunelib.training._callbacks.measured import Comparison
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._loop.feed import EpochFeed, FitData
from finetunelib.training._loop.first_batch import FirstBatchCheck
from finetunelib.training._loop.interruption import Interruption, Signals
from finetunelib.training._loop.limits import Limits
from finetunelib.training._loop.loop import FitLoop
from finetunelib.training._loop.measured import forget_measured
from finetunelib.training._loop.moments import (
    Moment,
    Moments,
    with_random_state_preserved,
    with_seed_of_epoch,
)
from finetunelib.training._loop.session import Session, clear_gradients
from finetunelib.training._loop.validation import DataValidation, NoValidation, Validation
from finetunelib.training._loop.writer import CheckpointWriter
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._measuring.direction import directions
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._measuring.first_batch import copied
from finetunelib.training._optimization.coverage import parameters_of
from finetunelib.training._optimization.guard import Guard
from finetunelib.training._optimization.step import LastStep, Step
from finetunelib.training._options import TrainerOptions
from finetunelib.training._reporting.clock import Clock
from finetunelib.training._reporting.readings import LoopReadings
from finetunelib.training._reporting.report import TIMING_COLUMNS, EpochReport
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._updates.update import choose_update


def assemble(
    options: TrainerOptions,
    run: TrainingRun,
    evaluator: Evaluator,
    data: FitData,
    limits: Limits,
) -> FitLoop:
    """Return the loop of one `fit`.

    Args:
        options: The options of the Trainer.
        run: The run to train.
        evaluator: The model with its task, as `evaluate` uses it.
        data: The data to train on and to validate with.
        limits: When to stop.
    """
    signals, hooks = Signals(), Callbacks(run.callbacks)
    check = FirstBatchCheck(evaluator, options.accumulation_steps)
    # A copy, since a callback may call `evaluate` in the middle of an epoch.
    train_metrics = MetricAccumulator(copied(options.metrics), evaluator.task, "train_")
    feed = EpochFeed(
        data,
        train_metrics,
        check,
        evaluator.device,
        options.seed,
        run.record.position if run.record.resumed_from else None,
        signals,
    )
    guard = Guard(
        TrainedModules(evaluator.model, evaluator.task),
        run.precision,
        run.record.state,
        evaluator.device,
    )
    writer = CheckpointWriter(
        run, feed.position, guard.read, with_random_state_preserved(hooks.on_checkpoint)
    )
    before_stop = (writer.finish, hooks.on_interrupt, writer.write_requested, writer.finish)
    interruption = Interruption(signals, Moment(*before_stop))
    validation = _validation(options, evaluator, data, check, hooks, interruption)
    compare = _comparison(options, run, data)
    clock, last = Clock(), LastStep()
    readings = LoopReadings(
        last, train_metrics, run.schedule, clock, counts_tokens=evaluator.task.counts_tokens
    )
    return FitLoop(
        context=_context(run, data, train_metrics, compare(()), readings),
        compare=compare,
        session=Session(signals, run.record.freeze_audit),
        limits=limits,
        feed=feed,
        step=_step(options, run, evaluator, guard, last),
        schedule=run.schedule,
        train_metrics=train_metrics,
        validation=validation,
        moments=_moments(options, run, feed, hooks, writer, guard, interruption),
        report=_report(options, data, limits, clock),
    )


def _moments(
    options: TrainerOptions,
    run: TrainingRun,
    feed: EpochFeed,
    hooks: Callbacks,
    writer: CheckpointWriter,
    guard: Guard,
    interruption: Interruption,
) -> Moments:
    def keep_position(context: TrainContext) -> None:
        run.record.position = feed.position(context.state)

    def finish(context: TrainContext) -> None:
        try:
            writer.finish(context)
        finally:
            hooks.on_fit_end(context)

    after_hooks = (writer.write_requested, interruption.stop_if_signalled)
    return Moments(
        fit_start=Moment(
            with_random_state_preserved(hooks.on_fit_start), lambda _: run.leave_position()
        ),
        epoch_start=Moment(with_seed_of_epoch(hooks.on_epoch_start, options.seed)),
        step_end=Moment(writer.poll, hooks.on_step_end, *after_hooks),
        training_end=Moment(lambda _: guard.read(), interruption.stop_if_signalled),
        # Not `poll`: which epoch is the best depends on whether its checkpoint was written.
        epoch_end=Moment(writer.finish, hooks.on_epoch_end, *after_hooks, forget_measured),
        fit_end=Moment(clear_gradients, finish),
        fit_done=Moment(
            writer.write_requested,
            writer.finish,
            keep_position,
            interruption.raise_if_signalled,
        ),
    )


def _comparison(
    options: TrainerOptions, run: TrainingRun, data: FitData
) -> Callable[[tuple[str, ...]], Comparison]:
    """Return a function of the names of the measures, which metrics know from the first batch."""
    before, run.record.data = run.record.data, data.identity
    same = {n for n, now in data.identity.items() if n in before and now.is_same(before[n])}

    def compare(names: tuple[str, ...]) -> Comparison:
        columns = (*names, *TIMING_COLUMNS)
        return Comparison(columns, directions(options.metrics, names), frozenset(same))

    return compare


def _context(
    run: TrainingRun,
    data: FitData,
    train_metrics: MetricAccumulator,
    comparison: Comparison,
    readings: LoopReadings,
) -> TrainContext:
    def why_not_resumable(inside_epoch: bool) -> str | None:
        return (
            data.train.why_not_resumable(inside_epoch=inside_epoch)
            or (train_metrics.why_not_resumable if inside_epoch else None)
            or run.why_not_savable
        )

    return TrainContext(
        run.model,
        run.optimizer,
        run.record.state,
        run.record.history,
        why_not_resumable=why_not_resumable,
        comparison=comparison,
        origin=Origin(run.record.resumed_from, run.record.run_id),
        readings=readings,
    )


def _step(
    options: TrainerOptions, run: TrainingRun, evaluator: Evaluator, guard: Guard, last: LastStep
) -> Step:
    return Step(
        model=evaluator.runner,
        task=evaluator.task,
        update=choose_update(run.optimizer),
        precision=run.precision,
        guard=guard,
        clip=options.clipping,
        schedule=run.schedule,
        state=run.record.state,
        parameters=parameters_of(run.optimizer),
        last=last,
    )


def _validation(
    options: TrainerOptions,
    evaluator: Evaluator,
    data: FitData,
    check: FirstBatchCheck,
    hooks: Callbacks,
    interruption: Interruption,
) -> Validation:
    if data.val is None:
        return NoValidation()
    metrics = MetricAccumulator(options.metrics, evaluator.task, "val_")
    return DataValidation(evaluator, data.val, metrics, check, hooks, interruption)


def _report(options: TrainerOptions, data: FitData, limits: Limits, clock: Clock) -> EpochReport:
    batches = data.train.steps
    return EpochReport(
        choose_progress(options.progress),
        clock,
        steps=None if batches is None else math.ceil(batches / options.accumulation_steps),
        last_epoch=limits.last_epoch,
    )
