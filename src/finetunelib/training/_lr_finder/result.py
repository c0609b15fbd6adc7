"""The result of a learning-rate range test."""

from __future__ import annotations

from dataclasses import dataclass

from finetunelib._html import html_table
from finetunelib._public import public
from finetunelib._tables import text_table, wrapped

_HEADINGS = ("learning rate", "loss", "smoothed")

#: The number of rows of the printed table.
_ROWS = 16


@public("finetunelib.training")
@dataclass(frozen=True, slots=True)
class LRFinderResult:
    """The losses of a learning-rate range test, and the learning rate that it suggests.

    `print(result)` prints a table, and `finetunelib.visualization.plot_lr_finder` draws it.

    Attributes:
        lrs: The learning rate of each step, ascending.
        losses: The loss of each step, before its update.
        smoothed: The smoothed losses: means over neighboring steps.
        suggestion: A learning rate to start with, or `None` if the losses do not show one.
        reason: How the suggestion was found, or why there is none.
        stopped: Why the test stopped before `max_lr`, or `None` if it did not.

    Example:
        >>> from finetunelib.training import LRFinderResult
        >>> result = LRFinderResult(
        ...     (0.1, 1.0), (2.0, 1.0), (2.0, 1.0), None, "Too few steps.", None
        ... )
        >>> result
        LRFinderResult(suggestion=None, 2 steps from 0.1 to 1)
        >>> print(result)
        learning rate    loss  smoothed
                  0.1  2.0000    2.0000
                    1  1.0000    1.0000
        No suggestion. Too few steps.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    reason: str
    stopped: str | None

    def __repr__(self) -> str:
        suggestion = None if self.suggestion is None else f"{self.suggestion:.2g}"
        steps = f"{len(self.lrs)} steps"
        if self.lrs:
            steps += f" from {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}"
        return f"LRFinderResult(suggestion={suggestion}, {steps})"

    def __str__(self) -> str:
        lines = text_table(_HEADINGS, self._rows(), numeric=_HEADINGS)
        return "\n".join([*lines, *(line for note in self._notes() for line in wrapped(note))])

    def _repr_html_(self) -> str:
        return html_table(_HEADINGS, self._rows(), notes=self._notes(), numeric=_HEADINGS)

    def _rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of a table: the first and last step, and some between them."""
        count = len(self.lrs)
        shown = list(range(count))
        if count > _ROWS:
            shown = sorted({round(row * (count - 1) / (_ROWS - 1)) for row in range(_ROWS)})
        return [
            (f"{self.lrs[n]:.2g}", _text(self.losses[n]), _text(self.smoothed[n])) for n in shown
        ]

    def _notes(self) -> list[str]:
        """Return what is written below the table."""
        stopped = [] if self.stopped is None else [self.stopped]
        if self.suggestion is None:
            return [*stopped, f"No suggestion. {self.reason}"]
        return [*stopped, f"Suggestion: {self.suggestion:.2g}. {self.reason}"]


def _text(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"
