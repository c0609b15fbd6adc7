"""Why samples cannot be combined into a batch: the sample that differs, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from finetunelib.data._parts import is_tensor_like

_IMAGE = (
    "Convert images to tensors in the dataset's transform, such as with "
    "`torchvision.transforms.ToTensor()`, or pass `collate_fn`."
)
_SIZE = (
    "Give all samples the same size: resize images (`torchvision.transforms.Resize`), pad "
    "sequences, or pass `collate_fn`, a function from a list of samples to a batch."
)
_KIND = (
    "Samples consist of tensors, arrays and numbers, in tuples or dicts. Convert them in the "
    "dataset, or pass `collate_fn`."
)


def why_not_one_batch(
    samples: Sequence[Any], indices: Sequence[int] | None, name: str
) -> str | None:
    """Return why samples cannot be combined into a batch, or `None` if they can.

    Args:
        samples: The samples of the batch.
        indices: Their indices in the dataset. `None` counts from the start of the batch.
        name: The name of the data, for the message.
    """
    numbers = range(len(samples)) if indices is None else indices
    found = _difference(list(zip(numbers, samples, strict=True)), "")
    if found is None:
        return None
    index, problem = found
    return f"Sample {index} of `{name}`{'' if indices is not None else ' (in its batch)'}{problem}"


def _difference(values: list[tuple[int, Any]], place: str) -> tuple[int, str] | None:
    """Return the index of the first sample that cannot be used, and why."""
    wrong = _unusable(values, place) or _odd(values, _kind, place, _KIND)
    if wrong:
        return wrong
    first = values[0][1]
    if isinstance(first, Mapping):
        names = _odd(values, lambda value: tuple(sorted(map(str, value))), place, _KIND)
        return names or _inside(values, sorted(first, key=str), place)
    if isinstance(first, tuple):
        return _odd(values, len, place, _KIND) or _inside(values, range(len(first)), place)
    if isinstance(first, list):
        return _odd(values, _shape_of_list, place, _SIZE)
    if is_tensor_like(first):
        return _odd(values, lambda value: tuple(value.shape), place, _SIZE)
    return None


def _unusable(values: list[tuple[int, Any]], place: str) -> tuple[int, str] | None:
    """Return the first value that no batch can contain, and why."""
    for index, value in values:
        if value is None:
            return index, f"{place} is None. {_KIND}"
        if _is_image(value):
            size = "x".join(map(str, value.size))
            return index, f"{place} is a PIL image ({value.mode}, {size}). {_IMAGE}"
        if not _is_known(value):
            return index, f"{place} is of type {type(value).__name__}. {_KIND}"
    return None


def _inside(
    values: list[tuple[int, Any]], parts: Sequence[Any], place: str
) -> tuple[int, str] | None:
    for part in parts:
        inner = [(index, value[part]) for index, value in values]
        if found := _difference(inner, f"{place}, part {part!r},"):
            return found
    return None


def _odd(
    values: list[tuple[int, Any]], of: Callable[[Any], Hashable], place: str, advice: str
) -> tuple[int, str] | None:
    """Return the sample whose property is the rarest, if the samples differ in it."""
    found = [(index, value, of(value)) for index, value in values]
    counts = Counter(kind for _, _, kind in found)
    if len(counts) == 1:
        return None
    index, value, rare = min(found, key=lambda entry: counts[entry[2]])
    other, usual, _ = next(entry for entry in found if entry[2] != rare)
    return (
        index,
        f"{place} is {_described(value)}, but sample {other} {_described(usual)}. {advice}",
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor) or is_tensor_like(value):
        return "tensor"
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__


def _described(value: Any) -> str:
    if is_tensor_like(value):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of length {len(value)}"
    return f"of type {type(value).__name__}"


def _shape_of_list(value: list[Any]) -> tuple[int, ...]:
    """Return the lengths of nested lists; ragged lists have the length -1."""
    if not all(isinstance(part, list) for part in value):
        return (len(value),)
    inner = {_shape_of_list(part) for part in value}
    return (len(value), *(inner.pop() if len(inner) == 1 else (-1,)))


def _is_known(value: Any) -> bool:
    if is_tensor_like(value):
        return isinstance(value, Tensor) or value.dtype.kind in "biufcUS"
    plain = (int, float, complex, str, bytes, tuple, list, Mapping)
    return isinstance(value, plain) or (hasattr(value, "dtype") and hasattr(value, "item"))


def _is_image(value: Any) -> bool:
    return hasattr(value, "getbands") and hasattr(value, "convert") and not torch.is_tensor(value)
