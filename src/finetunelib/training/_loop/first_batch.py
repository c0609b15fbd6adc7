"""The check of the first batch before training starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from finetunelib._preserve import random_state_free
from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.data._named import NamedBatches
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._callbacks.hooks import Callbacks, do_nothing
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._diagnosis.first_fit import FirstFit, choose_first_fit
from finetunelib.training._measuring.accumulator import MetricAccumulator, task_needs_equal_sizes
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._memory.checkpointing import Checkpointing
from finetunelib.training._options import TrainerOptions
from finetunelib.training._tasks.measured import UNKNOWN


@dataclass(frozen=True, slots=True)
class FirstBatchCheck:
    """Checks that the model, the loss and the metrics accept a batch, without changing them.

    Attributes:
        evaluator: The model with its task.
        accumulation_steps: The number of micro-batches in an update.
        first_fit: Examines the training data.
        checkpointing: What is done to the model while it runs.
        randomness: Returns a context for the checks. Without callbacks, nobody sees the random
            states between the checks and the first epoch, which sets its own.
    """

    evaluator: Evaluator
    accumulation_steps: int
    first_fit: FirstFit
    checkpointing: Checkpointing
    randomness: Callable[[], AbstractContextManager[None]] = nullcontext

    def train(self, first: Batch, batches: Batches, metrics: MetricAccumulator) -> None:
        """Raise if the first batch of the training data cannot be used."""
        with self.randomness(), self.first_fit.checking(first), self.checkpointing.applied():
            self.evaluator.check(first, batches, metrics, "train", training=True)
        task = self.evaluator.task
        if self.accumulation_steps > 1 and task_needs_equal_sizes(task):
            raise InvalidArgumentError(
                f"`gradient_accumulation_steps` is {self.accumulation_steps}, but {UNKNOWN}."
            )

    def val(self, first: Batch, batches: Batches, metrics: MetricAccumulator, name: str) -> None:
        """Raise if the first batch of validation data cannot be used."""
        self.evaluator.check(first, batches, metrics, name)


def build_check(
    options: TrainerOptions,
    run: TrainingRun,
    evaluator: Evaluator,
    train: Batches,
    val: Batches | NamedBatches | None,
    hooks: Callbacks,
    metrics: MetricAccumulator,
) -> FirstBatchCheck:
    """Return the check of a `fit`, which examines the training data in the first one.

    Args:
        options: The options of the Trainer.
        run: The run.
        evaluator: The model with its task.
        train: The training data.
        val: The validation data, if any, or several sets of it.
        hooks: The callbacks.
        metrics: The metrics of the training data.
    """
    first_fit = choose_first_fit(options.warnings, run, evaluator.task, train, val, metrics.update)
    # Nothing else sees the random states between the checks and the first epoch.
    randomness = random_state_free if hooks.on_fit_start is do_nothing else nullcontext
    return FirstBatchCheck(
        evaluator, options.accumulation_steps, first_fit, options.checkpointing, randomness
    )
