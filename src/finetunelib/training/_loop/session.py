"""What is taken up before a training and put back after it, whatever happens in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from finetunelib._preserve import modes_preserved, random_state_preserved
from finetunelib.finetuning._freezing.certificate import FreezeAudit
from finetunelib.training._callbacks.context import TrainContext


@contextlib.contextmanager
def session(model: nn.Module) -> Iterator[None]:
    """Run the block with the model ready to train; restore modes and random states at the end.

    A model in eval mode is put into train mode as a whole. A model in train mode keeps the modes
    of its submodules: who set some to eval by hand meant it.
    """
    with random_state_preserved(), modes_preserved(model):
        if not model.training:
            model.train()
        yield


@contextlib.contextmanager
def gradients_dropped(model: nn.Module) -> Iterator[None]:
    """Drop the gradients of the last step at the end: they serve nobody, and take memory."""
    try:
        yield
    finally:
        model.zero_grad()


@contextlib.contextmanager
def certified(context: TrainContext, freeze_audit: FreezeAudit) -> Iterator[None]:
    """Look at the frozen tensors before and after the block, and keep what stayed in the history.

    A training that failed after its first step has no certificate: nobody looked at its end.
    """
    freeze_audit.start(context.model)
    step = context.state.step
    try:
        yield
    except BaseException:
        if context.state.step > step:
            context.history.certificate = None
        raise
    context.history.certificate = freeze_audit.finish(context.model)
