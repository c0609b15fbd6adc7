"""Samples that are both in the training data and in the validation data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from finetunelib.data._batches import Batches
from finetunelib.data._named import NamedBatches
from finetunelib.data._tensors import TensorBatches
from finetunelib.training._diagnosis.finding import Finding

#: The most samples of each that `fit` compares.
MOST_SAMPLES = 8192

#: The values of a sample that are compared first, from its middle.
_VALUES = 16

#: The most values that are read if these are too similar, and the most samples compared completely.
_MOST_VALUES, _MOST_COMPARED = 1 << 20, 256

#: The least fraction of samples that differ. Data of few distinct samples repeats them anyway.
_DISTINCT = 0.9

#: The least fraction of duplicates to report. Large data sets contain a few.
_LEAST = 0.01


@dataclass(frozen=True, slots=True)
class Comparison:
    """How validation samples compare with training samples.

    Attributes:
        found: The number of validation samples whose inputs are those of a training sample.
        val: The number of validation samples that were compared.
        train: The number of training samples that they were compared with.
        all_val: The number of all validation samples.
        all_train: The number of all training samples.
    """

    found: int
    val: int
    train: int
    all_val: int
    all_train: int

    def __str__(self) -> str:
        return (
            f"{self.val} of all {self.all_val} validation samples were compared with {self.train} "
            f"of all {self.all_train} training samples."
        )


def compare_data(
    train: Batches, val: Batches | NamedBatches | None, most: int
) -> Comparison | None:
    """Compare data in memory, or return `None` if it is not, or is the same tensor.

    The same tensor for both is an intended test. Of several sets of validation data, the
    comparison of the one with the most duplicates is returned.
    """
    if isinstance(val, NamedBatches):
        every = [compare_data(train, batches, most) for batches in val.sets.values()]
        return max((c for c in every if c is not None), key=lambda c: c.found, default=None)
    if not isinstance(train, TensorBatches) or not isinstance(val, TensorBatches):
        return None
    one, other = train.tensors[0], val.tensors[0]
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return None  # Several inputs by name.
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return None
    return compare(one, other, most)


def duplicate_findings(compared: Comparison | None) -> Iterator[Finding]:
    """Yield the finding about validation samples that are in the training data."""
    if compared is not None and compared.found >= max(1, _LEAST * compared.val):
        yield Finding(
            "validation-in-training-data",
            "certain",
            f"{compared.found} validation samples have the inputs of a training sample; {compared} "
            "The validation measures how well they were memorized.",
            "Split the data before it is repeated or augmented, and remove duplicates first.",
        )


def compare(train: Tensor, val: Tensor, most: int) -> Comparison | None:
    """Compare the inputs of samples, or return `None` if they are too similar for that.

    Args:
        train: The inputs of the training data.
        val: The inputs of the validation data.
        most: The most samples of each to compare. They are evenly spaced.
    """
    if train.shape[1:] != val.shape[1:] or train.dtype != val.dtype or train.device != val.device:
        return None
    if train.is_complex() or not train[0].numel() or train.layout != torch.strided:
        return None
    if train.is_floating_point() and train.element_size() == 1:
        return None  # Formats of 8 bits.
    one, other = (_rows(values, most) for values in (train, val))
    width = one[0].shape[1]
    digests = _digests(*one, width, _VALUES), _digests(*other, width, _VALUES)
    if width > _VALUES and not _are_distinct(digests[0]):
        fewer = max(1, _MOST_VALUES // width)
        one, other = (_rows(values, min(most, fewer)) for values in (train, val))
        digests = _digests(*one, width, width), _digests(*other, width, width)
    found = 0
    # Mostly, nothing is found, which sets of numbers tell faster than `isin`.
    if not set(digests[0].tolist()).isdisjoint(digests[1].tolist()):
        same = torch.isin(digests[1], digests[0])
        if not _are_distinct(digests[0]):
            return None
        found = _confirmed(one, other, digests, same)
    return Comparison(found, len(digests[1]), len(digests[0]), len(val), len(train))


def _rows(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the values of all samples as rows, and the indices of those to compare, in order."""
    count = len(values)
    chosen = (
        torch.arange(count)
        if count <= most
        else torch.linspace(0, count - 1, most, dtype=torch.float64).long()
    )
    return values.detach().flatten(1) if values.dim() > 1 else values.detach()[:, None], chosen


def _digests(rows: Tensor, chosen: Tensor, width: int, values: int) -> Tensor:
    """Return a number for each of some samples, from values in the middle of it."""
    start = max(0, (width - values) // 2)
    block = rows[:, start : start + values]
    if len(chosen) < len(rows):
        block = block[chosen.to(rows.device)]
    if block.is_floating_point():
        kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        block = block.contiguous().view(kinds[block.element_size()])
    return (block.long() * _factors(block.shape[1]).to(block.device)).sum(1)


@lru_cache(maxsize=4)
def _factors(number: int) -> Tensor:
    """Return odd numbers, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (number,), generator=generator) * 2 + 1


def _are_distinct(digests: Tensor) -> bool:
    found: Tensor = torch.unique(digests)
    return found.numel() >= _DISTINCT * len(digests)


def _confirmed(
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
    digests: tuple[Tensor, Tensor],
    same: Tensor,
) -> int:
    """Return how many validation samples with a known digest equal a training sample.

    If there are many, some are compared completely, and the number is the same fraction of all.
    """
    places = {digest: place for place, digest in enumerate(digests[0].tolist())}
    candidates = same.nonzero().flatten().tolist()
    tried = candidates[:: -(-len(candidates) // _MOST_COMPARED)]
    equal = sum(
        torch.equal(
            other[0][int(other[1][place])],
            one[0][int(one[1][places[int(digests[1][place])]])],
        )
        for place in tried
    )
    return equal * len(candidates) // len(tried)
