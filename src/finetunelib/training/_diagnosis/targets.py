"""Findings about the targets: whether there is anything to distinguish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from finetunelib.training._diagnosis.finding import Finding
from finetunelib.training._tasks.convention import convention_of_task
from finetunelib.training._tasks.task import Task

#: The least number of targets of a batch that show that its data is sorted.
_LEAST = 32


def all_target_findings(task: Task, targets: Tensor | None) -> Iterator[Finding]:
    """Yield the findings about the targets of all samples, if they are in memory."""
    value = _only_value(task, targets)
    if targets is not None and value is not None and len(targets) > 1:
        yield Finding(
            "labels-of-one-class",
            "certain",
            f"All {len(targets)} targets of the training data are {value:g}: a model that always "
            "predicts this class has an accuracy of 1.",
            "Check how the targets are read, and that a subset of the data contains each class.",
        )


def batch_target_findings(task: Task, outputs: Any, targets: Any) -> Iterator[Finding]:
    """Yield the findings about the targets of the first batch of several classes."""
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 3:
        return  # One of two classes may be rare.
    value = _only_value(task, targets)
    if value is not None and len(targets) >= _LEAST:
        yield Finding(
            "labels-of-one-class",
            "likely",
            f"All {len(targets)} targets of the first batch are {value:g}, although the model has "
            f"{outputs.shape[1]} outputs. The data seems to be sorted by class.",
            "Pass `shuffle=True` to the DataLoader, or pass its dataset, which the Trainer "
            "shuffles.",
        )


def _only_value(task: Task, targets: Any) -> float | None:
    """Return the value that all targets of a classifier have, or `None`."""
    if not isinstance(targets, Tensor) or not targets.numel() or targets.is_complex():
        return None
    if targets.layout != torch.strided or targets.is_nested:
        return None
    if targets.dim() != 1 and targets.shape != (len(targets), 1):
        return None
    convention = convention_of_task(task)
    of_classes = convention.kind == "classes" and targets.dtype == torch.int64
    if not of_classes and convention.kind != "labels":
        return None
    # Mostly, the last one differs from the first.
    ends = targets.flatten()[:: max(1, targets.numel() - 1)].tolist()
    if ends[0] != ends[-1] or not _are_equal(targets):
        return None
    value = float(ends[0])
    return None if of_classes and value == convention.ignored else value


def _are_equal(values: Tensor) -> bool:
    """Return whether all values are the same, without memory for a comparison of each."""
    low, high = values.aminmax()
    return low.item() == high.item()
