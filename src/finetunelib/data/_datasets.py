"""Batches of datasets, and of iterables that yield ready batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate
from typing_extensions import TypeIs

from finetunelib._preserve import derive_seed, random_states, set_random_states
from finetunelib._typing import Batch, SizedDataset
from finetunelib.data._batch import first_of
from finetunelib.data._batches import SeededBatches


class DatasetBatches(SeededBatches):
    """Batches of a dataset with a length, read by a PyTorch DataLoader.

    The order and the workers' seeds depend only on (seed, epoch).
    """

    def __init__(
        self,
        dataset: SizedDataset[Any],
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = dataset
        self.batch_size = batch_size
        self._num_workers = num_workers
        self._seed = seed
        self._pin_memory = pin_memory

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self._dataset)

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self._dataset) // self.batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, shuffled, without the first `skip`."""
        order, generator = self._order(number)
        if self._num_workers:
            # Read the skipped batches too: a worker's random state depends on them.
            return _without(skip, iter(self._loader(order, generator)))
        return iter(self._loader(order[skip * self.batch_size :], generator))

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, which `epoch` will yield again.

        If the data is read by workers, one of them reads it: a dataset may open its files at the
        first read, and a process must not inherit them.
        """
        order, generator = self._order(number)
        workers = min(1, self._num_workers)
        loader = self._loader(order[: self.batch_size], generator, num_workers=workers)
        return first_of(iter(loader), name)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the dataset."""
        # The loader draws a seed for its workers. With its own generator, evaluation does not
        # change the global random state.
        generator = torch.Generator().manual_seed(self._seed)
        return iter(self._loader(range(len(self._dataset)), generator))

    def all_targets(self) -> Tensor | None:
        """Return `None`: collecting the targets would be a pass over the data."""
        return None

    def _order(self, number: int) -> tuple[list[int], torch.Generator]:
        """Return the shuffled indices of an epoch, and the generator that shuffled them."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        return torch.randperm(len(self._dataset), generator=generator).tolist(), generator

    def _loader(
        self, order: Iterable[int], generator: torch.Generator, num_workers: int | None = None
    ) -> Iterable[Batch]:
        return DataLoader(
            self._dataset,  # type: ignore[arg-type]  # it needs a length and items only
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self._num_workers if num_workers is None else num_workers,
            generator=generator,
            pin_memory=self._pin_memory,
            collate_fn=collate,
        )


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

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._epoch_start_states: list[Tensor] = []
        self._resume_states: list[Tensor] | None = None
        self._peeked: _Peeked | None = None
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
        """Yield the batches as the source orders them, without the first `skip`."""
        if self._peeked is not None:
            peeked, self._peeked = self._peeked, None
            set_random_states(peeked.random)
            return chain([peeked.first], peeked.rest)
        for sampler in self._samplers():
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(number)
        self._epoch_start_states = self._generator_states()
        if self._resume_states is None:
            return _without(skip, iter(self._batches))
        states, self._resume_states = self._resume_states, None
        return self._resumed(iter(self._batches), states)

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, and keep it for `epoch`.

        To open a DataLoader twice would draw from its generators and start its workers twice.
        """
        batches = self.epoch(number)
        first = first_of(batches, name)
        self._peeked = _Peeked(first, batches, random_states())
        return first

    def _resumed(self, batches: Iterator[Batch], states: list[Tensor]) -> Iterator[Batch]:
        """Yield the batches of a source that restores its own position."""
        first = list(islice(batches, 1))
        self._set_generators(states)  # after the first batch: it draws from the generators
        yield from chain(first, batches)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches as the source orders them."""
        return iter(self._batches)

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
    dataset: IterableDataset[Any], *, batch_size: int, num_workers: int, pin_memory: bool
) -> ReadyBatches:
    """Return batches of an iterable dataset, which yields its samples in its own order."""
    return ReadyBatches(
        DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=collate,
        )
    )


def collate(samples: list[Any]) -> Batch:
    """Return samples as one batch, like `default_collate`, except for lists inside mappings.

    Hugging Face datasets store rows as lists of numbers; `default_collate` would transpose them.
    """
    if isinstance(samples[0], Mapping):
        samples = [{name: _row(value) for name, value in sample.items()} for sample in samples]
    return default_collate(samples)


class _Stateful(Protocol):
    """A source that saves its position in an epoch, such as torchdata's StatefulDataLoader."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def _is_stateful(source: object) -> TypeIs[_Stateful]:
    return callable(getattr(source, "state_dict", None)) and callable(
        getattr(source, "load_state_dict", None)
    )


def _without(skip: int, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read the first `skip` batches now, and return the iterator over the rest."""
    for _ in range(skip):
        next(batches, None)
    return batches


def _row(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) else value
