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

from finetunelib._preserve import derive_seed, random_state_preserved, reseed
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
from finetunelib.training._trials.restored import everything_restored
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

    @property
    def coverage(self) -> Coverage:
        """Which trainable parameters the optimizer contains."""
        trainer, run = self.trainer, self.trainer._run  # noqa: SLF001
        ready = trainer._options.optimizer.ready  # noqa: SLF001
        if run is not None:
            return run.coverage
        return Coverage(trainer._trained, self.optimizer, ready=ready)  # noqa: SLF001

    def first(self) -> Batch:
        """Return a copy of the first batch of the next epoch, on the device."""
        epoch = self.trainer.state.epoch
        reseed(derive_seed(self.trainer._options.seed, epoch))  # noqa: SLF001
        return owned(self.batches.peek(epoch, "data"), self.trainer.device)

    def check(self, first: Batch) -> None:
        """Check the first batch as `fit` does.

        Raises:
            DataError: If the model or the loss does not accept it.
            InvalidArgumentError: If the last batch of an epoch cannot be used, or the loss has no
                gradient.
        """
        options, evaluator = self.trainer._options, self.trainer._evaluator  # noqa: SLF001
        metrics = MetricAccumulator(copied(options.metrics), evaluator.task, "train_")
        with options.checkpointing.applied():
            evaluator.check(first, self.batches, metrics, "data", training=True)
        check_last_batch(self.trainer.model, first, self.batches, evaluator.device, "data")

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
def trial(
    trainer: Trainer, data: Data, caller: str, guard: NoGuard | None = None
) -> Iterator[Trial]:
    """Yield training steps that are undone on exit.

    Args:
        trainer: The Trainer.
        data: The data to train on.
        caller: The name of the public function, for messages.
        guard: Sees the output of each micro-batch before its backward pass.

    Raises:
        InvalidArgumentError: If `fit` is running, nothing can be trained, or `data` is an iterator.
        DataError: If the data is empty.
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
        ready = existing if isinstance(existing, torch.optim.Optimizer) else None
        with everything_restored(trained, data, ready):
            trainer._move()  # noqa: SLF001
            with random_state_preserved(), in_train_mode(trained.model):
                optimizer = (
                    build_optimizer(trained, options.optimizer.optimizer, options.optimizer.lr)
                    if run is None
                    else run.optimizer
                )
                step = Step(
                    model=evaluator.runner,
                    task=evaluator.task,
                    update=choose_update(optimizer),
                    precision=copy.deepcopy(evaluator.precision),
                    guard=guard or NoGuard(),
                    clip=options.clipping,
                    schedule=NoSchedule(optimizer),
                    state=TrainState(),
                    parameters=parameters_of(optimizer),
                    last=LastStep(),
                    checkpointed=options.checkpointing.in_step,
                )
                yield Trial(trainer, batches, optimizer, step)


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
