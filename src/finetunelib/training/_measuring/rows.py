"""The outputs of batches, collected as one row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib._forward.batch import describe
from finetunelib.errors import DataError


class Rows:
    """Collects the outputs of batches in the order of the data.

    The result has the structure of the outputs of a batch: a tensor, or a mapping or tuple of them.
    It is a list with one entry for each sample if the shapes of samples differ, or if the outputs
    of a batch are a list.
    """

    def __init__(self, samples: int | None) -> None:
        """Create an empty collection.

        Args:
            samples: The number of samples, if known. Outputs that are tensors are then written
                into one tensor, which takes half the memory.
        """
        self._samples = samples
        self._filled = 0
        self._whole: Tensor | None = None
        self._parts: list[Any] = []
        self._entries: list[Any] | None = None

    def add(self, outputs: Any, count: int) -> None:
        """Add the outputs of a batch of `count` samples.

        Raises:
            DataError: If there is not one row for each sample.
        """
        _check_rows(outputs, count)
        if self._samples is not None and self._filled + count > self._samples:
            raise DataError(
                f"The data yielded more than the {self._samples} samples that its length announces."
            )
        if isinstance(outputs, list):
            self._to_entries()
        elif self._entries is None:
            self._add_alike(outputs)
        if self._entries is not None:
            self._entries.extend(_entries_of(outputs, count))
        self._filled += count

    def _add_alike(self, outputs: Any) -> None:
        """Add outputs of the same shape as those before, or go over to entries."""
        if self._whole is not None or self._parts:
            previous = self._parts[0] if self._whole is None else self._whole
            if not _alike(outputs, previous):
                self._to_entries()
                return
        if isinstance(outputs, Tensor) and self._samples is not None:
            if self._whole is None:
                self._whole = outputs.new_empty((self._samples, *outputs.shape[1:]))
            # At once, since a model may write its next outputs to the same memory.
            self._whole[self._filled : self._filled + len(outputs)] = outputs
        else:
            self._parts.append(outputs)

    def _to_entries(self) -> None:
        if self._entries is not None:
            return
        parts = self._parts if self._whole is None else [self._whole[: self._filled]]
        self._entries = [entry for part in parts for entry in _entries_of(part, _length(part))]
        self._whole, self._parts = None, []

    def result(self) -> Any:
        """Return all rows.

        Raises:
            DataError: If there are fewer rows than samples.
        """
        if self._samples is not None and self._filled != self._samples:
            raise DataError(
                f"The data has {self._samples} samples, but yielded only {self._filled}, so rows "
                "would be missing. Its dataset leaves samples out, or its length is wrong."
            )
        if self._entries is not None:
            return self._entries
        return self._whole if self._whole is not None else _joined(self._parts)


def mapped(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Return outputs of the same structure, with a function applied to each tensor."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    if isinstance(outputs, Mapping):
        return {name: mapped(function, part) for name, part in outputs.items()}
    if isinstance(outputs, tuple):
        parts = [mapped(function, part) for part in outputs]
        # The constructor of a named tuple takes one argument per part.
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
    return [mapped(function, part) for part in outputs] if isinstance(outputs, list) else outputs


def _check_rows(outputs: Any, count: int) -> None:
    if isinstance(outputs, Tensor):  # First, since the test for a mapping is slow.
        rows = outputs.shape[0] if outputs.dim() else 0
    elif isinstance(outputs, Mapping | tuple) and len(outputs):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            _check_rows(part, count)
        return
    elif isinstance(outputs, list):
        rows = len(outputs)
    else:
        raise DataError(
            f"`predict` needs outputs with one row for each sample, got {describe(outputs)}. Pass "
            "a `task` whose `predict` returns them."
        )
    if rows != count:
        raise DataError(
            f"The model returned {rows} rows for {count} samples. `predict` needs one row per "
            "sample. Call the model yourself, or pass a `task` whose `predict` returns one row per "
            "sample."
        )


def _length(outputs: Any) -> int:
    """Return the number of rows of outputs that were checked."""
    while isinstance(outputs, Mapping | tuple):
        outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
    return len(outputs)


def _entries_of(outputs: Any, count: int) -> list[Any]:
    """Return the outputs of each sample."""
    if isinstance(outputs, Tensor):
        return list(outputs.unbind(0))
    if isinstance(outputs, list):
        return outputs
    return [_entry(outputs, row) for row in range(count)]


def _entry(outputs: Any, row: int) -> Any:
    if isinstance(outputs, Mapping):
        return {name: _entry(part, row) for name, part in outputs.items()}
    if isinstance(outputs, tuple):
        return tuple(_entry(part, row) for part in outputs)
    return outputs[row]


def _alike(one: Any, other: Any) -> bool:
    """Return whether two batches have the same structure and shapes, except for their rows."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape[1:] == other.shape[1:]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return isinstance(one, list) and isinstance(other, list)


def _joined(parts: list[Any]) -> Any:
    """Return batches of the same structure as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, list):
        return [entry for part in parts for entry in part]
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    return tuple(_joined([part[position] for part in parts]) for position in range(len(first)))
