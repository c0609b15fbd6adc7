"""Stops a run whose loss is not finite, before its weights are lost."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor, nn

from finetunelib._typing import Batch
from finetunelib.errors import NonFiniteError
from finetunelib.training._optimization.buffers import BufferCopies
from finetunelib.training._optimization.non_finite import Finding, explain
from finetunelib.training._optimization.precision import Precision, ScaledPrecision
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.task import StepOutput


class Guard:
    """Checks the losses of a run.

    A loss on the CPU is read at once. If it is not finite, the buffers are set back to their values
    before the step, and the step ends before its update. Reading a loss on an accelerator would
    make each step wait for the device. These losses are kept there until `read`, and the error then
    says which steps are affected.

    Args:
        trained: The modules that are trained, to find the one whose output is not finite.
        precision: The number format of the forward pass.
        state: The counters of the run.
        device: Where the model runs.
        runner: What a step calls to run the model, or a part of it.
    """

    #: The number of losses that are kept on an accelerator before they are read.
    _CHUNK = 1024

    def __init__(
        self,
        trained: TrainedModules,
        precision: Precision,
        state: TrainState,
        device: torch.device,
        runner: nn.Module | None = None,
    ) -> None:
        self._trained = trained
        self._runner = trained.model if runner is None else runner
        self._precision = precision
        self._state = state
        # On an accelerator the error comes too late for the values before the step.
        modules = trained.all_modules() if device.type == "cpu" else ()
        self._buffers = BufferCopies(modules)
        # A scaled loss skips the updates whose gradients overflow, and adapts its scale.
        self._checks_norm = not isinstance(precision, ScaledPrecision)
        self._unread: list[tuple[int, Tensor, Tensor | float]] = []

    def start(self) -> None:
        """Keep the values of the buffers, before the forward passes of a step."""
        self._buffers.keep()

    def check(self, output: StepOutput, batch: Batch) -> None:
        """Check the loss of a micro-batch, before its backward pass.

        Raises:
            NonFiniteError: If the loss was computed on the CPU and is not finite, unless it is a
                mean over nothing, such as over ignored targets only.
        """
        loss = output.loss
        if loss.is_cpu:
            if not math.isfinite(loss.item()) and float(output.weight):
                self._stop(f"The loss is {loss.item()}", batch)
            return
        self._unread.append((self._state.step + 1, loss.detach(), output.weight))
        if len(self._unread) == self._CHUNK:
            self.read()

    def check_norm(self, norm: Tensor | None, batch: Batch) -> None:
        """Check the norm of the gradients before the update, if clipping has computed it.

        Raises:
            NonFiniteError: If it is on the CPU and is not finite.
        """
        if norm is not None and norm.is_cpu and self._checks_norm:
            value = norm.item()
            if not math.isfinite(value):
                self._stop(f"The loss is finite, but the norm of its gradients is {value}", batch)

    def read(self) -> None:
        """Check the losses that were kept on an accelerator, which waits for the device.

        Raises:
            NonFiniteError: If one of them is not finite.
        """
        kept, self._unread = self._unread, []
        if not kept:
            return
        losses = torch.stack([loss.float() for _, loss, _ in kept]).tolist()
        for (step, _, weight), loss in zip(kept, losses, strict=True):
            if not math.isfinite(loss) and float(weight):
                self._report_late(step, loss)

    def _report_late(self, first: int, loss: float) -> NoReturn:
        state = self._state
        last = max(first, state.step)
        raise NonFiniteError(
            f"The loss is {loss} in epoch {state.epoch + 1}, step {first}. On an accelerator this "
            f"was noticed after step {last}, so the weights of steps {first} to {last} are not "
            "usable. Load a checkpoint from before, and train on the CPU from there to see which "
            "module is the first whose output is not finite.",
            epoch=state.epoch + 1,
            steps=(first, last),
        )

    def _stop(self, what: str, batch: Batch) -> NoReturn:
        state, trained = self._state, self._trained
        self._buffers.restore()
        try:
            found = explain(trained, self._runner, self._precision, batch)
        finally:
            self._buffers.restore()
        step = state.step + 1
        raise NonFiniteError(
            f"{what} in epoch {state.epoch + 1}, step {step}. {_kept(found, state.step)} {found}",
            epoch=state.epoch + 1,
            steps=(step, step),
            module=found.module,
        )


def _kept(found: Finding, step: int) -> str:
    """Return what state the run is in."""
    if found.parameter is not None:
        return (
            f"`{found.parameter}` was not finite before this step, so the weights cannot be used."
        )
    return f"Weights, buffers and optimizer are those after step {step}."
