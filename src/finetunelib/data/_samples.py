"""Reads the samples of a dataset and combines them into batches; errors name the sample.

A failure in a worker process is returned in place of the batch. Raised there, it would arrive
without its cause, and its message would be a traceback.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from finetunelib._messages import type_and_line
from finetunelib._typing import Batch, SizedDataset
from finetunelib.errors import DataError, InvalidTypeError

#: Combines the samples of a dataset into a batch.
CollateFunction: TypeAlias = Callable[[list[Any]], Batch]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that is raised when the batch is due.

    Attributes:
        message: What failed, with the index of the sample.
        error: The exception of the user's code.
    """

    message: str
    error: Exception

    @classmethod
    def of(cls, message: str, error: Exception) -> Failure:
        """Return a failure whose exception can be sent from a worker process."""
        if get_worker_info() is None:
            return cls(message, error)
        text = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - an exception of the user's may fail in any way
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"In a worker process:\n{text}")
        return cls(message, error)


class _Samples(list[Any]):
    """The samples of a batch, with their indices in the dataset."""

    def __init__(self, samples: Iterable[Any], indices: list[int]) -> None:
        super().__init__(samples)
        self.indices = indices


class LocatedSamples(Dataset[Any]):
    """The samples of a dataset, for a DataLoader."""

    def __init__(self, dataset: SizedDataset[Any], name: str) -> None:
        self._dataset = dataset
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: list[int]) -> _Samples | Failure:
        """Return the samples with these indices, or why one of them could not be read."""
        read_several = getattr(self._dataset, "__getitems__", None)
        if callable(read_several):
            return self._together(read_several, indices)
        samples = []
        for index in indices:
            try:
                samples.append(self._dataset[index])
            except Exception as error:  # noqa: BLE001 - user code may raise anything
                return self._failure(index, error)
        return _Samples(samples, indices)

    def _together(
        self, read_several: Callable[[list[int]], Any], indices: list[int]
    ) -> _Samples | Failure:
        try:
            samples = list(read_several(indices))
        except Exception as error:  # noqa: BLE001
            for index in indices:
                try:
                    read_several([index])
                except Exception as single:  # noqa: BLE001
                    return self._failure(index, single)
            return Failure.of(f"Samples {indices} of {self._of(error)}", error)
        if len(samples) != len(indices):
            kind = type(self._dataset).__name__
            return Failure(
                f"`{kind}.__getitems__` returned {len(samples)} samples for the {len(indices)} "
                f"indices {indices} of `{self._name}`. It must return one sample for each index.",
                IndexError(f"{len(samples)} samples for {len(indices)} indices"),
            )
        return _Samples(samples, indices)

    def _failure(self, index: int, error: Exception) -> Failure:
        return Failure.of(f"Sample {index} of {self._of(error)}", error)

    def _of(self, error: Exception) -> str:
        kind = type(self._dataset).__name__
        return f"`{self._name}` ({kind}) could not be read: {type_and_line(error)}"


class Collate:
    """Combines samples into a batch, with the user's function or with `collate`."""

    def __init__(self, function: CollateFunction | None, name: str) -> None:
        self._function = function
        self._name = name

    def __call__(self, samples: list[Any] | Failure) -> Batch | Failure:
        """Return the batch, or why it could not be made."""
        if isinstance(samples, Failure):
            return samples
        indices = samples.indices if isinstance(samples, _Samples) else None
        try:
            return (self._function or collate)(list(samples))
        except Exception as error:  # noqa: BLE001 - user code may raise anything
            which = "" if indices is None else f" {_shortened(indices)}"
            if self._function is not None:
                message = f"`collate_fn` failed on the samples{which} of `{self._name}`: "
                return Failure.of(message + type_and_line(error), error)
            # Imported here because the package should stay fast to import.
            from finetunelib.data._odd_sample import why_not_one_batch

            why = why_not_one_batch(samples, indices, self._name)
            message = f"The samples{which} of `{self._name}` cannot be combined into a batch: "
            return Failure.of(why or f"{message}{type_and_line(error)}. Pass `collate_fn`.", error)


def collate(samples: list[Any]) -> Batch:
    """Return samples as one batch, like `default_collate`, except for lists inside mappings.

    Hugging Face datasets store rows as lists of numbers; `default_collate` would transpose them.
    """
    if isinstance(samples[0], Mapping):
        samples = [{name: _row(value) for name, value in sample.items()} for sample in samples]
    return default_collate(samples)


def check_collate(collate_fn: object) -> None:
    """Check the `collate_fn` of a Trainer.

    Raises:
        InvalidTypeError: If it is neither `None` nor a function.
    """
    if collate_fn is not None and not callable(collate_fn):
        raise InvalidTypeError(
            "`collate_fn` must be a function from a list of samples to a batch, got "
            f"{collate_fn!r} ({type(collate_fn).__name__})."
        )


def raising(batches: Iterator[Batch | Failure]) -> Iterator[Batch]:
    """Yield batches.

    Raises:
        DataError: If one of them is a failure.
    """
    for batch in batches:
        if isinstance(batch, Failure):
            raise DataError(batch.message) from batch.error
        yield batch


def _row(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) else value


def _shortened(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return f"{shown}, ..." if len(indices) > 8 else shown
