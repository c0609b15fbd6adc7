"""Early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_at_least
from finetunelib._forward.state_tensors import state_tensors
from finetunelib._public import public
from finetunelib._typing import Mode
from finetunelib.callbacks._improvement import Improvement
from finetunelib.callbacks._saved_state import (
    check_count,
    check_improvement,
    check_keys,
    check_tensors,
)
from finetunelib.training import Callback, TrainContext


@public("finetunelib.callbacks")
class EarlyStopping(Callback):
    """Stops training when a monitored value has not improved for a number of epochs.

    Values that are not finite never count as an improvement. With
    `fit(validate_every_n_steps=...)`, it compares the rows of the validations, and counts these
    instead of epochs.

    Args:
        monitor: The column of the history to monitor.
        patience: The number of epochs without improvement after which to stop, at least 1. With
            `validate_every_n_steps`, the number of validations.
        min_delta: The smallest change that counts as an improvement, at least 0.
        mode: Whether a lower (`"min"`) or higher (`"max"`) value is better. `None` means the
            direction that is known: lower for the loss, higher for `Accuracy`, and what a metric
            declares with `higher_is_better`. For any other column, `mode` is required.
        restore_best: Whether to restore the weights of the best row at the end of `fit`. They are
            kept in memory, on the model's device. They are the weights that were measured: with
            `EMA`, the averages.

    Attributes:
        best_epoch: The number of the best epoch, or of the epoch of the best validation. It is 0
            before the first one. The best epoch is
            forgotten when the callback is used for another training run, or when a later `fit` has
            other data.

    Raises:
        InvalidArgumentError: If `patience` is below 1, `min_delta` is negative or `mode` is
            unknown.
        InvalidTypeError: If `patience` is not a whole number.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.callbacks import EarlyStopping
        >>> data = (torch.randn(20, 4), torch.randint(0, 2, (20,)))
        >>> stop = EarlyStopping("val_loss", patience=2, min_delta=10.0)
        >>> trainer = Trainer(build_mlp(4, [], 2), callbacks=[stop], progress=False)
        >>> len(trainer.fit(data, data, epochs=50))
        3
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Mode | None = None,
        restore_best: bool = False,
    ) -> None:
        check_at_least(1, patience=patience)
        self._improvement = Improvement(monitor, mode, min_delta)
        self._patience = patience
        self._restore_best = restore_best
        self._best_weights: dict[str, Tensor] = {}
        self._waited = 0
        self._running = False
        self.best_epoch: int = 0

    @property
    def best(self) -> float:
        """The best value so far, or nan before the first finite one."""
        return self._improvement.best

    def on_fit_start(self, context: TrainContext) -> None:
        """Check that `monitor` is measured, and start waiting unless the run is resumed."""
        counts = self._improvement.start(context)
        self._running = True
        if not counts:
            self._best_weights, self.best_epoch = {}, 0
        if self._restore_best:
            context.keep_measured_weights()
        if context.resumed:
            self._stop_if_due(context)
        else:
            self._waited = 0

    def on_row(self, context: TrainContext) -> None:
        """Compare the row with the best one, and stop if it is time."""
        row = context.history.rows[-1]
        if self._improvement.update(row[self._improvement.monitor]):
            self._waited = 0
            self.best_epoch = int(row["epoch"])
            if self._restore_best:
                self._best_weights = self._weights(context)
            return
        self._waited += 1
        self._stop_if_due(context)

    def _weights(self, context: TrainContext) -> dict[str, Tensor]:
        """Return the weights that gave the monitored value."""
        if self._improvement.monitor.startswith("val_") and context.measured_weights is not None:
            return dict(context.measured_weights)
        return {name: tensor.clone() for name, tensor in state_tensors(context.model).items()}

    def _stop_if_due(self, context: TrainContext) -> None:
        if self._waited >= self._patience:
            rows = "epochs" if context.validate_every_n_steps is None else "validations"
            context.request_stop(
                f"{self._improvement.monitor} has not improved on {self.best:.4g} for "
                f"{self._waited} {rows}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and weights, and the number of rows without improvement."""
        return {
            "improvement": self._improvement.state_dict(),
            "best_epoch": self.best_epoch,
            "best_weights": self._best_weights,
            "waited": self._waited,
        }

    def check_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Raise if the saved values are not those of this callback and model.

        Raises:
            CheckpointError: If a key is missing, or a value has another type or shape.
        """
        check_keys(self, state, "improvement", "best_epoch", "best_weights", "waited")
        check_improvement(self, state["improvement"])
        check_count(self, state["best_epoch"], "best_epoch")
        check_count(self, state["waited"], "waited")
        check_tensors(self, state["best_weights"], "best_weights", model)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._improvement.load_state_dict(state["improvement"])
        self.best_epoch = state["best_epoch"]
        self._best_weights = state["best_weights"]
        self._waited = state["waited"]

    def on_fit_end(self, context: TrainContext) -> None:
        """Restore the best weights, if `restore_best` is set."""
        running, self._running = self._running, False
        if running and self._best_weights:
            state = context.model.state_dict()
            with torch.no_grad():
                for name, value in self._best_weights.items():
                    state[name].copy_(value)
