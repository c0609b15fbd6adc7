"""Reading samples while watching for what would differ in another epoch.

It runs where the samples are read, which may be a worker process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetunelib._typing import Batch
from finetunelib.data._samples import Collate, Failure, LocatedSamples

_DREW = (
    "reading the samples draws from the global random generators (a random transform), so each "
    "epoch has other samples"
)
_MIXED = "its samples differ in type or dtype"


class Watched(NamedTuple):
    """A batch, with what was noticed while it was read.

    Attributes:
        batch: The batch.
        form: The types and dtypes of its samples.
        problem: Why its samples cannot be kept, or `None`.
    """

    batch: Batch
    form: str
    problem: str | None


class WatchedSamples(Dataset[Any]):
    """The samples of a dataset, with whether reading them drew random numbers."""

    def __init__(self, samples: LocatedSamples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitems__(self, indices: list[int]) -> tuple[list[Any], bool] | Failure:
        """Return the samples, and whether a global random generator has moved."""
        before = _global_states()
        samples = self._samples.__getitems__(indices)
        if isinstance(samples, Failure):
            return samples
        return samples, not _same_states(before, _global_states())


class WatchedCollate:
    """Combines watched samples into a batch."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, read: tuple[list[Any], bool] | Failure) -> Watched | Failure:
        """Return the batch with what was noticed, or why it could not be made."""
        if isinstance(read, Failure):
            return read
        samples, drew = read
        forms = set(map(_form, samples))
        batch = self._collate(samples)
        if isinstance(batch, Failure):
            return batch
        problem = _DREW if drew else _MIXED if len(forms) > 1 else None
        return Watched(batch, min(forms), problem)


def _global_states() -> list[Any]:
    """Return the states of the global random generators that a dataset may draw from."""
    kind, keys, *others = np.random.get_state()  # noqa: NPY002 - the global one
    states = [torch.get_rng_state(), random.getstate(), keys, (kind, *others)]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return states


def _same_states(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(map(_same_state, before, after))


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other


def _form(sample: Any) -> str:
    """Return the types and dtypes in a sample, on which the dtype of a batch depends."""
    if isinstance(sample, Tensor | np.ndarray):
        return f"{type(sample).__name__} {sample.dtype}"
    if isinstance(sample, Mapping):
        return f"{{{', '.join(f'{key!r}: {_form(value)}' for key, value in sample.items())}}}"
    if isinstance(sample, tuple):
        return f"({', '.join(map(_form, sample))})"
    if isinstance(sample, list):  # Its length is part of the shape.
        return f"[{', '.join(sorted(set(map(_form, sample))))}]"
    return type(sample).__name__
