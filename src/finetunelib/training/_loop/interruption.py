"""Stops a run between two steps when Ctrl-C or SIGTERM is received."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from finetunelib.errors import CheckpointError, TrainingInterrupted
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._checkpointing.manifest import read_manifest
from finetunelib.training._loop.moments import Hook

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Records the first signal instead of raising in the middle of a step.

    Attributes:
        received: The number of the signal, or `None` before one is received.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Run the block with handlers set, and restore the previous handlers afterwards.

        Only the main thread may set handlers; in other threads nothing changes. A signal that is
        ignored (by nohup, for example) stays ignored.
        """
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                handler = signal.getsignal(number)
                # None is a handler that was not set by Python and could not be restored.
                if handler not in (signal.SIG_IGN, None):
                    previous[number] = signal.signal(number, self._record)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's form
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # A second Ctrl-C does not wait for the step.
        self.received = self.received or number


@dataclass(frozen=True, slots=True)
class Interruption:
    """Ends a run after a signal.

    Attributes:
        signals: The signals of this `fit`.
        before_stop: Calls callbacks before the run ends; they may request a last checkpoint.
    """

    signals: Signals
    before_stop: Hook

    @property
    def signalled(self) -> bool:
        """Whether a signal was received."""
        return self.signals.received is not None

    def stop_if_signalled(self, context: TrainContext) -> None:
        """Call the hooks of an interruption and end the run, if a signal was received.

        Raises:
            TrainingInterrupted: If a signal was received.
        """
        if self.signals.received is not None:
            self.before_stop(context)
            self.raise_if_signalled(context)

    def raise_if_signalled(self, context: TrainContext) -> None:
        """End a run whose callbacks have already seen its end, if a signal was received.

        Raises:
            TrainingInterrupted: If a signal was received.
        """
        number = self.signals.received
        if number is None:
            return
        state = context.state
        place = (
            f"in epoch {state.epoch + 1}" if state.batch else f"at the end of epoch {state.epoch}"
        )
        raise TrainingInterrupted(
            f"Training was interrupted by {signal.Signals(number).name} after step {state.step}, "
            f"{place}. {_how_to_continue(context)}",
            history=context.history,
            signal_number=number,
        )


def _how_to_continue(context: TrainContext) -> str:
    """Return which checkpoint continues an interrupted run, and how."""
    path = context.last_checkpoint or context.resumed_from
    if path is None:
        return (
            "It wrote no checkpoint, so it cannot be resumed. The callback `ModelCheckpoint` "
            "writes one when a run is interrupted."
        )
    try:
        step = read_manifest(path)["step"]
    except CheckpointError:
        return f"Its last checkpoint, `{path}`, has been changed since."
    lost = "" if step == context.state.step else f" of step {step}"
    return f"A checkpoint{lost} is in `{path}`: resume with `fit(..., resume_from={str(path)!r})`."
