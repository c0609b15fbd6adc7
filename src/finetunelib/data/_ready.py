"""Ready batches from another source: a DataLoader, a list of batches, a generator."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import TypeIs

from finetunelib._messages import type_and_line
from finetunelib._preserve import raw_random_states, set_raw_random_states
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of
from finetunelib.data._order import rows_of
from finetunelib.data._samples import Collate, CollateFunction, raising
from finetunelib.data._sizes import has_short_last_batch, last_batch_size
from finetunelib.errors import DataError


@dataclass(frozen=True, slots=True)
class _Peeked:
    """An epoch whose first batch was read."""

    first: Batch
    rest: Iterator[Batch]
    random: dict[str, Any]


class ReadyBatches:
    """An iterable of ready batches: a DataLoader, a list of batches, a generator."""

    samples = None
    batch_size = None

    def __init__(
        self, batches: Iterable[Batch], name: str = "data", ordered: Iterable[Batch] | None = None
    ) -> None:
        """Create a source.

        Args:
            batches: The batches.
            name: The name of the data, for messages.
            ordered: The same batches in the order of the data; `None` are `batches` themselves.
        """
        self._batches = batches
        self._ordered = batches if ordered is None else ordered
        self._name = name
        self._epoch_start_states: list[Tensor] = []
        self._resume_states: list[Tensor] | None = None
        self._peeked: _Peeked | None = None
        self._epochs_read = 0
        # An iterable that returns the same iterator twice is empty the second time. A DataLoader
        # is not tested, because an iterator of it starts its workers.
        known = isinstance(batches, DataLoader | list)
        self.replayable = known or iter(batches) is not iter(batches)

    @property
    def steps(self) -> int | None:
        """The number of batches in an epoch, or `None` if unknown."""
        try:
            return len(self._batches)  # type: ignore[arg-type]  # a TypeError means that it has no length
        except TypeError:
            return None

    @property
    def last_batch_size(self) -> int | None:
        """The number of samples in the last batch, or `None` if unknown."""
        return last_batch_size(self._batches)

    def why_not_resumable(self, *, inside_epoch: bool) -> str | None:
        """Return why a training run cannot be resumed exactly, or `None` if it can."""
        if not self.replayable and inside_epoch:
            return (
                "The training data is an iterator, which cannot be read again up to the batch "
                "where the run stopped. Pass a list, a Dataset or a DataLoader."
            )
        if (
            isinstance(self._batches, DataLoader)
            and self._batches.persistent_workers
            and not _is_stateful(self._batches)
        ):
            return (
                "The training data is a DataLoader with `persistent_workers=True`, whose workers "
                "keep random states between epochs that a new process cannot restore. Pass "
                "`persistent_workers=False`, or a StatefulDataLoader of torchdata."
            )
        return None

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches as the source orders them, without the first `skip`.

        Raises:
            DataError: If the data can be read only once, and was.
        """
        if self._peeked is not None:
            peeked, self._peeked = self._peeked, None
            set_raw_random_states(peeked.random)
            return chain([peeked.first], peeked.rest)
        self._check_again()
        for sampler in self._samplers():
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(number)
        self._epoch_start_states = self._generator_states()
        if self._resume_states is None:
            return without(skip, self._read(iter(self._batches), self.steps))
        states, self._resume_states = self._resume_states, None
        return self._resumed(self._read(iter(self._batches), None), states)

    def _check_again(self) -> None:
        """Count an epoch.

        Raises:
            DataError: If it is the second one of data that can be read only once.
        """
        self._epochs_read += 1
        if not self.replayable and self._epochs_read > 1:
            raise DataError(
                f"`{self._name}` is an iterator that has ended, and it can be read only once. Pass "
                "epochs=1 to train on what it yields, or a list, a DataLoader or another iterable."
            )

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, and keep it for `epoch`.

        To open a DataLoader twice would draw from its generators and start its workers twice.
        """
        batches = self.epoch(number)
        first = first_of(batches, name)
        self._peeked = _Peeked(first, batches, raw_random_states())
        return first

    def _resumed(self, batches: Iterator[Batch], states: list[Tensor]) -> Iterator[Batch]:
        """Yield the batches of a source that restores its own position."""
        first = list(islice(batches, 1))
        self._set_generators(states)  # after the first batch: it draws from the generators
        yield from chain(first, batches)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches as the source orders them."""
        return self._read(iter(self._ordered), self.steps)

    def rows(self) -> int | None:
        """Return the number of samples of a DataLoader, or `None` if it is unknown.

        Raises:
            DataError: If a DataLoader does not yield each sample once in the order of its dataset.
        """
        return rows_of(self._ordered, self._name)

    def has_short_last_batch(self) -> bool:
        """Return whether a batch is known to be shorter than the others."""
        return has_short_last_batch(self._batches)

    def _read(self, batches: Iterator[Batch], announced: int | None) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            DataError: If a DataLoader fails, or there are fewer batches than announced.
        """
        count = 0
        try:
            for batch in raising(batches):
                count += 1
                yield batch
        except Exception as error:
            place = f"batch {count} of `{self._name}`"
            if isinstance(error, DataError) or not isinstance(self._batches, DataLoader):
                error.add_note(f"While {place} was read, counted from 0.")
                raise
            raise DataError(
                f"The DataLoader failed at {place} (counted from 0): {_reason(error)}"
            ) from error
        if announced is not None and count < announced:
            raise DataError(
                f"`{self._name}` ({type(self._batches).__name__}) announced {announced} batches by "
                f"its length, but yielded {count}. Its dataset raises StopIteration, or its length "
                "is wrong."
            )

    def all_targets(self) -> Tensor | None:
        """Return `None`: the targets are inside the batches."""
        return None

    def state_dict(self, *, inside_epoch: bool) -> dict[str, Any]:
        """Return the states of a DataLoader's generators, and the source's own state if any.

        A source without its own state is read again from the start of the epoch, so the states
        of its generators are those of the epoch's start.
        """
        # A StatefulDataLoader starts each epoch without its state.
        stateful = _is_stateful(self._batches) and (
            inside_epoch or not isinstance(self._batches, DataLoader)
        )
        from_start = inside_epoch and not stateful
        states = self._epoch_start_states if from_start else self._generator_states()
        state: dict[str, Any] = {"generators": states}
        if stateful and _is_stateful(self._batches):
            state["source"] = self._batches.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, for the next epoch."""
        states = state.get("generators", [])
        if len(states) != len(self._generators()):
            warnings.warn(
                f"The checkpoint contains the states of {len(states)} random generators of the "
                f"data, which has {len(self._generators())} here. Its order starts from scratch.",
                stacklevel=2,
            )
            return
        self._set_generators(states)
        if "source" in state and _is_stateful(self._batches):
            self._batches.load_state_dict(state["source"])
            self._resume_states = states

    def _set_generators(self, states: list[Tensor]) -> None:
        for generator, values in zip(self._generators(), states, strict=True):
            generator.set_state(values)

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _generators(self) -> list[torch.Generator]:
        owners = (self._batches, *self._samplers()) if self._samplers() else ()
        found = (getattr(owner, "generator", None) for owner in owners)
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def _samplers(self) -> tuple[object, ...]:
        """Return the samplers of a DataLoader, which determine its order."""
        if not isinstance(self._batches, DataLoader):
            return ()
        batch_sampler = self._batches.batch_sampler
        return (self._batches.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))


