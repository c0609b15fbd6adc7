"""Datasets read into memory once, so that an epoch costs no per-sample work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from finetunelib._messages import readable_size
from finetunelib._preserve import random_state_preserved
from finetunelib._progress import Progress, choose_progress
from finetunelib._public import public
from finetunelib._typing import SizedDataset
from finetunelib.data._tensors import is_tensor_like
from finetunelib.errors import DataError, EmptyDataError, InvalidTypeError

#: How many samples are read twice. A random flip is the hardest to see: it repeats itself half
#: the time, and hides from all of these once in 65,536 datasets.
_READ_TWICE = 16


@public("finetunelib.data")
class InMemoryDataset(TensorDataset):
    """A dataset whose samples lie in memory, as `in_memory` returns it.

    Attributes:
        tensors: The inputs and targets (or whatever a sample consists of), one row a sample.
        batch_transform: What the Trainer does with a batch of inputs, or `None`.

    Example:
        See `in_memory`.
    """

    def __init__(
        self, *tensors: Tensor, batch_transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__(*tensors)
        self.batch_transform: Callable[[Tensor], Tensor] | None = batch_transform

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return one sample, transformed as in a batch of one."""
        sample = tuple(tensor[index] for tensor in self.tensors)
        if self.batch_transform is None:
            return sample
        return (self.batch_transform(sample[0].unsqueeze(0)).squeeze(0), *sample[1:])


@public("finetunelib.data")
def in_memory(
    dataset: SizedDataset[Any],
    *,
    batch_transform: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
) -> InMemoryDataset:
    """Read a dataset into memory once, as tensors that training cuts batches from.

    A dataset read sample by sample costs more than a small model's training (60% of an epoch of
    MNIST in a plain loop). This is for datasets whose transforms are deterministic.

    Args:
        dataset: A dataset with a length, whose samples are tuples of tensors, arrays, numbers or
            images, all of one shape and dtype; or such values alone. Images become
            `(channels, height, width)` tensors of uint8.
        batch_transform: What to do with a batch of inputs, `(batch, ...)`, when it is used; the
            place for a conversion that would take memory here, such as
            `lambda images: images.float() / 255`.
        progress: Whether to show how far the reading is, and how much memory it takes.

    Returns:
        The dataset in memory, in the dtypes of the samples (bytes stay bytes).

    Raises:
        EmptyDataError: The dataset is empty.
        DataError: Two readings of a sample differ (a random transform), samples differ in shape,
            or they would not fit into memory.
        InvalidTypeError: A sample holds something else than tensors, arrays, numbers or images.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from finetunelib.data import in_memory
        >>> images = torch.zeros(10, 1, 4, 4, dtype=torch.uint8)
        >>> dataset = in_memory(
        ...     TensorDataset(images, torch.arange(10)),
        ...     batch_transform=lambda images: images.float() / 255,
        ...     progress=False,
        ... )
        >>> dataset.tensors[0].dtype, dataset[0][0].dtype
        (torch.uint8, torch.float32)
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InvalidTypeError(
            "`dataset` must have a length and items, but is of type "
            f"{type(dataset).__name__}. A stream cannot be read into memory as a whole."
        )
    samples = len(dataset)
    if samples == 0:
        raise EmptyDataError(f"`dataset` ({type(dataset).__name__}) is empty.")
    with random_state_preserved():
        first = _read(dataset, 0)
        size = samples * sum(part.nbytes for part in first)
        _check_fits(size, samples)
        _check_repeatable(dataset, samples)
        columns = _read_all(dataset, samples, first, size, choose_progress(progress))
    return InMemoryDataset(*columns, batch_transform=batch_transform)


def _read_all(
    dataset: SizedDataset[Any],
    samples: int,
    first: tuple[Tensor, ...],
    size: int,
    progress: Progress,
) -> list[Tensor]:
    columns = [part.new_empty((samples, *part.shape)) for part in first]
    progress.start(f"reading into memory ({readable_size(size)})", samples)
    try:
        for index in range(samples):
            sample = _read(dataset, index)
            _check_alike(sample, first, index)
            for column, part in zip(columns, sample, strict=True):
                column[index] = part
            progress.advance()
    except BaseException:
        progress.abort()
        raise
    progress.finish(f"read {samples:,} samples into memory ({readable_size(size)})")
    return columns


def _read(dataset: SizedDataset[Any], index: int) -> tuple[Tensor, ...]:
    sample = dataset[index]
    parts = sample if isinstance(sample, tuple | list) else (sample,)
    return tuple(_as_tensor(part, index) for part in parts)


def _as_tensor(part: Any, index: int) -> Tensor:
    if hasattr(part, "getbands") and hasattr(part, "convert"):  # An image of PIL.
        from torchvision.transforms.functional import pil_to_tensor

        image: Tensor = pil_to_tensor(part)
        return image
    try:
        if is_tensor_like(part) or isinstance(part, int | float):
            return torch.as_tensor(part).detach()
        if hasattr(part, "__array__"):  # A number of numpy.
            return torch.as_tensor(part.__array__())
    except TypeError as error:  # torch has no such dtype.
        raise InvalidTypeError(f"Sample {index} cannot become a tensor: {error}") from error
    raise InvalidTypeError(
        f"Sample {index} holds a {type(part).__name__}; only tensors, arrays, numbers and images "
        "can lie in memory as tensors. Convert it in the dataset's transform."
    )


def _check_repeatable(dataset: SizedDataset[Any], samples: int) -> None:
    step = max(1, samples // _READ_TWICE)
    for index in range(0, samples, step)[:_READ_TWICE]:
        once, again = _read(dataset, index), _read(dataset, index)
        if not all(_same(a, b) for a, b in zip(once, again, strict=True)):
            raise DataError(
                f"Two readings of sample {index} differ, so the dataset holds a random transform, "
                "which would be frozen in memory. Leave it out here, or train from the dataset "
                "itself."
            )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _check_alike(sample: tuple[Tensor, ...], first: tuple[Tensor, ...], index: int) -> None:
    if [(part.shape, part.dtype) for part in sample] != [(p.shape, p.dtype) for p in first]:
        raise DataError(
            f"Sample {index} consists of {_describe(sample)}, but sample 0 of {_describe(first)}. "
            "Samples in memory need one shape; resize them in the dataset's transform."
        )


def _check_fits(size: int, samples: int) -> None:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return  # This system does not tell.
    if size > free:
        raise DataError(
            f"{samples:,} samples take {readable_size(size)} in memory, but only "
            f"{readable_size(free)} are free. Train from the dataset itself, or keep bytes and "
            "convert in `batch_transform`."
        )


def _describe(sample: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{part.dtype}{list(part.shape)}" for part in sample)
