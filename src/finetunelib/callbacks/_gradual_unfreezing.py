"""Gradual unfreezing: from the head down, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from finetunelib._arguments import check_at_least
from finetunelib._public import public
from finetunelib._typing import Mode
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.callbacks._improvement import Improvement
from finetunelib.callbacks._saved_state import (
    check_count,
    check_improvement,
    check_keys,
    check_value,
)
from finetunelib.errors import FreezeError, HeadError, InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import find_head, unfreeze
from finetunelib.finetuning._freezing.blocks import blocks
from finetunelib.finetuning._freezing.frozen_state import FrozenState
from finetunelib.finetuning._freezing.hold import held_in_eval_mode
from finetunelib.finetuning._freezing.selection import select
from finetunelib.training import Callback, History, TrainContext


@public("finetunelib.callbacks")
class GradualUnfreezing(Callback):
    """Unfreezes a frozen model block by block, from the head down (Howard and Ruder, 2018).

    The first epochs train what is trainable at the start, such as a new head. After `every` epochs,
    the last block before it is unfrozen too, then the one before that, and so on. With `monitor`,
    the next block is unfrozen when the monitored value has not improved for `every` epochs. Blocks
    are unfrozen at the start of an epoch.

    The optimizer that the Trainer builds contains the frozen parameters from the start, so its
    groups and the learning-rate schedule do not change. Combine it with `parameter_groups` for
    smaller learning rates far from the head. `history.certificate` lists the tensors that stayed
    frozen to the end.

    Args:
        every: The number of epochs before each block is unfrozen, at least 1. With `monitor`, the
            number of epochs without improvement.
        monitor: The column of the history to follow, or `None` for a fixed schedule.
        mode: Whether a lower (`"min"`) or higher (`"max"`) value is better, as for `EarlyStopping`.
        min_delta: The smallest change that counts as an improvement, at least 0.
        max_blocks: The number of blocks after which the rest stays frozen, at least 1. `None`
            unfreezes everything that `freeze` has fixed.
        parts: In place of the blocks that `freeze(except_last=...)` counts: what to unfreeze, in
            this order. Each item names one or several parts, as for `unfreeze`.

    Raises:
        InvalidArgumentError: If `every` or `max_blocks` is below 1, `min_delta` is negative, `mode`
            is unknown or given without `monitor`, or `parts` is empty.
        InvalidTypeError: If one of them has another type.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp, freeze_and_replace_head
        >>> from finetunelib.callbacks import GradualUnfreezing
        >>> model = freeze_and_replace_head(build_mlp(4, [8, 8], 3), num_classes=2)
        >>> data = (torch.randn(20, 4), torch.arange(20) % 2)
        >>> unfreezing = GradualUnfreezing()
        >>> trainer = Trainer(model, callbacks=[unfreezing], progress=False)
        >>> _ = trainer.fit(data, epochs=2)
        >>> unfreezing.unfrozen
        [['backbone.3', 'backbone.4']]
    """

    def __init__(
        self,
        every: int = 1,
        *,
        monitor: str | None = None,
        mode: Mode | None = None,
        min_delta: float = 0.0,
        max_blocks: int | None = None,
        parts: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        check_at_least(1, every=every)
        if max_blocks is not None:
            check_at_least(1, max_blocks=max_blocks)
        if monitor is None and (mode is not None or min_delta):
            raise InvalidArgumentError(
                "`mode` and `min_delta` are for `monitor`, which is None. Pass the column to "
                'follow as `monitor`, such as "val_loss".'
            )
        self._every = every
        self._improvement = None if monitor is None else Improvement(monitor, mode, min_delta)
        self._max_blocks = max_blocks
        self._parts = None if parts is None else _checked_parts(parts)
        self._waited = 0
        self._count = 0
        self._blocks: list[list[str]] = []
        self._history: History | None = None

    @property
    def unfrozen(self) -> list[list[str]]:
        """The blocks that were unfrozen so far, in order, each as the names of its parts."""
        return [list(block) for block in self._blocks[: self._count]]

    def on_fit_start(self, context: TrainContext) -> None:
        """Find the blocks, and start waiting unless the run is continued.

        Raises:
            FreezeError: If nothing is frozen, or the head is not found and there are no `parts`.
            InvalidArgumentError: If a part is not in the model, or `monitor` is not measured.
        """
        if self._improvement is not None:
            self._improvement.start(context)
        continued = context.resumed or self._history is context.history
        self._history = context.history
        if not continued:
            self._waited = self._count = 0
        self._blocks = self._blocks_of(context.model)[: self._max_blocks]
        model = unwrapped(context.model)
        if not continued and not any(_has_frozen(model, b) for b in self._blocks):
            raise FreezeError(
                "GradualUnfreezing has nothing to unfreeze, because `freeze` has fixed none of the "
                "blocks. Call `freeze_and_replace_head`, or `freeze(model, except_last=0)`, before "
                "`fit`."
            )
        # An earlier `fit` restored the modes that these modules had while they were frozen.
        for block in self.unfrozen:
            for module in select(model, block).modules:
                module.training = not held_in_eval_mode(module)

    def on_epoch_start(self, context: TrainContext) -> None:
        """Unfreeze the next block if it is time."""
        if self._waited < self._every:
            return
        self._waited = 0
        model = unwrapped(context.model)
        while self._count < len(self._blocks):
            block = self._blocks[self._count]
            self._count += 1
            if _has_frozen(model, block):
                unfreeze(model, block)
                return

    def on_row(self, context: TrainContext) -> None:
        """Look whether the monitored value has improved."""
        if self._improvement is None:
            return
        row = context.history.rows[-1]
        improved = self._improvement.update(row[self._improvement.monitor])
        self._waited = 0 if improved else self._waited + 1

    def on_epoch_end(self, context: TrainContext) -> None:  # noqa: ARG002 - of the interface
        """Count the epoch."""
        if self._improvement is None:
            self._waited += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of unfrozen blocks, of epochs since then, and the best value."""
        best = None if self._improvement is None else self._improvement.state_dict()
        return {"count": self._count, "waited": self._waited, "improvement": best}

    def check_state_dict(
        self,
        state: Mapping[str, Any],
        model: nn.Module,  # noqa: ARG002 - of the interface
    ) -> None:
        """Raise if the saved values are not those of this callback.

        Raises:
            CheckpointError: If a key is missing, or a value has another type.
        """
        check_keys(self, state, "count", "waited", "improvement")
        check_count(self, state["count"], "count")
        check_count(self, state["waited"], "waited")
        expected = "present only with `monitor`"
        matches = (state["improvement"] is None) == (self._improvement is None)
        check_value(self, matches, "improvement", expected)
        if self._improvement is not None:
            check_improvement(self, state["improvement"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._count = state["count"]
        self._waited = state["waited"]
        if self._improvement is not None:
            self._improvement.load_state_dict(state["improvement"])

    def _blocks_of(self, model: nn.Module) -> list[list[str]]:
        """Return what is unfrozen, the first one first."""
        if self._parts is not None:
            return self._parts
        own = unwrapped(model)
        try:
            head = find_head(own).module
        except HeadError as error:
            raise FreezeError(
                "GradualUnfreezing counts blocks from the model's head, which was not found. Pass "
                "`parts=`, the names of what to unfreeze, in order."
            ) from error
        return blocks(own, head)[::-1]


def _has_frozen(model: nn.Module, parts: Sequence[str]) -> bool:
    """Return whether `freeze` has fixed something in some parts of a model.

    Raises:
        InvalidArgumentError: If the model does not have one of the parts.
    """
    selected = select(model, parts)
    fixed = FrozenState.of(model).fixed
    names = map(own_name, selected.parameter_names(model))
    return any(map(held_in_eval_mode, selected.modules)) or not fixed.isdisjoint(names)


def _checked_parts(parts: object) -> list[list[str]]:
    """Return the parts to unfreeze, each as a list of names.

    Raises:
        InvalidTypeError: If they are not a sequence of names, or of sequences of names.
        InvalidArgumentError: If one of the sequences is empty.
    """
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise InvalidTypeError(
            "`parts` must be a list of names, in the order in which they are unfrozen, got "
            f"{parts!r} ({type(parts).__name__})."
        )
    found = [[part] if isinstance(part, str) else list(part) for part in parts]
    if not found or not all(found):
        raise InvalidArgumentError(f"`parts` must name something to unfreeze, got {parts!r}.")
    for name in (name for block in found for name in block):
        if not isinstance(name, str):
            raise InvalidTypeError(
                f"`parts` must contain names of modules or parameters, got {name!r} "
                f"({type(name).__name__})."
            )
    return found
