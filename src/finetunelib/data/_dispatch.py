"""The conversion of a user's data to batches, by its type."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch.utils.data import Dataset, IterableDataset, TensorDataset

from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.data._datasets import DatasetBatches
from finetunelib.data._in_memory import InMemoryDataset
from finetunelib.data._parts import is_part, is_tensor_like
from finetunelib.data._ready import ReadyBatches, batch_stream
from finetunelib.data._samples import CollateFunction
from finetunelib.data._tensors import TensorBatches, batches_of_mapping
from finetunelib.errors import EmptyDataError, InvalidTypeError


def as_batches(  # noqa: PLR0911 - one return per type of data
    data: Any,
    *,
    name: str,
    batch_size: int,
    num_workers: int,
    seed: int,
    pin_memory: bool = False,
    inputs_only: bool = False,
    collate_fn: CollateFunction | None = None,
) -> Batches:
    """Return a user's data as batches.

    Args:
        data: `TensorBatches`, which keep their own batch size and seed; a tuple (inputs, targets)
            of tensors or arrays, or of mappings of them by name; a Dataset, or anything else with a
            length and items that is not a list or tuple; any other iterable, including lists and
            DataLoaders, which yields ready batches. With `inputs_only`, also a single tensor,
            array, or mapping of them.
        name: The name of the argument, for messages.
        batch_size: The number of samples per batch, unless the data yields ready batches.
        num_workers: The number of processes that read a dataset; 0 reads it in this process.
        seed: The seed of the order of an epoch, together with its number.
        pin_memory: Whether to copy batches of a dataset into pinned memory.
        inputs_only: Whether data without targets is allowed.
        collate_fn: Makes a batch of the samples of a dataset. `None` stacks them.

    Raises:
        InvalidTypeError: If the data is of none of these types.
        EmptyDataError: If its length is 0.
        DataError: If inputs and targets have different lengths.
    """
    if isinstance(data, TensorBatches):
        return data
    if is_tensor_like(data):
        if inputs_only:
            return TensorBatches(data, batch_size=batch_size, seed=seed)
        raise InvalidTypeError(
            f"`{name}` must contain targets too, got a single tensor. Pass (inputs, targets)."
        )
    if isinstance(data, Mapping) and not isinstance(data, Dataset):
        return _mapping(data, name, batch_size, seed, inputs_only=inputs_only)
    if isinstance(data, tuple) and len(data) == 2 and all(map(is_part, data)):
        _check_no_batches(data, name)
        return TensorBatches(*data, batch_size=batch_size, seed=seed)
    # Exact types only: a subclass may change its samples.
    if type(data) is TensorDataset and collate_fn is None:
        return TensorBatches(*data.tensors, batch_size=batch_size, seed=seed)
    if type(data) is InMemoryDataset and collate_fn is None:
        return data._batches(batch_size, seed)  # noqa: SLF001 - of this package
    if isinstance(data, IterableDataset):
        return batch_stream(
            data,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=collate_fn,
            name=name,
        )
    _check_iterable(data, name)
    if _is_dataset(data):
        return DatasetBatches(
            data,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            pin_memory=pin_memory,
            collate_fn=collate_fn,
            name=name,
        )
    return ReadyBatches(cast("Iterable[Batch]", data), name)


def _mapping(
    data: Mapping[Any, Any], name: str, batch_size: int, seed: int, *, inputs_only: bool
) -> Batches:
    """Return batches of a mapping of tensors, which is inputs only."""
    if inputs_only and (not data or any(map(is_tensor_like, data.values()))):
        return batches_of_mapping(data, batch_size=batch_size, seed=seed)
    tensors = bool(data) and all(map(is_tensor_like, data.values()))
    if tensors and "labels" in data:
        advice = (
            "Pass (inputs, targets): `({name: value for name, value in data.items() if name != "
            '"labels"}, data["labels"])`.'
        )
    elif tensors:
        advice = "Pass the targets too: `(inputs, targets)`, where `inputs` is this mapping."
    else:
        advice = "Pass one of its values, such as a Dataset, or a tuple (inputs, targets)."
    raise InvalidTypeError(
        f"`{name}` must contain inputs and targets, got a {type(data).__name__} with the keys "
        f"{', '.join(map(repr, data)) or '(none)'}. {advice}"
    )


def _check_no_batches(data: tuple[Any, Any], name: str) -> None:
    """Raise if a tuple consists of two mappings with labels, which are not inputs and targets."""
    if all(isinstance(part, Mapping) and "labels" in part for part in data):
        raise InvalidTypeError(
            f"`{name}` is a tuple of two mappings that both contain `labels`, so they are not "
            "inputs and targets. Pass ready batches as a list."
        )


def _check_iterable(data: Any, name: str) -> None:
    """Check that data is a dataset or an iterable of batches, and is not empty."""
    if advice := _advice(data):
        raise InvalidTypeError(f"`{name}` is {_describe(data)}. {advice}")
    if isinstance(data, tuple | str | bytes | dict) or not _is_iterable(data):
        raise InvalidTypeError(
            f"`{name}` must be a tuple of two tensors (inputs, targets), a Dataset, a DataLoader "
            f"or another iterable of batches, got {_describe(data)}."
        )
    if isinstance(data, Dataset) and not hasattr(data, "__len__"):
        raise InvalidTypeError(
            f"`{name}` ({type(data).__name__}) is a Dataset without `__len__`, so its order cannot "
            "be shuffled. Give it a length, or derive it from IterableDataset."
        )
    if _length(data) == 0:
        raise EmptyDataError(f"`{name}` is empty: {_describe(data)} of length 0.")


def _advice(data: Any) -> str | None:
    """Return what to write instead of data of a frequent but unsupported type, or `None`."""
    if isinstance(data, str | os.PathLike):
        return (
            "The Trainer does not read files. For a folder with one subfolder of images for each "
            "class, pass torchvision.datasets.ImageFolder(folder, transform=...)."
        )
    if isinstance(data, tuple) and len(data) == 2 and any(map(_is_table, data)):
        parts = ", ".join(
            f'{part}.to_numpy("{dtype}")' if _is_table(value) else part
            for part, dtype, value in zip(
                ("inputs", "targets"), ("float32", "int64"), data, strict=True
            )
        )
        return f"Pass arrays: `({parts})`."
    if _is_table(data):
        return (
            'Pass arrays: `(table[inputs].to_numpy("float32"), table[target].to_numpy())`, or for '
            '`predict` only `table.to_numpy("float32")`.'
        )
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, list) for part in data):
        return "Pass tensors: `(torch.tensor(inputs), torch.tensor(targets))`."
    return None


def _is_table(value: object) -> bool:
    """Return whether a value is a data frame or a column of pandas, polars or pyarrow."""
    return callable(getattr(value, "to_numpy", None)) and not isinstance(value, Dataset)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None  # A DataLoader of an IterableDataset has `__len__` but no length.


def _is_dataset(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, list)


def _is_iterable(data: Any) -> bool:
    return isinstance(data, Iterable) or hasattr(data, "__getitem__")


def _describe(data: object) -> str:
    if isinstance(data, tuple):
        parts = ", ".join(type(part).__name__ for part in data)
        return f"a tuple ({parts})"
    return f"an object of type {type(data).__name__}"
