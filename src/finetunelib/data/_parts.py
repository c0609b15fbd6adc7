"""The parts of data in memory, each a tensor or a dict of tensors with one row per sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeIs

from finetunelib._typing import TensorLike
from finetunelib.errors import DataError, EmptyDataError, InvalidTypeError

#: The inputs or the targets of all samples, or of a batch.
Part: TypeAlias = Tensor | dict[str, Tensor]

#: What users pass as a part.
PartLike: TypeAlias = TensorLike | Mapping[str, TensorLike]


def is_tensor_like(value: object) -> TypeIs[TensorLike]:
    """Return whether `value` is a tensor or a numpy array."""
    return isinstance(value, Tensor | np.ndarray)


def is_part(value: object) -> TypeIs[PartLike]:
    """Return whether `value` is a tensor, an array, or a mapping of any values."""
    return isinstance(value, Tensor | np.ndarray | Mapping)


def as_part(value: object, position: int) -> Part:
    """Return a tensor or array as a tensor, and a mapping as a dict of tensors.

    Args:
        value: The part.
        position: Its number in the data, for messages.

    Raises:
        InvalidTypeError: If it is of another type, or a name is not a string.
        EmptyDataError: If it is a mapping without entries.
    """
    if not isinstance(value, Mapping):
        return as_tensor(value)
    if not value:
        raise EmptyDataError(
            f"The {_name(position)} are an empty mapping. Give each tensor the name of an argument."
        )
    part: dict[str, Tensor] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise InvalidTypeError(
                f"The names of the {_name(position)} must be strings, the names of arguments, got "
                f"{name!r}."
            )
        try:
            part[name] = as_tensor(entry)
        except InvalidTypeError as error:
            raise InvalidTypeError(f"`{_name(position)}[{name!r}]`: {error}") from error
    return part


def as_tensor(value: object) -> Tensor:
    """Return a tensor detached, or a numpy array as a tensor that shares its memory.

    Raises:
        InvalidTypeError: If `value` is neither, or an array of a dtype that PyTorch lacks.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if is_tensor_like(value):
        try:
            with warnings.catch_warnings():
                # A read-only array, such as a memory map, is only read.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                return torch.as_tensor(value)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(
                f"This numpy array of dtype {value.dtype} cannot be converted to a tensor: {error} "
                "Copy it first, such as with np.ascontiguousarray(array, np.float32)."
            ) from error
    raise InvalidTypeError(
        f"Expected a tensor or a numpy array, got {type(value).__name__}. "
        "Convert it with torch.tensor(...)."
    )


def mapped_part(function: Callable[[Tensor], Tensor], part: Part) -> Part:
    """Return a part with a function applied to its tensors."""
    if isinstance(part, Tensor):
        return function(part)
    return {name: function(tensor) for name, tensor in part.items()}


def shapes_of_part(part: Part) -> str:
    """Return the shapes of a part, for messages."""
    if isinstance(part, Tensor):
        return str(tuple(part.shape))
    return "{" + ", ".join(f"{name!r}: {tuple(t.shape)}" for name, t in part.items()) + "}"


def common_length(parts: tuple[Part, ...]) -> int:
    """Return the number of samples.

    Raises:
        EmptyDataError: If there is no part or no sample.
        DataError: If the lengths of the tensors differ, or one is a single number.
    """
    if not parts:
        raise EmptyDataError("TensorBatches needs at least one tensor, got none.")
    named = list(_named_tensors(parts))
    for name, tensor in named:
        if tensor.dim() == 0:
            raise DataError(
                f"{name} of the data is a single number. "
                "Data needs one row per sample: (samples, ...)."
            )
    lengths = [len(tensor) for _, tensor in named]
    if len(set(lengths)) > 1:
        raise DataError(_different(parts, named))
    if lengths[0] == 0:
        raise EmptyDataError(
            f"The data contains no samples: the shape of the inputs is {shapes_of_part(parts[0])}."
        )
    return lengths[0]


def _different(parts: tuple[Part, ...], named: list[tuple[str, Tensor]]) -> str:
    lengths = [len(tensor) for _, tensor in named]
    if any(isinstance(part, dict) for part in parts):
        rows = ", ".join(
            f"{name} {length}" for (name, _), length in zip(named, lengths, strict=True)
        )
        return (
            f"All inputs and targets must have one row per sample, got different numbers of rows: "
            f"{rows}."
        )
    shapes = " and ".join(map(shapes_of_part, parts))
    return (
        f"Inputs and targets must have one row per sample each, got {lengths} rows "
        f"(shapes {shapes}). Pass as many targets as inputs."
    )


def _named_tensors(parts: tuple[Part, ...]) -> Iterator[tuple[str, Tensor]]:
    for position, part in enumerate(parts):
        if isinstance(part, Tensor):
            yield f"Tensor {position}", part
        else:
            yield from ((f"`{_name(position)}[{name!r}]`", t) for name, t in part.items())


def _name(position: int) -> str:
    return ("inputs", "targets")[position] if position < 2 else f"tensors {position}"
