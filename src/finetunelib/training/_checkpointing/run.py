"""What decides how a training goes on: gathered into a checkpoint, and put back from one."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._typing import StrPath
from finetunelib.data._batches import Batches
from finetunelib.errors import CheckpointError, WeightsMismatchError
from finetunelib.finetuning._freezing.certificate import FreezeAudit
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.hooks import by_name
from finetunelib.training._checkpointing.folder import Checkpoint, plain, write_checkpoint
from finetunelib.training._checkpointing.manifest import STATE, WEIGHTS, environment
from finetunelib.training._history import History
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._optimization.schedule import NoSchedule
from finetunelib.training._state import TrainState

#: What changes the bits of a training, though it can go on.
_ENVIRONMENT = ("finetunelib", "torch", "python", "threads", "device", "seed")

#: What the state of a training consists of.
_PARTS = ("optimizer", "schedule", "precision", "callbacks", "buffers", "frozen", "inside")


@dataclass(frozen=True, slots=True)
class Training:
    """The parts of a training that have a state.

    Attributes:
        loss: The loss, where it is a module and may have buffers.
        settings: What else the user chose that a checkpoint is compared with: the kind of device,
            the seed and the learning rate.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: NoSchedule
    precision: Precision
    state: TrainState
    history: History
    callbacks: Sequence[Callback]
    freeze_audit: FreezeAudit
    loss: nn.Module | None
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
                **self._small_states(),
                "buffers": self._unsaved_buffers(),
                "frozen": self.freeze_audit.state_dict(),
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

    def load(
        self, checkpoint: Checkpoint, reading: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Take up a checkpoint, and return the state of the epoch in progress.

        Args:
            checkpoint: The checkpoint.
            reading: How the data is read here, where it is known; inside an epoch it has to be as
                it was.

        Raises:
            CheckpointError: It is of another model, optimizer, schedule or precision, or of other
                callbacks; or it is damaged. Nothing is changed then.
        """
        about, saved, history = checkpoint.manifest, checkpoint.state, checkpoint.history
        self._check(checkpoint.path, about, saved)
        if reading is not None and about["batch"]:
            check_same_reading(saved["inside"]["reading"], reading)
        self._say_what_differs(checkpoint.path, about)
        from finetunelib.finetuning._weights.load import read_weights

        before = copy.deepcopy(self._small_states())
        try:
            self._load_small_states(saved)
            # Last, since these cannot be put back; they are compared before they are touched.
            read_weights(self.model, checkpoint.path / WEIGHTS, minimum_match=1.0, rename={})
        except WeightsMismatchError as error:
            self._load_small_states(before)
            raise CheckpointError(
                f"`{checkpoint.path}` is a checkpoint of another model: {error}"
            ) from error
        # A state that does not fit makes its owner's loading fail in any way.
        except Exception as error:
            self._load_small_states(before)
            raise CheckpointError(
                f"`{checkpoint.path}` holds a state that does not fit: {error or repr(error)} Pass "
                "the same optimizer, schedule and callbacks."
            ) from error
        self.freeze_audit.load_state_dict(saved["frozen"])
        self._load_buffers(saved)
        self.history.rows[:] = history.rows
        self.state.epoch, self.state.step = about["epoch"], about["step"]
        self.state.batch = about["batch"]
        inside: Mapping[str, Any] = saved["inside"]
        return inside

    @property
    def unsaveable(self) -> str | None:
        """Why a checkpoint of this training could not be written, where that is so."""
        try:
            plain(self._small_states())
        except CheckpointError as error:
            return str(error)
        return None

    def _small_states(self) -> dict[str, Any]:
        """Return the states of everything but the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.precision.state_dict(),
            "callbacks": self._callback_states(),
        }

    def _load_small_states(self, states: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(states["optimizer"])
        self._undo_casts(states["optimizer"]["state"])
        self.schedule.load_state_dict(states["schedule"])
        self.precision.load_state_dict(states["precision"])
        callbacks = by_name(self.callbacks)
        for name, state in states["callbacks"].items():
            callbacks[name].load_state_dict(state)

    def _undo_casts(self, saved: Mapping[int, Mapping[str, Any]]) -> None:
        """Give the optimizer's tensors their dtypes: torch casts them to the parameter's."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for position, values in saved.items():
            here = self.optimizer.state[parameters[position]]
            for name, value in values.items():
                if isinstance(value, Tensor) and here[name].dtype != value.dtype:
                    here[name] = value.to(here[name].device)

    def _unsaved_buffers(self) -> dict[str, Tensor]:
        """Return what a state dict leaves out: buffers that are not persistent, and the loss's."""
        kept = self.model.state_dict().keys()
        buffers = {f"model.{n}": b for n, b in self.model.named_buffers() if n not in kept}
        if self.loss is not None:
            buffers |= {f"loss.{n}": b for n, b in self.loss.named_buffers()}
        return buffers

    def _load_buffers(self, saved: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, buffer in self._unsaved_buffers().items():
                value = saved["buffers"].get(name)
                if value is not None and value.shape == buffer.shape:
                    buffer.copy_(value)

    def _kinds(self) -> dict[str, str]:
        return {
            "dtype": ", ".join(sorted({str(p.dtype)[6:] for p in self.model.parameters()})),
            "optimizer": type(self.optimizer).__name__,
            "lr_scheduler": self.schedule.kind,
            "precision": type(self.precision).__name__,
        }

    def _callback_states(self) -> dict[str, dict[str, Any]]:
        return {
            name: callback.state_dict()
            for name, callback in by_name(self.callbacks).items()
            if type(callback).state_dict is not Callback.state_dict
        }

    def _check(self, path: Path, about: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Compare a checkpoint with this training.

        Raises:
            CheckpointError: They do not belong together.
        """
        missing = [name for name in _PARTS if name not in saved]
        if missing:
            raise CheckpointError(
                f"`{path / STATE}` is not the state of a training: it has no {missing[0]!r}. Use "
                "another checkpoint."
            )
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
        there, here = about.get("lr"), now["lr"]
        if there != here and not math.isclose(there or math.nan, here or math.nan):
            warnings.warn(
                f"`lr` is {here} here and was {there} in `{path}`; a resumed "
                "training goes on with the checkpoint's learning rate.",
                stacklevel=2,
            )
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


def reading_of(train: Batches, window_size: int, metrics: Iterable[str]) -> dict[str, Any]:
    """Return what decides which samples a batch inside an epoch holds, and what is measured."""
    return {
        "samples": train.samples,
        "batch_size": train.batch_size,
        "batches": train.steps,
        "gradient_accumulation_steps": window_size,
        "metrics": list(metrics),
    }


def check_same_reading(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise when an epoch in progress would go on with other batches or other sums.

    Raises:
        CheckpointError: It would; the message names both.
    """
    if there != here:
        raise CheckpointError(
            f"The checkpoint was written inside an epoch of {_described(there)}, but here it is "
            f"{_described(here)}. Pass the same data in the same batches and the same metrics, or "
            "resume from the end of an epoch."
        )


def _described(reading: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in reading.items())


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
