"""A trial: training steps of a Trainer on its model, all of which are undone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor

from finetunelib._preserve import derive_seed, random_state_preserved, reseed, unchanged
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, to_device
from finetunelib.data._batches import Batches, Data
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._loop.feed import Window
from finetunelib.training._loop.last_batch import check_last_batch
from finetunelib.training._loop.session import in_train_mode
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._measuring.exclusive import exclusive
from finetunelib.training._measuring.first_batch import copied
from finetunelib.training._measuring.rows import mapped
from finetunelib.training._optimization.coverage import Coverage, parameters_of
from finetunelib.training._optimization.optimizer import build_optimizer, check_trainable
from finetunelib.training._optimization.schedule import NoSchedule
from finetunelib.training._optimization.step import LastStep, Step
from finetunelib.training._processes import check_single_process
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput
from finetunelib.training._trainer import Trainer
from finetunelib.training._trials.restored import (
    optimizer_restored,
    parameters_restored,
    source_restored,
)
from finetunelib.training._updates.update import choose_update


class NoGuard:
    """Lets a loss that is not finite pass: the steps of a trial are undone."""

    def start(self) -> None: ...

    def check(self, output: StepOutput, batch: Batch) -> None: ...

    def check_norm(self, norm: Tensor | None, batch: Batch) -> None: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """Training steps that will be undone.

    Attributes:
        trainer: The Trainer.
        batches: The data.
        optimizer: The optimizer of the steps: the Trainer's own, or one that is built for them.
        step: One update of the weights.
    """

    trainer: Trainer
    batches: Batches
    optimizer: torch.optim.Optimizer
    step: Step

    def loss(self) -> float | None:
        """Return the mean loss of the last step, or `None` if no target of it counts."""
        last = self.step.last
        return last.read_loss() if any(float(weight) for weight in last.weights) else None

    def windows(self) -> Iterator[Window]:
        """Yield the micro-batches of one update after the other, epoch after epoch.

        The epochs are those that `fit` would read next, with their order and random states.
        """
        options = self.trainer._options  # noqa: SLF001
        epoch, device = self.trainer.state.epoch, self.trainer.device
        while True:
            reseed(derive_seed(options.seed, epoch))
            read = self.batches.epoch(epoch)
            every = (owned(batch, device) for batch in chain([first_of(read, "data")], read))
            while window := list(islice(every, options.accumulation_steps)):
                yield window
            epoch += 1


@contextlib.contextmanager
def trial(trainer: Trainer, data: Data, caller: str) -> Iterator[Trial]:
    """Check a Trainer and data as `fit` does, and yield training steps that are undone on exit.

    Args:
        trainer: The Trainer.
        data: The data to train on.
        caller: The name of the public function, for messages.

    Raises:
        InvalidArgumentError: If `fit` is running, nothing can be trained, or `data` is an iterator.
        DataError: If the model or the loss does not accept the data.
    """
    check_single_process()
    options, trained, evaluator = trainer._options, trainer._trained, trainer._evaluator  # noqa: SLF001
    run = trainer._run  # noqa: SLF001
    with trainer._fitting(), exclusive(trainer.model, training=True):  # noqa: SLF001
        check_trainable(trained)
        options.optimizer.check(trained)
        batches = options.data.batches(data, "data")
        _check_replayable(batches, caller)
        existing = options.optimizer.optimizer if run is None else run.optimizer
        modules = (trained.model, *trained.others.values())
        parameters = [parameter for _, parameter in trained.named_parameters()]
        with (
            source_restored(data),
            parameters_restored(parameters),
            unchanged(*modules, others=[trained.task], signs_of_zeros=True),
            optimizer_restored(existing if isinstance(existing, torch.optim.Optimizer) else None),
        ):
            trainer._move()  # noqa: SLF001
            with random_state_preserved(), in_train_mode(trained.model):
                optimizer = (
                    build_optimizer(trained, options.optimizer.optimizer, options.optimizer.lr)
                    if run is None
                    else run.optimizer
                )
                coverage = (
                    Coverage(trained, optimizer, ready=options.optimizer.ready)
                    if run is None
                    else run.coverage
                )
                coverage.check(trained)
                _check_first(trainer, batches)
                step = Step(
                    model=evaluator.runner,
                    task=evaluator.task,
                    update=choose_update(optimizer),
                    precision=copy.deepcopy(evaluator.precision),
                    guard=NoGuard(),
                    clip=options.clipping,
                    schedule=NoSchedule(optimizer),
                    state=TrainState(),
                    parameters=parameters_of(optimizer),
                    last=LastStep(),
                )
                yield Trial(trainer, batches, optimizer, step)


def _check_first(trainer: Trainer, batches: Batches) -> None:
    """Check the first batch of the next epoch as `fit` does.

    Raises:
        DataError: If the model or the loss does not accept it.
        InvalidArgumentError: If the last batch of an epoch cannot be used.
    """
    options, evaluator = trainer._options, trainer._evaluator  # noqa: SLF001
    epoch = trainer.state.epoch
    reseed(derive_seed(options.seed, epoch))
    first = owned(batches.peek(epoch, "data"), trainer.device)
    metrics = MetricAccumulator(copied(options.metrics), evaluator.task, "train_")
    evaluator.check(first, batches, metrics, "data", training=True)
    check_last_batch(trainer.model, first, batches, "data")


def _check_replayable(batches: Batches, caller: str) -> None:
    if not batches.replayable:
        raise InvalidArgumentError(
            f"`data` is an iterator, whose batches `{caller}` would use up, so training would miss "
            "them. Pass the data that the iterator reads from, or a list of some of its batches: "
            "`list(itertools.islice(data, 20))`."
        )


def owned(batch: Batch, device: torch.device) -> Batch:
    """Return a copy of a batch on a device, which a model may write to."""
    return cast("Batch", mapped(Tensor.clone, to_device(batch, device)))


def measure_nothing(_: StepOutput) -> None:
    """Take the output of a step without measuring it."""
