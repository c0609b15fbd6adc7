"""Assembles the loop of one `fit` from its parts."""

from __future__ import annotations

from collections.abc import Callable

from finetunelib._progress import choose_progress
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._callbacks.hooks import Callbacks
from finetunelib.training._callbacks.measured import Comparison
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._loop.cached import Work, choose_work
from finetunelib.training._loop.feed import EpochFeed, FitData
from finetunelib.training._loop.first_batch import FirstBatchCheck, build_check
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
from finetunelib.training._loop.rows import EpochRows, Rows, RowWriter, StepRows
from finetunelib.training._loop.session import Session, gradients_cleared
from finetunelib.training._loop.validation import (
    DataValidation,
    NoValidation,
    RandomnessOfStep,
    RandomnessOfTraining,
    Validation,
    validation_sets,
)
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
from finetunelib.training._reporting.interval import EpochInterval, StepInterval
from finetunelib.training._reporting.readings import LoopReadings
from finetunelib.training._reporting.report import TIMING_COLUMNS, EpochReport, Report, StepReport
from finetunelib.training._reporting.running import RunningValues
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
    signals, hooks, clock, last = Signals(), Callbacks(run.callbacks), Clock(), LastStep()
    # A copy, since a callback may call `evaluate` in the middle of an epoch.
    train_metrics = MetricAccumulator(copied(options.metrics), evaluator.task, "train_")
    check = build_check(options, run, evaluator, data.train, data.val, hooks, train_metrics)
    work = choose_work(options, run.record, evaluator, data, limits)
    data = work.data
    interval = _interval(run, data)
    feed = EpochFeed(
        data,
        train_metrics,
        check,
        evaluator.device,
        options.seed,
        run.record.position if run.record.resumed_from else None,
        signals,
        interval,
    )
    guard = Guard(
        TrainedModules(evaluator.model, evaluator.task),
        run.precision,
        run.record.state,
        evaluator.device,
        work.replayed,
    )
    writer = CheckpointWriter(
        run, feed.position, guard.read, with_random_state_preserved(hooks.on_checkpoint)
    )
    before_stop = (writer.finish, hooks.on_interrupt, writer.write_requested, writer.finish)
    interruption = Interruption(signals, Moment(*before_stop))
    validation = _validation(options, work.measured, data, check, hooks, interruption, interval)
    compare = _comparison(options, run, data)
    readings = LoopReadings(
        last, train_metrics, run.schedule, clock, counts_tokens=evaluator.task.counts_tokens
    )
    step = _step(options, run, work.trained, guard, last)
    moments = _moments(options, run, feed, hooks, writer, step, interruption, interval, work)
    context = _context(run, data, train_metrics, compare(()), readings)
    report = _report(options, run, data, limits, clock, interval, train_metrics)
    row_writer = RowWriter(context, train_metrics, validation, run.schedule, moments, report)
    return FitLoop(
        context=context,
        compare=compare,
        session=Session(signals, run.record.freeze_audit),
        limits=limits,
        feed=feed,
        step=step,
        schedule=run.schedule,
        train_metrics=train_metrics,
        validation=validation,
        rows=_rows(row_writer, interval),
        moments=moments,
        report=report,
    )


def _interval(run: TrainingRun, data: FitData) -> EpochInterval | StepInterval:
    record, n = run.record, data.signature.validate_every_n_steps
    if n is None:
        return EpochInterval()
    record.rows_follow_steps = True
    position = record.position if record.resumed_from else None
    inside = position is not None and position.is_inside
    # The interval of a checkpoint began at the last row; that of a new `fit` begins now.
    return StepInterval(n, start=0 if inside else record.state.step)


def _rows(writer: RowWriter, interval: EpochInterval | StepInterval) -> Rows:
    if isinstance(interval, StepInterval):
        return StepRows(writer, interval)
    return EpochRows(writer)


