"""Compares a checkpoint with the run that loads it, before anything changes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from finetunelib._escapes import one_line
from finetunelib.errors import CheckpointError
from finetunelib.training._checkpointing.manifest import STATE, environment
from finetunelib.training._optimization.hyperparameters import differences

#: What changes the bits of a run without making it impossible to resume.
_ENVIRONMENT = ("finetunelib", "torch", "python", "threads", "device", "seed")

#: The keys of a checkpoint's state.
_PARTS = ("optimizer", "schedule", "precision", "callbacks", "buffers", "frozen", "inside")


def check_parts(path: Path, saved: Mapping[str, Any]) -> None:
    """Raise if a part of the state is missing.

    Raises:
        CheckpointError: If a key is missing.
    """
    missing = [name for name in _PARTS if name not in saved]
    if missing:
        raise CheckpointError(
            f"`{path / STATE}` is not the state of a training run: {missing[0]!r} is missing. Use "
            "another checkpoint."
        )


def check_same_kinds(path: Path, saved: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raise if the checkpoint was written with another optimizer, schedule, precision or dtype.

    Args:
        path: The folder of the checkpoint.
        saved: Its manifest.
        kinds: The names of the types in this run.

    Raises:
        CheckpointError: If one of them differs.
    """
    different = [
        f"`{name}` (saved: {saved.get(name)}, this run: {kind})"
        for name, kind in kinds.items()
        if saved.get(name) != kind
    ]
    if different:
        raise CheckpointError(
            f"`{path}` was written with a different {', a different '.join(different)}. Resume "
            "with the same one."
        )


def check_same_callbacks(path: Path, saved: Iterable[str], names: Iterable[str]) -> None:
    """Raise if the callbacks that have a state are not those of the checkpoint.

    Raises:
        CheckpointError: If a name is missing on either side.
    """
    if set(saved) != set(names):
        raise CheckpointError(
            f"`{path}` contains the states of the callbacks {_listed(saved)}, but this run has "
            f"{_listed(names)}. Pass the same callbacks."
        )


def check_same_groups(
    path: Path, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    """Raise if the optimizer has other parameter groups than the saved one.

    Raises:
        CheckpointError: If the number of groups, or of parameters in one, differs.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"`{path}` has an optimizer with {saved_sizes} parameters (one number for each "
            f"group), but this run's optimizer has {sizes}. Build the model and the parameter "
            "groups in the same way."
        )


def check_has_parameters(
    path: Path, saved: Mapping[str, Any], parameters: Mapping[str, torch.Tensor]
) -> None:
    """Raise if the checkpoint lacks a parameter of the loss or the task.

    Raises:
        CheckpointError: If one is missing, or has another shape.
    """
    for name, parameter in parameters.items():
        shape = tuple(saved[name].shape) if name in saved else None
        if shape != tuple(parameter.shape):
            found = "it is missing" if shape is None else f"it has the shape {shape}"
            raise CheckpointError(
                f"`{path}` must contain `{name}` of shape {tuple(parameter.shape)}, which this run "
                f"trains, but {found}. Pass the loss or the task that it was written with."
            )


def warn_about_hyperparameters(
    path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    """Warn about each setting of the optimizer and the schedule that the script has changed.

    Args:
        path: The folder of the checkpoint.
        saved: The settings that it contains.
        current: The settings in this run's script.
    """
    different = differences(saved, current)
    if different:
        warnings.warn(
            f"`{path}` was written with other settings: {'; '.join(map(one_line, different))}. The "
            "run resumes with those of the checkpoint. To change them, start a new run from its "
            "weights with `load_weights`.",
            stacklevel=2,
        )


def warn_about_lr(path: Path, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Warn about another learning rate, for a checkpoint of an early version.

    Args:
        path: The folder of the checkpoint.
        saved: Its manifest.
        settings: The learning rate of this run.
    """
    saved_lr, lr = saved.get("lr"), settings["lr"]
    if saved_lr != lr and not math.isclose(saved_lr or math.nan, lr or math.nan):
        warnings.warn(
            f"`lr` is {lr} here and was {saved_lr} in `{path}`. The run resumes with the "
            "checkpoint's learning rate.",
            stacklevel=2,
        )


def warn_about_differences(
    path: Path, saved: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Warn if the run resumes in another environment.

    Args:
        path: The folder of the checkpoint.
        saved: Its manifest.
        settings: The type of the device and the seed of this run.
    """
    current = environment() | dict(settings)
    changes = [
        f"{name} {one_line(str(saved.get(name)))} -> {current[name]}"
        for name in _ENVIRONMENT
        if name in current and saved.get(name) != current[name]
    ]
    if changes:
        warnings.warn(
            f"`{path}` was written in a different environment ({', '.join(changes)}). Training "
            "resumes, but the results will not be bit for bit the same.",
            stacklevel=2,
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
