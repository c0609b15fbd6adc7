"""The options of a Trainer, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler

from finetunelib._typing import OptimizerFactory
from finetunelib.data._batches import Batches, Data
from finetunelib.data._dispatch import as_batches
from finetunelib.data._samples import CollateFunction
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._diagnosis.warn import Warnings
from finetunelib.training._measuring.metrics import Metric
from finetunelib.training._memory.checkpointing import Checkpointing
from finetunelib.training._optimization.build_schedule import build_schedule, check_scheduler
from finetunelib.training._optimization.gradients import Clipping
from finetunelib.training._optimization.optimizer import build_optimizer, check_optimizer
from finetunelib.training._optimization.plateau import Monitored
from finetunelib.training._optimization.schedule import Interval, Schedule, SchedulerFactory
from finetunelib.training._tasks.modules import TrainedModules

#: Whether samples or features are kept in memory: if it changes no bit, always, or never.
Caching: TypeAlias = Literal["auto"] | bool


@dataclass(frozen=True, slots=True)
class OptimizerOptions:
    """The optimizer and its schedule, as the user passed them.

    Attributes:
        optimizer: An optimizer or a function that builds one; `None` is SGD.
        lr: The learning rate, if one was passed.
        scheduler: A scheduler or a function that builds one; `None` keeps the learning rate.
        interval: Whether the schedule advances after every step or every epoch.
        monitored: What a schedule that follows a measure monitors.
    """

    optimizer: OptimizerFactory | torch.optim.Optimizer | None
    lr: float | None
    scheduler: SchedulerFactory | LRScheduler | None
    interval: Interval
    monitored: Monitored

    def check(self, trained: TrainedModules) -> None:
        """Raise if these options cannot be combined, or do not fit what is trained.

        Raises:
            InvalidTypeError: If an option has the wrong type.
            InvalidArgumentError: If an option has an invalid value.
        """
        check_optimizer(trained, self.optimizer, self.lr)
        check_scheduler(self.scheduler, self.interval, self.optimizer, self.monitored)

    def build(self, trained: TrainedModules) -> tuple[torch.optim.Optimizer, Schedule]:
        """Return an optimizer over all parameters that are trained, and its schedule."""
        optimizer = build_optimizer(trained, self.optimizer, self.lr)
        schedule = build_schedule(self.scheduler, self.interval, optimizer, self.monitored)
        return optimizer, schedule

    @property
    def ready(self) -> bool:
        """Whether the user passed an optimizer that is already built."""
        return isinstance(self.optimizer, torch.optim.Optimizer)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How data is split into batches.

    Attributes:
        batch_size: The number of samples in a batch.
        num_workers: The number of processes that read a dataset.
        seed: Determines the order of an epoch together with its number.
        pin_memory: Whether batches are copied to page-locked memory first.
        collate_fn: Makes a batch of the samples of a dataset. `None` stacks them.
    """

    batch_size: int
    num_workers: int
    seed: int
    pin_memory: bool
    collate_fn: CollateFunction | None = None

    def batches(self, data: Data, name: str, *, inputs_only: bool = False) -> Batches:
        """Return the batches of an argument called `name`."""
        return as_batches(
            data,
            name=name,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            pin_memory=self.pin_memory,
            inputs_only=inputs_only,
            collate_fn=self.collate_fn,
        )


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """The options of a Trainer. They never change."""

    callbacks: Sequence[Callback]
    metrics: Mapping[str, Metric]
    optimizer: OptimizerOptions
    data: DataOptions
    clipping: Clipping
    accumulation_steps: int
    seed: int
    progress: bool
    cache_data: Caching
    cache_features: Caching
    warnings: Warnings
    checkpointing: Checkpointing

    def __post_init__(self) -> None:
        """Raise if `cache_data` or `cache_features` has another value.

        Raises:
            InvalidArgumentError: If one is neither "auto" nor a bool.
        """
        for name in ("cache_data", "cache_features"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or value == "auto"):
                raise InvalidArgumentError(
                    f'`{name}` must be "auto", True or False, got {value!r}.'
                )


def choose_device(device: str | torch.device) -> torch.device:
    """Return a device; `"auto"` is an accelerator if there is one, or else the CPU.

    Raises:
        InvalidArgumentError: If the device does not exist or is not available.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(
            f"`device` {str(device)!r} cannot be used: {reason} "
            'Pass "auto", "cpu" or a device of this machine.'
        ) from error
    return chosen