def _moments(
    options: TrainerOptions,
    run: TrainingRun,
    feed: EpochFeed,
    hooks: Callbacks,
    writer: CheckpointWriter,
    step: Step,
    interruption: Interruption,
    interval: EpochInterval | StepInterval,
    work: Work,
) -> Moments:
    def keep_position(context: TrainContext) -> None:
        run.record.position = feed.position(context)

    def finish(context: TrainContext) -> None:
        try:
            writer.finish(context)
        finally:
            hooks.on_fit_end(context)

    by_steps = isinstance(interval, StepInterval)
    on_epoch_end = hooks.on_epoch_end if by_steps else hooks.on_row_of_epoch
    after_hooks = (writer.write_requested, interruption.stop_if_signalled)
    # Only callbacks request checkpoints, and look at the steps of a pass.
    hooks_of_step = (
        (writer.poll, hooks.on_step_end, work.after_step, writer.write_requested)
        if run.callbacks
        else ()
    )
    return Moments(
        fit_start=Moment(
            with_random_state_preserved(hooks.on_fit_start), lambda _: run.leave_position()
        ),
        epoch_start=Moment(
            with_seed_of_epoch(hooks.on_epoch_start, options.seed), work.start_epoch
        ),
        step_end=Moment(*hooks_of_step, interruption.stop_if_signalled),
        training_end=Moment(lambda _: writer.check(), interruption.stop_if_signalled),
        # Not `poll`: which row is the best depends on whether its checkpoint was written.
        row=Moment(
            writer.finish, with_random_state_preserved(hooks.on_row), *after_hooks, forget_measured
        ),
        epoch_end=Moment(
            lambda _: run.schedule.after_epoch(),
            writer.finish,
            on_epoch_end,
            *after_hooks,
            forget_measured,
        ),
        fit_end=Moment(gradients_cleared(step.update), finish),
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
        return Comparison(
            columns,
            directions(options.metrics, names, data.val_sets),
            frozenset(same),
            data.signature.validate_every_n_steps,
        )

    return compare


def _context(
    run: TrainingRun,
    data: FitData,
    train_metrics: MetricAccumulator,
    comparison: Comparison,
    readings: LoopReadings,
) -> TrainContext:
    by_steps = comparison.every_n_steps is not None

    def why_not_resumable(inside_epoch: bool) -> str | None:
        return (
            data.train.why_not_resumable(inside_epoch=inside_epoch)
            or (train_metrics.why_not_resumable if inside_epoch or by_steps else None)
            or run.why_not_savable
        )

    return TrainContext(
        run.model,
        run.optimizer,
        run.record.state,
        run.record.history,
        why_not_resumable=why_not_resumable,
        comparison=comparison,
        resumed_from=run.record.resumed_from,
        run_id=run.record.run_id,
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
        checkpointed=options.checkpointing.in_step,
    )


def _validation(
    options: TrainerOptions,
    evaluator: Evaluator,
    data: FitData,
    check: FirstBatchCheck,
    hooks: Callbacks,
    interruption: Interruption,
    interval: EpochInterval | StepInterval,
) -> Validation:
    if data.val is None:
        return NoValidation()
    sets = validation_sets(options.metrics, evaluator.task, data.val)
    by_steps = isinstance(interval, StepInterval)
    randomness = RandomnessOfStep(options.seed) if by_steps else RandomnessOfTraining()
    return DataValidation(evaluator, data.val, sets, check, hooks, interruption, randomness)


def _report(
    options: TrainerOptions,
    run: TrainingRun,
    data: FitData,
    limits: Limits,
    clock: Clock,
    interval: EpochInterval | StepInterval,
    train_metrics: MetricAccumulator,
) -> Report:
    progress, state = choose_progress(options.progress), run.record.state
    batches, accumulation = data.train.steps, options.accumulation_steps
    running = RunningValues(
        state, train_metrics, clock, lambda now: limits.plan(now, batches, accumulation).steps
    )
    if isinstance(interval, StepInterval):
        n, last_step = interval.every_n_steps, limits.last_step
        return StepReport(progress, clock, running, state, n=n, last_step=last_step)
    return EpochReport(
        progress, clock, running, batches, accumulation, last_epoch=limits.last_epoch
    )
