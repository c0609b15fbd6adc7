"""The environment of a run, which is restored when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from finetunelib._preserve import modes_preserved, random_state_preserved
from finetunelib.finetuning._freezing.certificate import FreezeAudit
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._loop.interruption import Signals
from finetunelib.training._loop.moments import Hook
from finetunelib.training._updates.update import Update


@dataclass(frozen=True, slots=True)
class Session:
    """Sets signal handlers, modes and random states for one `fit`, and restores them."""

    signals: Signals
    freeze_audit: FreezeAudit

    @contextlib.contextmanager
    def entered(self, context: TrainContext) -> Iterator[None]:
        """Run the block with the model ready to train."""
        with (
            self.signals.handled(),
            random_state_preserved(),
            in_train_mode(context.model),
            _certified(context, self.freeze_audit),
        ):
            yield


@contextlib.contextmanager
def in_train_mode(model: nn.Module) -> Iterator[None]:
    """Run the block with the model in train mode, and restore the modes afterwards.

    If the model is already in train mode, submodules set to eval are left alone: that was
    deliberate.
    """
    with modes_preserved(model):
        if not model.training:
            model.train()
        yield


@contextlib.contextmanager
def _certified(context: TrainContext, freeze_audit: FreezeAudit) -> Iterator[None]:
    """Store a certificate of the tensors that stayed frozen during the block in the history.

    A run that fails after its first step gets no certificate, because the final check never ran.
    """
    context.history.cached_features = context.history.cached_data = False
    freeze_audit.start(context.model)
    step = context.state.step
    try:
        yield
    except BaseException:
        if context.state.step > step:
            context.history.certificate = None
        raise
    context.history.certificate = freeze_audit.finish(
        context.model, trained=context.state.step > step
    )


def gradients_cleared(update: Update) -> Hook:
    """Return a hook that clears the gradients of the last step, which would only hold memory."""

    def clear(context: TrainContext) -> None:
        context.model.zero_grad()
        update.clear()  # It may contain parameters of the loss or the task.

    return clear
