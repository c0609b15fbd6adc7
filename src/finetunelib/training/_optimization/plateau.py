"""A schedule that lowers the learning rate when a measure stagnates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LRScheduler

from finetunelib._typing import Mode
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._optimization.monitor import check_measured
from finetunelib.training._optimization.schedule import TorchSchedule


@dataclass(frozen=True, slots=True)
class Monitored:
    """What a scheduler that follows a measure monitors.

    Attributes:
        column: A column of the history; `None` is the validation loss, or the training loss if
            there is no validation data.
        mode: Whether a lower or a higher value is better; `None` is the direction that is known.
    """

    column: str | None = None
    mode: Mode | None = None

    @property
    def is_default(self) -> bool:
        """Whether nothing was chosen."""
        return self.column is None and self.mode is None


class PlateauSchedule(TorchSchedule):
    """Lowers the learning rate when a measure stagnates."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, monitored: Monitored
    ) -> None:
        super().__init__(optimizer, scheduler)
        self._monitored = monitored
        self._column = "train_loss"

    def check_monitor(self, measures: Sequence[str], directions: Mapping[str, Mode]) -> None:
        """Choose the column, and compare its direction with the scheduler's mode."""
        column = self._monitored.column or _default_column(measures)
        check_measured("lr_scheduler_monitor", column, measures)
        better = self._monitored.mode or directions.get(column)
        if better is None:
            raise InvalidArgumentError(
                f"It is not known whether a lower or a higher {column!r} is better. Pass "
                'lr_scheduler_mode="min" or lr_scheduler_mode="max".'
            )
        mode = self._scheduler.mode
        if mode != better:
            raise InvalidArgumentError(
                f"ReduceLROnPlateau has mode={mode!r}, but {column!r} improves with "
                f"mode={better!r}. Build it with mode={better!r}, or pass the column that it is to "
                "follow as `lr_scheduler_monitor`."
            )
        self._column = column

    def after_row(self, row: Mapping[str, float]) -> None:
        """Pass the value of an epoch, or of a validation after n steps, to the scheduler."""
        self._scheduler.step(row[self._column])


def _default_column(measures: Sequence[str]) -> str:
    """Return the column that is followed if none was chosen.

    Raises:
        InvalidArgumentError: If there are several sets of validation data.
    """
    if "val_loss" in measures:
        return "val_loss"
    losses = [name for name in measures if name.startswith("val_") and name.endswith("_loss")]
    if losses:
        raise InvalidArgumentError(
            "ReduceLROnPlateau can follow only one of several sets of validation data. Pass "
            f"`lr_scheduler_monitor`, such as {losses[0]!r}."
        )
    return "train_loss"
