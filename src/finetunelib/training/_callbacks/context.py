"""The state of a training run as callbacks see it, and the requests that they can make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from finetunelib._files.paths import check_folder_writable
from finetunelib._public import public
from finetunelib._typing import Mode, StrPath
from finetunelib.errors import CheckpointError
from finetunelib.training._callbacks.measured import Comparison, MeasuredWeights
from finetunelib.training._callbacks.readings import NoReadings, Readings
from finetunelib.training._history import History
from finetunelib.training._state import TrainState

#: What to do if a checkpoint cannot be written.
OnError: TypeAlias = Literal["raise", "warn"]


@dataclass(frozen=True, slots=True)
class CheckpointRequest:
    """How a checkpoint is written.

    Attributes:
        on_error: What to do if it cannot be written.
        blocking: Whether training waits for it.
        started: Whether a thread is writing it.
    """

    on_error: OnError
    blocking: bool
    started: bool = False


@dataclass(slots=True)
class Requests:
    """What callbacks asked the loop for.

    Attributes:
        checkpoints: The checkpoints that are not written yet, and how they are written.
        measured: The weights that the last validation measured.
    """

    checkpoints: dict[Path, CheckpointRequest] = field(default_factory=dict)
    measured: MeasuredWeights = field(default_factory=MeasuredWeights)


@public("finetunelib.training")
@dataclass(slots=True)
class TrainContext:
    """The state of a training run, as callbacks receive it.

    Callbacks read its attributes, and ask for a checkpoint or for an early end of the run.

    Attributes:
        model: The user's model.
        optimizer: The optimizer.
        state: The number of epochs and steps so far.
        history: The rows of the epochs so far.
        comparison: What the run measures and how values can be compared: `measures`,
            `direction_of` and `is_comparable` read it.
        why_not_resumable: Returns why resuming from a checkpoint would not be exact, or `None` if
            it would be. Pass `True` for a checkpoint taken in the middle of an epoch.
        stop_reason: Why a callback asked to stop, or `None`.
        resumed_from: The checkpoint that this `fit` resumes from, or `None`.
        run_id: The id of the run. Its checkpoints have the same one, also after it was resumed.
        readings: What is known about the steps so far: `last_loss`, `running_means`, `grad_norm`,
            `lr`, `samples_per_second` and `tokens_per_second` read it.
        requests: The checkpoints and the weights that callbacks asked for.
        last_checkpoint: The folder of the last checkpoint that this `fit` wrote, or `None`.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.training import Callback
        >>> class StopAfterThreeSteps(Callback):
        ...     def on_step_end(self, context):
        ...         if context.state.step == 3:
        ...             context.request_stop("three steps are enough")
        >>> data = (torch.zeros(50, 4), torch.zeros(50).long())
        >>> trainer = Trainer(
        ...     build_mlp(4, [], 2), batch_size=5, callbacks=[StopAfterThreeSteps()], progress=False
        ... )
        >>> trainer.fit(data, epochs=9)["step"]
        [3]
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    state: TrainState
    history: History
    comparison: Comparison
    why_not_resumable: Callable[[bool], str | None] = lambda _: None
    resumed_from: Path | None = None
    run_id: str | None = None
    readings: Readings = field(default_factory=NoReadings)
    stop_reason: str | None = field(default=None, init=False)
    last_checkpoint: Path | None = field(default=None, init=False)
    requests: Requests = field(default_factory=Requests, init=False)

    def __repr__(self) -> str:
        return (
            f"TrainContext(model={type(self.model).__name__}, state={self.state}, "
            f"resumed={self.resumed}, stop_reason={self.stop_reason!r})"
        )

    @property
    def requested_checkpoints(self) -> dict[Path, CheckpointRequest]:
        """The checkpoints that are not written yet, and how they are written."""
        return self.requests.checkpoints

    @property
    def measured(self) -> MeasuredWeights:
        """The weights that the last validation measured, which `measured_weights` reads."""
        return self.requests.measured

    @property
    def resumed(self) -> bool:
        """Whether this `fit` resumes from a checkpoint."""
        return self.resumed_from is not None

    @property
    def last_loss(self) -> float | None:
        """The loss of the last step, the mean over its micro-batches. `None` before the first step.

        On an accelerator, reading it waits for the step. Read it every few steps.
        """
        return self.readings.last_loss

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients in the last step, before they were clipped.

        `None` without `max_grad_norm`, which is what computes it, and before the first step. On an
        accelerator, reading it waits for the step.
        """
        return self.readings.grad_norm

    @property
    def lr(self) -> float:
        """The learning rate of the last step, of the first parameter group."""
        return self.readings.lr

    @property
    def samples_per_second(self) -> float | None:
        """The speed of training in this epoch so far, without validation.

        With `validate_every_n_steps`, since the last row. `None` before the first step. In a
        resumed epoch, only the steps since then count.
        """
        return self.readings.samples_per_second

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of training in this epoch so far, for a task with `counts_tokens`.

        With `validate_every_n_steps`, since the last row. `None` for other tasks, and before the
        first token. On an accelerator, reading
        it waits for the step.
        """
        return self.readings.tokens_per_second

    def running_means(self) -> dict[str, float]:
        """Return the loss and the metrics of this epoch so far, by column, such as `"train_loss"`.

        With `validate_every_n_steps`, they are the means since the last row.
        It computes the metrics, and on an accelerator waits for the step. In `on_epoch_end` the
        values are those of the epoch that has ended.

        Returns:
            The values; empty before the first step.
        """
        return self.readings.running_means()

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns of the history, except `"epoch"` and `"step"`, known from the start."""
        return self.comparison.columns

    @property
    def validate_every_n_steps(self) -> int | None:
        """The argument of `fit`: rows follow steps rather than epochs if it is not `None`."""
        return self.comparison.every_n_steps

    @property
    def measured_weights(self) -> Mapping[str, Tensor] | None:
        """The weights that the last validation measured, by their name in the state dict.

        They are kept for `on_row` and `on_epoch_end`, if a callback called
        `keep_measured_weights`. `None` if they are the model's own.
        """
        return self.measured.weights

    def direction_of(self, column: str) -> Mode | None:
        """Return whether a lower (`"min"`) or higher (`"max"`) value of a column is better.

        Args:
            column: A column of the history.

        Returns:
            The direction of the loss, of `Accuracy`, and of a metric that declares it with
            `higher_is_better`; `None` for any other column.
        """
        return self.comparison.directions.get(column)

    def is_comparable(self, column: str) -> bool:
        """Return whether values of a column can be compared with those of the `fit` before.

        Args:
            column: A column of the history. If it starts with `val_`, the validation data must be
                the same (of several sets, the one that it names), and otherwise the training data.
        """
        same = self.comparison.same_data
        if not column.startswith("val_"):
            return "train" in same
        return any(column.startswith(f"{name}_") for name in same)

    def keep_measured_weights(self) -> None:
        """Ask the loop to keep the weights that a validation measures, for `on_row`.

        They differ from the model's own if a callback replaces these for validation, as `EMA`
        does. Call it in `on_fit_start`. See `measured_weights`.
        """
        self.measured.wanted = True

    def request_stop(self, reason: str) -> None:
        """Ask the loop to stop after the current step. The epoch's row is still written.

        Args:
            reason: A short reason, shown in the progress output.
        """
        self.stop_reason = self.stop_reason or reason

    def request_checkpoint(
        self,
        path: StrPath,
        *,
        on_error: OnError = "raise",
        blocking: bool = True,
        measured: bool = False,
    ) -> None:
        """Ask the loop to write a checkpoint after the current step or epoch.

        The loop first calls the remaining callbacks, whose states the checkpoint contains. When
        it has been written, the loop calls `on_checkpoint`.

        Args:
            path: The folder to write. An existing checkpoint there is replaced.
            on_error: What to do if the checkpoint cannot be written: stop training (`"raise"`),
                or warn and continue (`"warn"`). Existing checkpoints stay intact in both cases.
            blocking: Whether training waits until the checkpoint is on disk. If not, it is copied
                in memory, and a thread writes the copy. The next checkpoint waits for it, and so
                does the end of `fit`; errors are raised after a later step.
            measured: Whether `model.safetensors` of the checkpoint is to contain
                `measured_weights`, if there are any. Training resumes from its own weights, which
                the checkpoint contains too.

        Raises:
            PathNotWritableError: If `path` is not writable and `on_error` is `"raise"`.
        """
        if on_error == "raise":
            check_folder_writable(path)
        self.requested_checkpoints[Path(path)] = CheckpointRequest(on_error, blocking)
        if measured:
            self.measured.paths.add(Path(path))

    def weights_for(self, path: Path) -> Mapping[str, Tensor] | None:
        """Return the measured weights if a requested checkpoint is to contain them, or `None`."""
        return self.measured.weights if path in self.measured.paths else None

    def check_resumable(self, *, inside_epoch: bool = True) -> None:
        """Raise an error if resuming from a checkpoint would not be exact.

        Args:
            inside_epoch: Whether the checkpoint is taken in the middle of an epoch.

        Raises:
            CheckpointError: If a metric has no `state_dict`, the data cannot be read again, or a
                state contains an object that cannot be loaded safely.
        """
        reason = self.why_not_resumable(inside_epoch)
        if reason is not None:
            raise CheckpointError(reason)
