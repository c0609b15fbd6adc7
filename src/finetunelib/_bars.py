"""The bar of tqdm, with values that are read when it is drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

#: The shortest time between two drawings, in seconds.
INTERVAL = 0.1

#: tqdm's own form, with the values in place of the percentage and the steps per second.
_WITH_VALUES = "{desc}: |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class ValuesBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that ends with a text, such as the running loss."""

    def __init__(
        self, title: str, total: int | None, done: int, values: Callable[[], str], **options: Any
    ) -> None:
        """Open a bar.

        Args:
            title: The text in front of it.
            total: The number of steps, or `None` if it is unknown.
            done: The number of steps that are already done.
            values: Returns the text at its end. It is called by this thread, when the bar is
                drawn.
            options: Further arguments of tqdm.
        """
        self._values = values
        self._thread = threading.get_ident()
        self._text = ""
        with_values = total is not None and values is not no_values
        super().__init__(
            desc=title,
            total=total,
            initial=done,
            leave=False,
            unit="step",
            mininterval=INTERVAL,
            bar_format=_WITH_VALUES if with_values else None,
            **options,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields of the bar, which tqdm reads to draw it."""
        # tqdm draws a bar that is late from a thread of its own, in the middle of a step.
        if threading.get_ident() == self._thread:
            self._text = self._values()
        fields: dict[str, Any] = dict(super().format_dict)
        fields["postfix"] = self._text
        return fields


def no_values() -> str:
    """Return no text."""
    return ""
