"""Finds outputs `(n, 1)` that are compared with targets `(n,)`, which pairs each with all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: The rows of a batch of one sample that are evaluated, to make broadcasting visible.
_ROWS = 3


def broadcasting_in(function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> str | None:
    """Call a function of outputs and targets, and return the shapes that it broadcast, if any.

    Args:
        function: A loss, or the `update` of a metric.
        outputs: The outputs of a batch.
        targets: Its targets.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        function(outputs, targets)
        return None
    if not (outputs.dim() and targets.dim()) or len(outputs) != len(targets):
        function(outputs, targets)
        return None
    if len(outputs) == 1:
        outputs, targets = (torch.cat([value] * _ROWS) for value in (outputs, targets))
    watch = _Watch(len(outputs))
    with warnings.catch_warnings(record=True) as caught, watch:
        warnings.simplefilter("always")
        function(outputs, targets)
    if watch.found is None and any("target size" in str(each.message) for each in caught):
        return f"{tuple(outputs.shape)} with {tuple(targets.shape)}"
    return watch.found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation that pairs each row with each other one."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.found: str | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found is None and isinstance(result, Tensor):
            given = [value for value in args if isinstance(value, Tensor)]
            if len(given) == 2 and self._pairs(given[0], given[1], result):
                self.found = f"{tuple(given[0].shape)} with {tuple(given[1].shape)}"
        return result

    def _pairs(self, one: Tensor, other: Tensor, result: Tensor) -> bool:
        """Return whether `(n, 1, ...)` and `(n, ...)` became `(n, n, ...)`."""
        wide, narrow = (one, other) if one.dim() > other.dim() else (other, one)
        rows = self.rows
        return (
            wide.dim() == narrow.dim() + 1
            and tuple(wide.shape[:2]) == (rows, 1)
            and narrow.shape[:1] == (rows,)
            and tuple(result.shape[:2]) == (rows, rows)
            and wide.shape[2:] == narrow.shape[1:]
        )
