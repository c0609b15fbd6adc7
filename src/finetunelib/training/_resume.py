"""What decides how a training goes on: gathered into a checkpoint, and put back from one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetunelib._typing import StrPath
from finetunelib.errors import CheckpointError, WeightsMismatchError
from finetunelib.finetuning import load_weights
from finetunelib.finetuning._certificate import Witness
from finetunelib.training._callback import Callback, by_name
from finetunelib.training._checkpoint import (
    WEIGHTS,
    Checkpoint,
    environment,
    write_checkpoint,
)
from finetunelib.training._history import History
from finetunelib.training._precision import Precision
from finetunelib.training._schedule import NoSchedule
from finetunelib.training._state import TrainState

#: What changes the bits of a training, though it can go on.
_ENVIRONMENT = ("finetunelib", "torch", "python", "threads", "device", "seed")


@dataclass(frozen=True, slots=True)
class Training:
    """The parts of a training that have a state.

    Attributes:
        settings: What else the bits of the training depend on: the kind of device and the seed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: NoSchedule
    precision: Precision
    state: TrainState
    history: History
    callbacks: Sequence[Callback]
    witness: Witness
    settings: Mapping[str, Any]

    def save(self, path: StrPath, inside: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and return its folder.

        Args:
            path: The folder.
            inside: The state of the epoch in progress.

        Raises:
            CheckpointError: A state holds an object that could not be read back safely.
            PathNotWritableError: Nothing can be written there.
        """
        state = self.state
        return write_checkpoint(
            path,
            self.model,
            {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "precision": self.precision.state_dict(),
                "callbacks": self._callback_states(),
                "frozen": self.witness.state_dict(),
                "inside": inside,
            },
            self.history,
            {
                "epoch": state.epoch,
                "step": state.step,
                "batch": state.batch,
                **self._kinds(),
                **self.settings,
            },
        )

    def load(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Take up a checkpoint, and return the state of the epoch in progress.

        Everything is compared before anything is changed.

        Raises:
            CheckpointError: It is of another model, optimizer, schedule, precision or data, or of
                other callbacks; or it is damaged.
        """
        about = checkpoint.manifest
        saved = checkpoint.state
        callbacks = self._check(checkpoint.path, about, saved)
        history = checkpoint.history
        try:
            load_weights(self.model, checkpoint.path / WEIGHTS)
        except WeightsMismatchError as error:
            raise CheckpointError(
                f"`{checkpoint.path}` is a checkpoint of another model: {error}"
            ) from error
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.precision.load_state_dict(saved["precision"])
        for name, state in saved["callbacks"].items():
            callbacks[name].load_state_dict(state)
        self.witness.load_state_dict(saved["frozen"])
        self.history.rows[:] = history.rows
        self.state.epoch, self.state.step = about["epoch"], about["step"]
        self.state.batch = about["batch"]
        inside: Mapping[str, Any] = saved["inside"]
        return inside

    def _kinds(self) -> dict[str, str]:
        return {
            "optimizer": type(self.optimizer).__name__,
            "lr_scheduler": self.schedule.kind,
            "precision": type(self.precision).__name__,
        }

    def _callback_states(self) -> dict[str, dict[str, Any]]:
        states = {name: c.state_dict() for name, c in by_name(self.callbacks).items()}
        return {name: state for name, state in states.items() if state}

    def _check(
        self, path: Path, about: Mapping[str, Any], saved: Mapping[str, Any]
    ) -> dict[str, Callback]:
        """Compare a checkpoint with this training, and return the callbacks by name.

        Raises:
            CheckpointError: They do not belong together.
        """
        different = [
            f"`{name}` ({about.get(name)} there, {here} here)"
            for name, here in self._kinds().items()
            if about.get(name) != here
        ]
        if different:
            raise CheckpointError(
                f"`{path}` was written with another {', another '.join(different)}. Pass the same "
                "to go on with it."
            )
        here, there = self._callback_states().keys(), saved["callbacks"].keys()
        if here != there:
            raise CheckpointError(
                f"`{path}` holds the states of the callbacks {_names(there)}, and this training "
                f"has {_names(here)}. Pass the same callbacks."
            )
        self._check_optimizer(path, saved["optimizer"])
        self._say_what_differs(path, about)
        return by_name(self.callbacks)

    def _check_optimizer(self, path: Path, saved: Mapping[str, Any]) -> None:
        here = [len(group["params"]) for group in self.optimizer.param_groups]
        there = [len(group["params"]) for group in saved["param_groups"]]
        if here != there:
            raise CheckpointError(
                f"`{path}` holds an optimizer of {there} parameters (a number for each group), and "
                f"this one has {here}. Build the model and its groups as they were."
            )

    def _say_what_differs(self, path: Path, about: Mapping[str, Any]) -> None:
        now = environment() | dict(self.settings)
        changes = [
            f"{name} {about.get(name)} -> {now[name]}"
            for name in _ENVIRONMENT
            if name in now and about.get(name) != now[name]
        ]
        if changes:
            warnings.warn(
                f"`{path}` was written elsewhere ({', '.join(changes)}), so that the training goes "
                "on, but not bit for bit as it would have there.",
                stacklevel=2,
            )


def _names(names: Any) -> str:
    return ", ".join(names) or "none"
