"""The hyper-parameters of an optimizer and its schedule, and how two sets of them differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetunelib.training._optimization.schedule import Schedule

#: What a schedule changes while it runs, and what follows from its other settings.
_PROGRESS = {
    "T_cur",
    "T_i",
    "_get_lr_called_within_step",
    "_is_initial",
    "_last_lr",
    "_step_count",
    "base_lrs",
    "best",
    "cooldown_counter",
    "last_epoch",
    "mode_worse",
    "num_bad_epochs",
}

_SCALARS = (bool, int, float, str)


def hyperparameters(optimizer: torch.optim.Optimizer, schedule: Schedule) -> dict[str, Any]:
    """Return the settings of an optimizer and its schedule, right after they were built.

    They consist of types that a checkpoint can contain. Functions, such as those of LambdaLR, are
    left out.

    Returns:
        `"optimizer"`, one mapping for each parameter group, and `"schedule"`, one mapping.
    """
    return {
        "optimizer": [_of_group(group) for group in optimizer.param_groups],
        "schedule": dict(_flat(schedule.state_dict().get("scheduler", {}))),
    }


def are_hyperparameters(value: object) -> bool:
    """Return whether a value has the form of what `hyperparameters` returns."""
    return (
        isinstance(value, dict)
        and value.keys() == {"optimizer", "schedule"}
        and isinstance(value["optimizer"], list)
        and all(isinstance(part, dict) for part in [*value["optimizer"], value["schedule"]])
    )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return one text for each setting that differs, with both values."""
    found = []
    groups = list(zip(saved["optimizer"], current["optimizer"], strict=False))
    for number, (there, here) in enumerate(groups):
        where = f" of parameter group {number}" if len(groups) > 1 else ""
        found += [f"`{name}`{where} {values}" for name, values in _differing(there, here)]
    schedules = dict(_differing(saved["schedule"], current["schedule"]))
    # The phases of OneCycleLR follow from its length.
    dependent = "_schedule_phases" if "total_steps" in schedules else "\n"
    return found + [
        f"`{name}` {values}" for name, values in schedules.items() if dependent not in name
    ]


def _of_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group; its learning rate is that without a schedule."""
    values = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    if "initial_lr" in values:
        values["lr"] = values.pop("initial_lr")
    return dict(_flat(values))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values in a state, with the path to each."""
    if value is None or type(value) in _SCALARS:  # Most of them.
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _PROGRESS:
                yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for position, part in enumerate(value):
            yield from _flat(part, f"{name}[{position}]")
    elif isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        yield name, value.item()


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in {**there, **here}:
        saved, current = there.get(name), here.get(name)
        if not _same(saved, current):
            yield name, f"{saved!r} in the checkpoint and {current!r} here"


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other) or (math.isnan(one) and math.isnan(other))
    return one == other
