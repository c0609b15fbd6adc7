"""Callbacks that write a checkpoint after a step, and may end the process there."""

from __future__ import annotations

from pathlib import Path

from finetunelib.training import Callback, TrainContext


class Stopped(BaseException):
    """Simulates a process that ends immediately."""


class SaveAt(Callback):
    """Writes a checkpoint after a step, and lets training continue."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == self.step:
            context.request_checkpoint(self.path)


class StopAfter(SaveAt):
    """Writes a checkpoint after a step, and ends the process once it is written."""

    def on_checkpoint(self, context: TrainContext) -> None:
        raise Stopped
