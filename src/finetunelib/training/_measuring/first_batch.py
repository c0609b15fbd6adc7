"""Metrics on the first batch: whether they accept it, and which columns they will have."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetunelib._forward.batch import shapes_of
from finetunelib._messages import first_line, type_and_line
from finetunelib._preserve import random_state_preserved
from finetunelib.errors import (
    FinetuneLibError,
    InvalidArgumentError,
    InvalidTargetError,
    InvalidTypeError,
)
from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._measuring.metrics import Metric
from finetunelib.training._measuring.weighted import check_takes_weights, update_metric
from finetunelib.training._tasks.broadcasting import broadcasting_in
from finetunelib.training._tasks.convention import convention_of_task
from finetunelib.training._tasks.task import Task


def copied(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return copies of metrics.

    Raises:
        InvalidArgumentError: If one cannot be copied.
    """
    copies: dict[str, Metric] = {}
    for name, metric in metrics.items():
        try:
            copies[name] = _copy(metric)
        except Exception as error:
            raise InvalidArgumentError(
                f"The metric {name!r} ({type(metric).__name__}) cannot be copied: "
                f"{first_line(error)}. Training and validation are measured with copies, so keep "
                "in it only what `copy.deepcopy` can copy."
            ) from error
    return copies


def _copy(metric: Metric) -> Metric:
    if type(metric) is Accuracy:
        return metric._copy()  # noqa: SLF001 - not for users to call
    return copy.deepcopy(metric)


def follow_loss(metric: Metric, task: Task) -> None:
    """Tell a metric of this library what the targets of a task mean."""
    if isinstance(metric, Accuracy):
        metric._follow(convention_of_task(task))  # noqa: SLF001 - not for users to call


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """The outputs and targets of the first batch, as metrics receive them.

    Attributes:
        outputs: The outputs.
        targets: The targets.
        name: The name of the data, for messages.
        sample_weight: The weights of the samples, if there are any.
    """

    outputs: Any  # Any: the structure is up to the task.
    targets: Any
    name: str
    sample_weight: Tensor | None = None

    def columns_of(self, name: str, metric: Metric) -> tuple[str, ...]:
        """Return the columns of a metric, which is changed.

        Raises:
            InvalidTargetError: If the metric fails, or would broadcast outputs and targets.
            InvalidTypeError: If its value is neither a number nor several numbers.
            InvalidArgumentError: If the samples have weights and it does not take them.
        """
        if self.sample_weight is not None:
            check_takes_weights(name, metric)
        with torch.no_grad(), random_state_preserved(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unused = copy.deepcopy(metric) if self._has_extra_axis() else None
            self._update(name, metric)
            try:
                value = metric.compute()
            except Exception:  # noqa: BLE001 - it may need more than one batch, such as all classes
                return (name,)
            found = columns(name, value)
            if unused is not None:
                self._check_without_axis(name, unused, found)
        return tuple(found)

    def _has_extra_axis(self) -> bool:
        """Return whether there are outputs `(n, 1)` and targets `(n,)`."""
        outputs, targets = self.outputs, self.targets
        tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        return tensors and targets.dim() == 1 and outputs.shape == (len(targets), 1)

    def _check_without_axis(self, name: str, metric: Metric, expected: Mapping[str, float]) -> None:
        """Compare the value with that of outputs `(n,)`, for metrics that compute in numpy."""
        outputs, targets = self.outputs, self.targets
        try:
            update_metric(metric, outputs.squeeze(1), targets, self.sample_weight)
            value = columns(name, metric.compute())
        except Exception:  # noqa: BLE001 - it needs the axis, so it handles it itself
            return
        if value.keys() == expected.keys() and not all(
            math.isclose(value[column], expected[column], rel_tol=1e-4, abs_tol=1e-6)
            or math.isnan(value[column])
            for column in value
        ):
            raise InvalidTargetError(
                f"The metric {name!r} would broadcast {tuple(outputs.shape)} with "
                f"{tuple(targets.shape)} on the outputs and the targets of `{self.name}`: without "
                "the second axis its value is another. Use `outputs.squeeze(1)` in the metric, or "
                "`targets.unsqueeze(1)` in the data."
            )

    def _update(self, name: str, metric: Metric) -> None:
        shapes = f"{shapes_of(self.outputs)} and the targets of `{self.name}` "
        shapes += shapes_of(self.targets)

        def update(outputs: Any, targets: Any) -> None:
            weight = self.sample_weight
            if weight is not None and len(weight) == 1:  # The batch may be repeated.
                weight = weight.expand(len(targets))
            update_metric(metric, outputs, targets, weight)

        try:
            found = broadcasting_in(update, self.outputs, self.targets)
        except (FinetuneLibError, torch.OutOfMemoryError) as error:
            error.add_note(f"In the metric {name!r}, on outputs {shapes}.")
            raise
        except Exception as error:
            raise InvalidTargetError(
                f"The metric {name!r} failed on the outputs {shapes}: {type_and_line(error)}"
            ) from error
        if found is not None:
            raise InvalidTargetError(
                f"The metric {name!r} would broadcast {found}, on the outputs {shapes}, and "
                "compare every output with every target. Give both the same shape, such as with "
                "`outputs.squeeze(1)` in the metric, or `targets.unsqueeze(1)` in the data."
            )


def columns(name: str, value: Any) -> dict[str, float]:
    """Return the value of a metric as numbers by column: several have a suffix.

    Raises:
        InvalidTypeError: If the value is neither a number nor several numbers.
    """
    if isinstance(value, Mapping):
        parts = [columns(f"{name}_{key}", part) for key, part in value.items()]
        return {column: number for part in parts for column, number in part.items()}
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        value = (
            value.item() if value.numel() == 1 else value.tolist() if value.dim() == 1 else value
        )
    if isinstance(value, int | float):
        return {name: float(value)}
    if isinstance(value, list | tuple) and all(_is_number(part) for part in value):
        return {f"{name}_{position}": float(part) for position, part in enumerate(value)}
    what = f"a value of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise InvalidTypeError(
        f"The metric {name!r} must compute a number, a number for each class, or a mapping of "
        f"numbers, got {what}. Reduce it, or compute it after training from `trainer.predict`."
    )


def _is_number(value: object) -> bool:
    one = isinstance(value, Tensor) and value.numel() == 1
    return one or isinstance(value, int | float)
