"""Batches of a dataset that is read once, and from memory in later epochs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from typing import Any

import torch
from torch import Tensor

from finetunelib._messages import readable_size
from finetunelib._typing import Batch
from finetunelib.data._batches import SeededBatches
from finetunelib.data._cache.examine import Examined, examine, why_other
from finetunelib.data._cache.memory import available_memory, memory_for_data
from finetunelib.data._cache.open_tensors import open_tensors
from finetunelib.data._cache.rows import KeptRows, NotKeptError, Rows
from finetunelib.data._cache.watching import Watched
from finetunelib.data._datasets import DatasetBatches
from finetunelib.errors import InvalidArgumentError


class _State(Enum):
    """How a dataset is read."""

    UNKNOWN = "unknown"
    #: Its samples will be kept during the next complete pass.
    READING = "reading"
    KEPT = "kept"
    #: It is read in each epoch.
    PLAIN = "plain"


class CachedBatches(SeededBatches):
    """The batches of a dataset, with the same order and bits as without a cache.

    Before the first batch, some samples are read twice. If they are the same, the first complete
    pass keeps all samples, and later passes are cut from memory. Before each of these, some samples
    are read again; if they or the dataset have changed, it is read as without a cache from then on,
    with a warning if only the samples
    show it.
    """

    def __init__(
        self,
        plain: DatasetBatches,
        name: str,
        *,
        required: bool,
        announce: Callable[[str], None],
        record: Callable[[bool], None],
    ) -> None:
        """Create a source.

        Args:
            plain: Reads the dataset.
            name: The name of the data, for messages.
            required: Whether it is an error if the samples cannot be kept.
            announce: Is called with a line when it is decided that they are kept.
            record: Is called with whether the batches come from memory.
        """
        self.batch_size = plain.batch_size
        self._plain = plain
        self._name = name
        self._required = required
        self._announce = announce
        self._record = record
        self._state = _State.UNKNOWN
        self._examined: Any = None  # Any: an Examined from READING on.
        self._rows: Any = None  # Any: Rows when KEPT.
        self._passes = count(1)
        self._announced = False

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self._plain.samples

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return self._plain.steps

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, shuffled, without the first `skip`."""
        self._prepare()
        order, generator = self._plain.order(number)

        def plain(done: int) -> Iterator[Batch]:
            return self._plain.epoch(number, skip=done)

        if self._state is _State.READING and not skip:
            return self._reading(order, self._plain.watched(order.tolist(), generator))
        return self._kept(order, skip, plain) if self._state is _State.KEPT else plain(skip)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the dataset."""
        self._prepare()
        order = torch.arange(self.samples)

        def plain(done: int) -> Iterator[Batch]:
            return self._plain.in_order(skip=done)

        if self._state is _State.READING:
            return self._reading(order, self._plain.watched(order.tolist()))
        return self._kept(order, 0, plain) if self._state is _State.KEPT else plain(0)

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, which `epoch` will yield again."""
        self._decide()
        if self._state is _State.KEPT:
            order, _ = self._plain.order(number)
            return self._rows.take(order[: self.batch_size])
        return self._plain.peek(number, name)

    def all_targets(self) -> Tensor | None:
        """Return `None`: they are in memory only after the first epoch."""
        return None

    def _prepare(self) -> None:
        """Decide how a pass is read."""
        if self._state in (_State.READING, _State.KEPT):
            changed = self._examined.contents.why_changed()
            if changed is not None and self._state is _State.READING:
                self._state = _State.UNKNOWN  # Since the first batch was read to check it.
            elif changed is not None:
                self._end(changed)
        if self._state is _State.UNKNOWN:
            self._decide()
        elif self._state is _State.KEPT:
            reason = why_other(self._plain, self._examined, self._rows, next(self._passes))
            if reason is not None:
                self._stop()
                self._warn(reason)

    def _decide(self) -> None:
        """Decide whether samples are kept, once.

        Raises:
            InvalidArgumentError: If they must be and cannot be.
        """
        if self._state is not _State.UNKNOWN:
            return
        try:
            self._examined = examine(self._plain)
            self._rows = self._open(self._examined)
            if self._rows is None:
                self._check_memory(self._examined.size)
        except NotKeptError as error:
            self._refuse(str(error))
            return
        self._state = _State.READING if self._rows is None else _State.KEPT
        if self._announced:
            return
        self._announced = True
        size = readable_size(self._examined.size)
        self._announce(
            f"`{self._name}` is read once and kept in memory ({size})."
            if self._rows is None
            else f"`{self._name}` contains its samples as tensors, which are read without a loop."
        )

    def _open(self, examined: Examined) -> Rows | None:
        """Return the samples of a dataset that contains them as tensors, or `None`."""
        rows = open_tensors(self._plain.dataset)
        if rows is not None:
            examined.check(rows)
        return rows

    def _check_memory(self, size: int) -> None:
        room = available_memory() if self._required else memory_for_data()
        if size > room:
            raise NotKeptError(
                f"its {self.samples:,} samples take {readable_size(size)}, and data may take "
                f"{readable_size(int(room))} of the memory that is available"
            )

    def _reading(self, order: Tensor, watched: Iterator[Watched]) -> Iterator[Batch]:
        """Yield the batches of a complete pass, and keep its samples."""
        rows, done = KeptRows(len(order)), 0
        for each in watched:
            if self._state is _State.READING:
                where = order[done : done + self.batch_size]
                done += len(where)
                reason = self._why_not_kept(rows, where, each, last=done == len(order))
                if reason is not None:
                    rows = KeptRows(0)  # This frees the memory.
                    self._refuse(reason)
            yield each.batch

    def _why_not_kept(
        self, rows: KeptRows, where: Tensor, each: Watched, *, last: bool
    ) -> str | None:
        """Keep the samples of a batch, and return why they cannot be kept, or `None`."""
        if each.problem is not None:
            return each.problem
        try:
            rows.put(where, each.batch, each.form)
            if last:
                self._keep(rows)
        except NotKeptError as error:
            return str(error)
        return None

    def _keep(self, rows: KeptRows) -> None:
        """Read later passes from memory.

        Raises:
            NotKeptError: If the samples or the dataset have changed.
        """
        if (changed := self._examined.contents.why_changed()) is not None:
            raise NotKeptError(changed)
        self._examined.check(rows)
        self._rows, self._state = rows, _State.KEPT

    def _kept(
        self, order: Tensor, skip: int, plain: Callable[[int], Iterator[Batch]]
    ) -> Iterator[Batch]:
        """Yield the batches from memory, as long as no attribute of the dataset is changed."""
        self._record(True)
        for done in range(skip, self.steps):
            # Workers would have their own copy of the dataset in this epoch.
            changed = None
            if self._plain.num_workers == 0:
                changed = self._examined.contents.why_just_changed()
            if changed is not None:
                self._end(changed)
            if self._state is not _State.KEPT:
                yield from plain(done)
                return
            yield self._rows.take(order[done * self.batch_size : (done + 1) * self.batch_size])

    def _refuse(self, reason: str) -> None:
        """Read the dataset in each epoch, because its samples cannot be kept.

        Raises:
            InvalidArgumentError: If they must be.
        """
        self._state, self._rows = _State.PLAIN, None
        if self._required:
            raise InvalidArgumentError(
                f"`cache_data` is True, but the samples of `{self._name}` cannot be kept: "
                f"{reason}. Pass `cache_data=False`."
            )
        if self._announced:
            self._warn(reason)

    def _stop(self) -> None:
        self._state, self._rows = _State.PLAIN, None
        self._record(False)

    def _end(self, changed: str) -> None:
        self._stop()
        self._announce(f"`{self._name}` is read again in each epoch: {changed}.")

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"`{self._name}` is no longer kept in memory: {reason}. It is read again from here on. "
            "If its samples change on purpose, pass `cache_data=False` to the Trainer.",
            stacklevel=2,
        )
