"""Datasets that are read into memory once, which avoids work per sample in each epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from finetunelib._messages import readable_size, type_and_line
from finetunelib._preserve import random_state_preserved
from finetunelib._progress import Progress, choose_progress
from finetunelib._public import public
from finetunelib._typing import SizedDataset
from finetunelib.data._parts import (
    Part,
    PartLike,
    as_part,
    common_length,
    is_tensor_like,
    mapped_part,
)
from finetunelib.data._tensors import TensorBatches, batches_of_mapping
from finetunelib.errors import DataError, EmptyDataError, InvalidTypeError

#: The number of samples that are read twice. Each repeated read misses a random flip with
#: probability 1/2, so 16 of them miss it once in 65,536 datasets.
_READ_TWICE = 16


@public("finetunelib.data")
class InMemoryDataset(TensorDataset):
    """A dataset in memory, as returned by `in_memory`.

    Attributes:
        tensors: The inputs and targets (or other parts of a sample), one row per sample. A part of
            a sample that is a mapping is a dict of tensors.
        batch_transform: The function that the Trainer applies to a batch of inputs, or `None`.

    Example:
        See `in_memory`.
    """

    def __init__(
        self,
        *tensors: PartLike,
        batch_transform: Callable[[Any], Any] | None = None,  # Any: a tensor or a dict of them.
    ) -> None:
        parts = tuple(as_part(tensor, position) for position, tensor in enumerate(tensors))
        self._samples = common_length(parts)
        self.tensors: tuple[Any, ...] = parts  # Any: a tensor or a dict of them.
        self.batch_transform: Callable[[Any], Any] | None = batch_transform
        self._bare = False

    def __repr__(self) -> str:
        parts = tuple(mapped_part(_first, part) for part in self.tensors)
        return f"InMemoryDataset({len(self)} samples of {_describe(parts)})"

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Any:  # Any: a tuple, or a mapping as in the dataset.
        """Return one sample, transformed as a batch of one."""
        first, *others = (mapped_part(lambda t: t[index], part) for part in self.tensors)
        if self.batch_transform is not None:
            batch = self.batch_transform(mapped_part(lambda t: t.unsqueeze(0), first))
            first = mapped_part(lambda t: t.squeeze(0), batch)
        return first if self._bare else (first, *others)

    def _batches(self, batch_size: int, seed: int) -> TensorBatches:
        """Return batches of the samples."""
        make = batches_of_mapping if self._bare else TensorBatches
        return make(
            *self.tensors, batch_size=batch_size, seed=seed, batch_transform=self.batch_transform
        )


@public("finetunelib.data")
def in_memory(
    dataset: SizedDataset[Any],
    *,
    batch_transform: Callable[[Any], Any] | None = None,  # Any: a tensor or a dict of them.
    progress: bool = True,
) -> InMemoryDataset:
    """Read a dataset into memory once, as tensors that training slices into batches.

    Reading a dataset sample by sample can take longer than training a small model (60% of an
    epoch of MNIST in a plain loop). The dataset's transforms must be deterministic.

    Args:
        dataset: A dataset with a length. Its samples are tensors, arrays, numbers or images, or
            tuples or mappings of them, or tuples with mappings, all of the same shape and dtype.
            Images become `(channels, height, width)` tensors of uint8, and the lists of numbers in
            a mapping tensors.
        batch_transform: A function that is applied to each batch of inputs, `(batch, ...)`, when
            it is used. Use it for conversions that would take memory, such as
            `lambda images: images.float() / 255`.
        progress: Whether to show the progress of reading, and the memory that it takes.

    Returns:
        The dataset in memory, with the dtypes of the samples (bytes stay bytes).

    Raises:
        EmptyDataError: If the dataset is empty.
        DataError: If a sample cannot be read, reading one twice gives different results (a random
            transform), the samples differ in shape, or they do not fit into memory.
        InvalidTypeError: If a sample contains anything other than tensors, arrays, numbers or
            images.

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
            f"`dataset` must have a length and items, got {type(dataset).__name__}. An iterable "
            "dataset cannot be read into memory."
        )
    samples = len(dataset)
    if samples == 0:
        raise EmptyDataError(f"`dataset` ({type(dataset).__name__}) is empty.")
    with random_state_preserved():
        sample = _sample(dataset, 0)
        first = _parts(sample, 0)
        size = samples * sum(tensor.nbytes for tensor in _flat(first))
        _check_fits(size, samples)
        _check_repeatable(dataset, samples)
        columns = _read_all(dataset, samples, first, size, choose_progress(progress))
        found = InMemoryDataset(*columns, batch_transform=batch_transform)
        found._bare = isinstance(sample, Mapping)  # noqa: SLF001 - of this module
    return found


