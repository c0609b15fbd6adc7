"""Callbacks: the base class that users extend, and the calls that the loop makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetunelib._public import public
from finetunelib.errors import CheckpointError
from finetunelib.training._callbacks.context import TrainContext


@public("finetunelib.training")
class Callback:
    """Something that happens beside a training. Extend the hooks that are needed.

    Hooks are called in the order of the list that the Trainer was given. They see the training
    through a `TrainContext`. An exception in a hook ends the training, and names the callback.

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
        """Run before the first epoch of a `fit`; the data was checked."""

    def on_epoch_start(self, context: TrainContext) -> None:
        """Run before the first step of an epoch."""

    def on_step_end(self, context: TrainContext) -> None:
        """Run after each update of the weights."""

    def on_validation_start(self, context: TrainContext) -> None:
        """Run before the model is measured on the validation data."""

    def on_validation_end(self, context: TrainContext) -> None:
        """Run after that, also when measuring failed."""

    def on_epoch_end(self, context: TrainContext) -> None:
        """Run when an epoch's row stands in the history."""

    def on_fit_end(self, context: TrainContext) -> None:
        """Run after the last epoch of a `fit`, also when an error ended it."""

    def on_interrupt(self, context: TrainContext) -> None:
        """Run when Ctrl-C or SIGTERM ends the training, between two steps.

        A checkpoint that is requested here is still written.
        """

    def on_checkpoint(self, context: TrainContext) -> None:
        """Run after a checkpoint was written; `context.last_checkpoint` is its folder."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for this callback to go on as if never stopped.

        Numbers, strings, tensors, and lists and dicts of them. A callback that returns nothing
        has no state.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned, before `on_fit_start` is called.

        Raises:
            CheckpointError: This callback has no state.
        """
        if state:
            raise CheckpointError(
                f"The checkpoint holds a state for {type(self).__name__}, which has no "
                "`load_state_dict`. Resume with the callback that wrote it."
            )
