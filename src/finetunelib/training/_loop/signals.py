"""Signals that end a training in good order: Ctrl-C and SIGTERM, noticed between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NOTICED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Notes the first signal instead of raising in the middle of a step.

    Attributes:
        received: The number of the signal, `None` before it.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def noticed(self) -> Iterator[None]:
        """Run the block with these handlers, and put the former ones back at its end.

        Only the main thread may set handlers; in another one nothing is changed. A signal that
        is ignored (by nohup, for example) stays so.
        """
        former = {}
        if threading.current_thread() is threading.main_thread():
            for number in _NOTICED:
                handler = signal.getsignal(number)
                # None is a handler that was set outside of Python, which could not be put back.
                if handler not in (signal.SIG_IGN, None):
                    former[number] = signal.signal(number, self._notice)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's form
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # Who asks twice does not want to wait.
        self.received = self.received or number
