"""The base class of callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from finetunelib._public import public
from finetunelib.errors import CheckpointError
from finetunelib.training._callbacks.context import TrainContext


@public("finetunelib.training")
class Callback:
    """Base class of callbacks, which run code at certain points of a training run.

    Override the hooks that you need. The Trainer calls its callbacks in the order in which they
    were passed, and gives each hook a `TrainContext`. An exception in a hook ends the run. It
    arrives unchanged, with a note that names the callback, the hook, the epoch and the step.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.training import Callback
        >>> class PrintLoss(Callback):
        ...     def on_epoch_end(self, context):
        ...         print(f"epoch {context.state.epoch}: {context.history['train_loss'][-1]:.2f}")
        >>> model = build_mlp(4, [], 2, seed=0)
        >>> trainer = Trainer(model, callbacks=[PrintLoss()], progress=False)
        >>> _ = trainer.fit((torch.zeros(8, 4), torch.zeros(8).long()), epochs=1)
        epoch 1: 0.79
    """

    def on_fit_start(self, context: TrainContext) -> None:
        """Run before the first epoch of a `fit`, after the data has been checked."""

    def on_epoch_start(self, context: TrainContext) -> None:
        """Run before the data of an epoch is read.

        In the first epoch of a `fit`, a DataLoader or another iterable of batches has already been
        opened, and its first batch read, to check it.
        """

    def on_step_end(self, context: TrainContext) -> None:
        """Run after each update of the weights."""

    def on_validation_start(self, context: TrainContext) -> None:
        """Run before each validation."""

    def on_validation_end(self, context: TrainContext) -> None:
        """Run after each validation, also if it failed."""

    def on_row(self, context: TrainContext) -> None:
        """Run when a row was added to the history.

        That is at the end of each epoch, right before `on_epoch_end` of the same callback. With
        `fit(validate_every_n_steps=...)`, it is after each validation.
        """

    def on_epoch_end(self, context: TrainContext) -> None:
        """Run at the end of each epoch.

        Its row is in the history, unless rows follow steps (`validate_every_n_steps`).
        """

    def on_fit_end(self, context: TrainContext) -> None:
        """Run at the end of a `fit`, also if an error ended it."""

    def on_interrupt(self, context: TrainContext) -> None:
        """Run when Ctrl-C or SIGTERM ends the run, between two steps.

        A checkpoint that is requested here is still written.
        """

    def on_checkpoint(self, context: TrainContext) -> None:
        """Run after a checkpoint has been written to `context.last_checkpoint`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores, for the callback to resume exactly.

        It may consist of numbers, strings, tensors, and lists and dicts of them. An empty dict
        means that the callback has no state.
        """
        return {}

    def check_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Raise if a saved state is not one that `load_state_dict` can restore.

        A checkpoint is a file, and its content can be anything. This method is called before
        anything is loaded, so a state that is refused here changes nothing.

        Args:
            state: The state from a checkpoint.
            model: The model that the checkpoint is loaded into, with its current weights.

        Raises:
            CheckpointError: If the state cannot be restored.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. It is called before `on_fit_start`.

        Raises:
            CheckpointError: If the state is not empty and this callback has none.
        """
        if state:
            raise CheckpointError(
                f"The checkpoint contains a state for {type(self).__name__}, which has no "
                "`load_state_dict`. Resume with the callback that wrote it."
            )
