"""Builds the optimizer and the schedule, and what a checkpoint saves with them."""

from __future__ import annotations

from finetunelib.training._checkpointing.record import RunRecord
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._optimization.coverage import Coverage
from finetunelib.training._optimization.hyperparameters import hyperparameters
from finetunelib.training._options import TrainerOptions
from finetunelib.training._tasks.modules import TrainedModules


def build_run(
    options: TrainerOptions, trained: TrainedModules, evaluator: Evaluator, record: RunRecord
) -> TrainingRun:
    """Return the run of a Trainer, with its optimizer over what is trained.

    Args:
        options: The options of the Trainer.
        trained: The modules that are trained, on their device.
        evaluator: The model with its task, as `evaluate` uses it.
        record: How far the run is.
    """
    optimizer, schedule = options.optimizer.build(trained)
    lr = options.optimizer.lr
    return TrainingRun(
        model=trained.model,
        others=trained.others,
        optimizer=optimizer,
        coverage=Coverage(trained, optimizer, ready=options.optimizer.ready),
        schedule=schedule,
        precision=evaluator.precision,
        callbacks=options.callbacks,
        record=record,
        hyperparameters=hyperparameters(optimizer, schedule),
        settings={
            "device": evaluator.device.type,
            "seed": options.seed,
            "lr": lr and float(lr),
        },
    )