def batch_stream(
    dataset: IterableDataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    collate_fn: CollateFunction | None = None,
    name: str = "data",
) -> ReadyBatches:
    """Return batches of an iterable dataset, which yields its samples in its own order."""

    def loader(workers: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=Collate(collate_fn, name),
        )

    # Several workers yield their batches in turns, and each the same samples if the dataset does
    # not divide them.
    ordered = loader(1) if num_workers > 1 else None
    return ReadyBatches(loader(num_workers), name, ordered)


def _reason(error: Exception) -> str:
    """Return the original text of an error of a DataLoader, with what to do about it."""
    lines = str(error).strip().splitlines()
    # A worker's error is reported as its traceback, whose last line is the original text.
    from_worker = len(lines) > 1 and lines[0].startswith("Caught ")
    text = lines[-1] if from_worker else type_and_line(error)
    if "stack expects each tensor" in text or "default_collate" in text or "equal size" in text:
        return (
            f"{text}. Convert the samples to tensors of one size in the dataset's transform, or "
            "pass the DataLoader a `collate_fn`."
        )
    return text


class _Stateful(Protocol):
    """A source that saves its position in an epoch, such as torchdata's StatefulDataLoader."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def _is_stateful(source: object) -> TypeIs[_Stateful]:
    return callable(getattr(source, "state_dict", None)) and callable(
        getattr(source, "load_state_dict", None)
    )


def without(skip: int, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read the first `skip` batches now, and return the iterator over the rest."""
    for _ in range(skip):
        next(batches, None)
    return batches