def _read_all(
    dataset: SizedDataset[Any],
    samples: int,
    first: tuple[Part, ...],
    size: int,
    progress: Progress,
) -> list[Part]:
    columns = [
        mapped_part(lambda tensor: tensor.new_empty((samples, *tensor.shape)), part)
        for part in first
    ]
    flat = _flat(columns)
    progress.start(f"reading into memory ({readable_size(size)})", samples)
    try:
        for index in range(samples):
            sample = _read(dataset, index)
            _check_alike(sample, first, index)
            for column, value in zip(flat, _flat(sample), strict=True):
                column[index] = value
            progress.advance()
    except BaseException:
        progress.abort()
        raise
    progress.finish(f"read {samples:,} samples into memory ({readable_size(size)})")
    return columns


def _read(dataset: SizedDataset[Any], index: int) -> tuple[Part, ...]:
    return _parts(_sample(dataset, index), index)


def _sample(dataset: SizedDataset[Any], index: int) -> Any:
    try:
        return dataset[index]
    except Exception as error:
        raise DataError(
            f"Sample {index} of `dataset` ({type(dataset).__name__}) could not be read: "
            f"{type_and_line(error)}"
        ) from error


def _parts(sample: Any, index: int) -> tuple[Part, ...]:
    parts = sample if isinstance(sample, tuple | list) else (sample,)
    return tuple(_as_part(part, index) for part in parts)


def _as_part(part: Any, index: int) -> Part:
    if not isinstance(part, Mapping):
        return _as_tensor(part, index)
    # Hugging Face datasets store rows as lists of numbers.
    rows = {n: torch.tensor(v) if isinstance(v, list) else v for n, v in part.items()}
    return {name: _as_tensor(value, index) for name, value in rows.items()}


def _flat(parts: Iterable[Part]) -> list[Tensor]:
    """Return the tensors of parts, those of a mapping in the order of their names."""
    flat: list[Tensor] = []
    for part in parts:
        flat += [part] if isinstance(part, Tensor) else [part[name] for name in sorted(part)]
    return flat


def _first(tensor: Tensor) -> Tensor:
    return tensor[0]


def _as_tensor(part: Any, index: int) -> Tensor:
    if hasattr(part, "getbands") and hasattr(part, "convert"):  # a PIL image
        from torchvision.transforms.functional import pil_to_tensor

        image: Tensor = pil_to_tensor(part)
        return image
    try:
        if is_tensor_like(part) or isinstance(part, int | float):
            return torch.as_tensor(part).detach()
        if hasattr(part, "__array__"):  # a numpy number
            return torch.as_tensor(part.__array__())
    except TypeError as error:  # torch has no such dtype
        raise InvalidTypeError(f"Sample {index} cannot become a tensor: {error}") from error
    raise InvalidTypeError(
        f"Sample {index} must consist of tensors, arrays, numbers or images, got "
        f"{type(part).__name__}. Convert it in the dataset's transform."
    )


def _check_repeatable(dataset: SizedDataset[Any], samples: int) -> None:
    step = max(1, samples // _READ_TWICE)
    for index in range(0, samples, step)[:_READ_TWICE]:
        once, again = _read(dataset, index), _read(dataset, index)
        if not all(_same(a, b) for a, b in zip(_flat(once), _flat(again), strict=True)):
            raise DataError(
                f"Reading sample {index} twice gave different results, so the dataset has a random "
                "transform, which would be applied only once. Remove it, or train on the dataset "
                "itself."
            )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _check_alike(sample: tuple[Part, ...], first: tuple[Part, ...], index: int) -> None:
    if list(map(_form, sample)) != list(map(_form, first)):
        raise DataError(
            f"Sample {index} consists of {_describe(sample)}, but sample 0 of {_describe(first)}. "
            "All samples must have the same shape; resize them in the dataset's transform."
        )


def _check_fits(size: int, samples: int) -> None:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return  # unknown on this system
    if size > free:
        raise DataError(
            f"{samples:,} samples take {readable_size(size)} in memory, but only "
            f"{readable_size(free)} are free. Train on the dataset itself, or keep bytes and "
            "convert in `batch_transform`."
        )


def _form(part: Part) -> object:
    """Return the shapes and dtypes of a part, which are the same in all samples."""
    if isinstance(part, Tensor):
        return part.shape, part.dtype
    return {name: (tensor.shape, tensor.dtype) for name, tensor in part.items()}


def _describe(sample: tuple[Part, ...]) -> str:
    return ", ".join(
        f"{part.dtype}{list(part.shape)}"
        if isinstance(part, Tensor)
        else "{" + ", ".join(f"{n!r}: {t.dtype}{list(t.shape)}" for n, t in part.items()) + "}"
        for part in sample
    )
