"""A training run: everything that a checkpoint saves and restores."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetunelib._forward.state_tensors import copy_into
from finetunelib._typing import StrPath
from finetunelib.errors import CheckpointError, FinetuneLibError, WeightsMismatchError
from finetunelib.finetuning._freezing.frozen_state import FrozenState
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.hooks import by_name
from finetunelib.training._checkpointing.compatibility import (
    check_has_parameters,
    check_parts,
    check_same_callbacks,
    check_same_groups,
    check_same_kinds,
    warn_about_differences,
    warn_about_hyperparameters,
    warn_about_lr,
)
from finetunelib.training._checkpointing.content import Content
from finetunelib.training._checkpointing.contents import Contents, check_history
from finetunelib.training._checkpointing.folder import Checkpoint, write_checkpoint
from finetunelib.training._checkpointing.freezing import (
    has_weights_of,
    saved_frozen_state,
    with_copies,
)
from finetunelib.training._checkpointing.manifest import WEIGHTS
from finetunelib.training._checkpointing.measured import (
    TRAINING_WEIGHTS,
    check_training_weights,
    weights_replaced,
)
from finetunelib.training._checkpointing.optimizer_state import (
    check_groups,
    check_optimizer,
    undo_casts,
)
from finetunelib.training._checkpointing.position import (
    DataSignature,
    EpochPosition,
    check_keys,
)
from finetunelib.training._checkpointing.record import RunRecord
from finetunelib.training._checkpointing.safe_state import plain
from finetunelib.training._optimization.coverage import Coverage, parameters_of
from finetunelib.training._optimization.hyperparameters import are_hyperparameters
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._optimization.schedule import Schedule

if TYPE_CHECKING:  # Slow to import.
    from finetunelib.finetuning._weights.load import FittingWeights


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The parts of a run that have a state.

    Attributes:
        model: The user's model.
        others: The modules of the loss and the task, by name.
        optimizer: The optimizer.
        coverage: Which trainable parameters the optimizer contains.
        schedule: The learning-rate schedule.
        precision: The number format, with the scale of the loss.
        callbacks: The callbacks.
        record: How far the run is.
        hyperparameters: Those of the optimizer and the schedule, as the script built them.
        settings: The type of the device, the seed and the learning rate. A checkpoint is compared
            with them.
    """

    model: nn.Module
    others: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    coverage: Coverage
    schedule: Schedule
    precision: Precision
    callbacks: Sequence[Callback]
    record: RunRecord
    hyperparameters: Mapping[str, Any]
    settings: Mapping[str, Any]

    def save(
        self,
        path: StrPath,
        position: EpochPosition | None,
        measured: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write a checkpoint, and return its folder.

        Args:
            path: The folder.
            position: Where the run is in its data, or `None` if it has not started.
            measured: The weights that the file of weights is to contain, if they differ from those
                that training continues with.

        Raises:
            CheckpointError: If a state contains an object that could not be read back safely.
            PathNotWritableError: If nothing can be written to `path`.
        """
        with self.content(position, measured) as content:
            return write_checkpoint(path, content)

    @contextlib.contextmanager
    def content(
        self, position: EpochPosition | None, measured: Mapping[str, Tensor] | None = None
    ) -> Iterator[Content]:
        """Yield what a checkpoint of the run contains now. Its tensors are not copies.

        Args:
            position: Where the run is in its data, or `None` if it has not started.
            measured: The weights that the file of weights is to contain, as in `save`. They are
                in the model until the block ends.

        Raises:
            CheckpointError: If a state contains an object that could not be read back safely.
        """
        state = self.record.state
        with weights_replaced(self.model, measured) as training_weights:
            yield Content.of(
                self.model,
                {
                    **self._small_states(),
                    **training_weights,
                    "hyperparameters": self.record.hyperparameters or self.hyperparameters,
                    "buffers": self._unsaved_tensors(),
                    "frozen": self.record.freeze_audit.state_dict(),
                    "freezing": FrozenState.of(self.model).to_dict(),
                    "inside": {} if position is None else position.to_dict(),
                },
                self.record.history,
                {
                    "run": self.record.run_id,
                    "epoch": state.epoch,
                    "step": state.step,
                    "batch": state.batch,
                    **({"rows": "steps"} if self.record.rows_follow_steps else {}),
                    **self._kinds(),
                    **self.settings,
                },
                self.record.freeze_audit.unchanged(self.model),
            )

    def load(
        self,
        checkpoint: Checkpoint,
        signature: DataSignature | None = None,
        try_metrics: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> str:
        """Restore the run from a checkpoint. The next `fit` continues from there.

        The parts of the model that were frozen are frozen again, and no others. An exception is a
        model that is already at the checkpoint, because the same script has trained it up to there:
        what the script froze or unfroze since then is kept.

        Args:
            checkpoint: The checkpoint.
            signature: How the data is split into batches, if known. It must match if the
                checkpoint was written in the middle of an epoch.
            try_metrics: Loads the sums of an unfinished epoch into copies of the metrics.

        Returns:
            One line on what was frozen or unfrozen, or an empty string if nothing was.

        Raises:
            CheckpointError: If the checkpoint is damaged, or was written with a different model,
                optimizer, schedule, precision or callbacks. The run is left unchanged.
        """
        manifest, history = checkpoint.manifest, checkpoint.history
        weights, saved, position = self._check(checkpoint.path, manifest, checkpoint.state)
        check_history(checkpoint.path, history, manifest)
        if position is not None and position.is_inside and signature is not None:
            signature.check_matches(position.signature)
        if position is not None and position.is_inside and try_metrics is not None:
            try_metrics(position.train_metrics)
        frozen = saved_frozen_state(checkpoint.path, saved, self.model)
        settings = saved.get("hyperparameters")
        if settings is None:
            warn_about_lr(checkpoint.path, manifest, self.settings)
        else:
            warn_about_hyperparameters(checkpoint.path, settings, self.hyperparameters)
        warn_about_differences(checkpoint.path, manifest, self.settings)
        before = FrozenState.of(self.model)
        difference = "" if frozen is None else before.difference(frozen)
        if difference and manifest["step"] and has_weights_of(checkpoint.path, saved, self.model):
            frozen, difference = None, ""  # The script has changed it since the checkpoint.
        try:
            if frozen is not None:
                frozen.apply(self.model)
            self._restore(checkpoint.path, saved, weights)
        except BaseException:  # Ctrl-C too.
            before.apply(self.model)
            raise
        record = self.record
        record.hyperparameters = settings
        record.freeze_audit.load_state_dict(saved["frozen"])
        record.history.rows[:] = history.rows
        record.state.epoch, record.state.step = manifest["epoch"], manifest["step"]
        record.state.batch = manifest["batch"]
        record.position, record.resumed_from = position, checkpoint.path
        record.run_id = manifest.get("run")
        record.rows_follow_steps = "rows" in manifest
        return f"Resuming {difference}, as in `{checkpoint.path}`." if difference else ""

    def leave_position(self) -> None:
        """Discard the loaded position, because training has resumed from it."""
        self.record.position, self.record.resumed_from = None, None

    @property
    def why_not_savable(self) -> str | None:
        """Why a checkpoint of this run could not be written, or `None` if it could."""
        try:
            plain(self._small_states())
        except CheckpointError as error:
            return str(error)
        return None

    def _check(
        self, path: Path, manifest: Mapping[str, Any], saved: Mapping[str, Any]
    ) -> tuple[FittingWeights, Mapping[str, Any], EpochPosition | None]:
        """Compare a checkpoint with this run, and return its weights, state and position.

        The state contains the frozen tensors that the checkpoint leaves out, taken from the model.

        Raises:
            CheckpointError: If the run cannot resume from it.
        """
        check_parts(path, saved)
        check_same_kinds(path, manifest, self._kinds())
        contents = Contents(path, saved)
        contents.check_parts()
        valid = "hyperparameters" not in saved or are_hyperparameters(saved["hyperparameters"])
        contents.check(valid, "hyperparameters", "those of an optimizer and a schedule")
        check_same_callbacks(path, saved["callbacks"], self._callback_states())
        check_groups(contents, saved["optimizer"])
        check_same_groups(path, saved["optimizer"], self.optimizer)
        check_has_parameters(path, saved["buffers"], self._other_parameters())
        weights = self._fitting_weights(path)
        saved = with_copies(contents, saved, weights.left_out())
        check_training_weights(contents, saved, self.model)
        check_optimizer(contents, saved["optimizer"], self.optimizer)
        for name, current in (
            ("schedule", self.schedule.state_dict()),
            ("precision", self.precision.state_dict()),
        ):
            same = saved[name].keys() == current.keys()
            contents.check(same, name, f"a dict with the keys {', '.join(current) or 'none'}")
            contents.check_like(saved[name], current, name)
        callbacks = by_name(self.callbacks)
        for name, state in saved["callbacks"].items():
            callbacks[name].check_state_dict(state, self.model)
        check_keys(saved["inside"], manifest["batch"])
        contents.check_position(manifest["batch"])
        return weights, saved, EpochPosition.from_dict(saved["inside"], manifest["batch"])

    def _fitting_weights(self, path: Path) -> FittingWeights:
        """Return the weights of a checkpoint, compared with the model.

        Raises:
            CheckpointError: If they are those of another model.
        """
        from finetunelib.finetuning._weights.load import fitting_weights

        try:
            return fitting_weights(self.model, path / WEIGHTS)
        except WeightsMismatchError as error:
            raise CheckpointError(
                f"`{path}` is a checkpoint of a different model: {error}"
            ) from error
        except FinetuneLibError as error:
            raise CheckpointError(f"`{path}` does not fit the model: {error}") from error

    def _restore(self, path: Path, saved: Mapping[str, Any], weights: FittingWeights) -> None:
        """Load the states and the weights, or leave the run unchanged.

        Raises:
            CheckpointError: If one of them does not fit.
        """
        before = self._small_states()
        # An optimizer replaces its tensors when it loads a state; others may write into them.
        before |= copy.deepcopy({name: before[name] for name in ("schedule", "callbacks")})
        try:
            self._load_small_states(saved)
            # Last, since weights cannot be restored. They were compared with the model.
            weights.write()
            copy_into(self.model, saved.get(TRAINING_WEIGHTS, {}))
        except BaseException as error:
            self._load_small_states(before)
            if not isinstance(error, Exception):
                raise  # Ctrl-C.
            # A state of another form can make the `load_state_dict` of its owner fail in any way.
            raise CheckpointError(
                f"`{path}` contains a state that does not fit: {error or repr(error)} Pass the "
                "same optimizer, schedule and callbacks."
            ) from error
        self._load_tensors(saved["buffers"])

    def _small_states(self) -> dict[str, Any]:
        """Return the states of everything except the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.precision.state_dict(),
            "callbacks": self._callback_states(),
        }

    def _load_small_states(self, states: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(states["optimizer"])
        undo_casts(self.optimizer, states["optimizer"]["state"])
        self.schedule.load_state_dict(states["schedule"])
        self.precision.load_state_dict(states["precision"])
        callbacks = by_name(self.callbacks)
        for name, state in states["callbacks"].items():
            callbacks[name].load_state_dict(state)

    def _unsaved_tensors(self) -> dict[str, Tensor]:
        """Return what the model's state dict omits: non-persistent buffers, the loss, the task."""
        saved = self.model.state_dict().keys()
        tensors: dict[str, Tensor] = {
            f"model.{name}": buffer
            for name, buffer in self.model.named_buffers()
            if name not in saved
        }
        for prefix, module in self.others.items():
            tensors |= {f"{prefix}.{name}": buffer for name, buffer in module.named_buffers()}
        return tensors | self._other_parameters()

    def _other_parameters(self) -> dict[str, Tensor]:
        """Return the parameters of the loss and the task that the optimizer updates."""
        optimized = set(map(id, parameters_of(self.optimizer)))
        return {
            f"{prefix}.{name}": parameter.detach()
            for prefix, module in self.others.items()
            for name, parameter in module.named_parameters()
            if id(parameter) in optimized
        }

    def _load_tensors(self, saved: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._unsaved_tensors().items():
                value = saved.get(name)
                if value is not None and value.shape == tensor.shape:
                    tensor.copy_(value)

    def _kinds(self) -> dict[str, str]:
        return {
            "dtype": ", ".join(sorted({str(p.dtype)[6:] for p in self.model.parameters()})),
            "optimizer": type(self.optimizer).__name__,
            "lr_scheduler": self.schedule.signature,
            "precision": type(self.precision).__name__,
        }

    def _callback_states(self) -> dict[str, dict[str, Any]]:
        return {
            name: callback.state_dict()
            for name, callback in by_name(self.callbacks).items()
            if type(callback).state_dict is not Callback.state_dict
        }
