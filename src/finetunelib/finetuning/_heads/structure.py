"""The structure of a model's output: containers, keys and the dimensions of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor


def structure_of(output: object, *, dimensions: bool = True) -> object:
    """Return a value that is equal for outputs of the same structure.

    The sizes of tensors do not matter, nor do the lengths of lists, which may depend on the data:
    a detector returns as many boxes as it finds.

    Args:
        output: What a model returned.
        dimensions: Whether the number of dimensions of each tensor matters.
    """
    if isinstance(output, Tensor):
        return ("Tensor", output.dim() if dimensions else None)
    parts = [(name, structure_of(part, dimensions=dimensions)) for name, part in _parts(output)]
    if isinstance(output, list):
        return ("list", frozenset(structure for _, structure in parts))
    return (type(output).__name__, tuple(parts))


def tensors_by_name(output: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an output with the keys that lead to them."""
    if isinstance(output, Tensor):
        yield name, output
    for key, part in _parts(output):
        yield from tensors_by_name(part, f"{name}.{key}" if name else key)


def text_of(output: object) -> str:
    """Return a structure with the shapes of its tensors, for messages."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    parts = _parts(output)
    if not parts:
        return type(output).__name__
    return f"{type(output).__name__}({', '.join(f'{key}: {text_of(part)}' for key, part in parts)})"


def _parts(output: object) -> list[tuple[str, object]]:
    if isinstance(output, Mapping):
        return [(str(key), part) for key, part in output.items()]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return [(str(name), part) for name, part in zip(names, output, strict=True)]
    if dataclasses.is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    logits = getattr(output, "logits", None)
    return [("logits", logits)] if isinstance(logits, Tensor) else []
