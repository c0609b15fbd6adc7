"""An exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.state_tensors import state_tensors, tensors_replaced
from finetunelib._public import public
from finetunelib.callbacks._saved_state import check_keys, check_tensors
from finetunelib.errors import InvalidArgumentError
from finetunelib.training import Callback, History, TrainContext


@public("finetunelib.callbacks")
class EMA(Callback):
    """Keeps an exponential moving average of the weights, which often generalizes better.

    After each update, `average = decay * average + (1 - decay) * weight`, for parameters and for
    floating-point buffers such as BatchNorm's statistics. Other buffers are copied. During
    validation the model has the averages; its own weights are restored afterwards, and training
    never uses the averages. Frozen tensors stay bitwise unchanged.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    with a constant decay as in Tarvainen and Valpola, "Mean teachers", 2017. The average starts
    at the current weights, without bias correction.

    Args:
        decay: The weight of the previous average in an update, in [0, 1). About 1 - 1/n averages
            over the last n updates.

    Raises:
        InvalidArgumentError: If `decay` is outside [0, 1).

    Example:
        Without a Trainer, call `update` after each step. Inside `applied` the model has the
        averages, to evaluate, save or export it:

        >>> import torch
        >>> from finetunelib import build_mlp
        >>> from finetunelib.callbacks import EMA
        >>> model, ema = build_mlp(4, [], 2), EMA(decay=0.5)
        >>> torch.nn.init.zeros_(model.head.bias).sum().item()
        0.0
        >>> ema.update(model)
        >>> torch.nn.init.ones_(model.head.bias).sum().item()
        2.0
        >>> ema.update(model)
        >>> with ema.applied(model):
        ...     print(model.head.bias.tolist())
        [0.5, 0.5]
        >>> model.head.bias.tolist()
        [1.0, 1.0]
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise InvalidArgumentError(f"`decay` must be in [0, 1), got {decay}.")
        self.decay: float = decay
        self._averages: dict[str, Tensor] = {}
        self._history: History | None = None
        self._loaded = contextlib.ExitStack()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the model's weights. The first call copies them.

        Args:
            model: The model, the same in each call.
        """
        weights = state_tensors(model)
        if not self._averages:
            self._averages = {name: tensor.clone() for name, tensor in weights.items()}
            return
        for name, tensor in weights.items():
            average = self._averages[name]
            if tensor.is_floating_point():
                moved = average.lerp(tensor, 1.0 - self.decay)
                # Unchanged values stay bitwise the same, also the infinities of a mask.
                average.copy_(torch.where(average == tensor, average, moved))
            else:
                average.copy_(tensor)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Load the averages into the model, and restore its weights at the end of the block.

        Args:
            model: The model that was averaged.

        Raises:
            InvalidArgumentError: If there is no average yet.
        """
        if not self._averages:
            raise InvalidArgumentError(
                "There is no average yet. Call `update(model)`, or train with this callback first."
            )
        with tensors_replaced(model, self._averages):
            yield

    def on_fit_start(self, context: TrainContext) -> None:
        """Start from the current weights, or continue the average of an earlier `fit`."""
        if context.resumed:
            weights = state_tensors(context.model)
            self._averages = {n: a.to(weights[n].device) for n, a in self._averages.items()}
        elif self._history is not context.history:
            self._averages = {}  # Those of another training run.
        self._history = context.history
        if not self._averages:
            self.update(context.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return {"averages": self._averages}

    def check_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Raise if the saved averages are not those of the model.

        Raises:
            CheckpointError: If a name, a shape or a type differs.
        """
        check_keys(self, state, "averages")
        check_tensors(self, state["averages"], "averages", model)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averages that `state_dict` returned."""
        self._averages = state["averages"]

    def on_step_end(self, context: TrainContext) -> None:
        """Update the averages."""
        self.update(context.model)

    def on_validation_start(self, context: TrainContext) -> None:
        """Load the averages into the model."""
        self._loaded.enter_context(self.applied(context.model))

    def on_validation_end(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Restore the model's weights."""
        self._loaded.close()
