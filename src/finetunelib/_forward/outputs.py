"""The tensors in a model's output, and their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from finetunelib.errors import InvalidTypeError


def logits_of(output: object) -> Tensor | None:
    """Return an output that is a tensor, or the tensor in its `.logits`, if it has one."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else None


def flat_outputs(output: object) -> list[Tensor]:
    """Return the tensors of a model's output in the order in which they are exported.

    Raises:
        InvalidTypeError: If the output contains anything other than tensors.
    """
    return [tensor for _, tensor in named_outputs(output)]


def named_outputs(output: object) -> list[tuple[str, Tensor]]:
    """Return the tensors of a model's output with the names that the model gives them, or `""`.

    Raises:
        InvalidTypeError: If the output contains anything other than tensors.
    """
    if isinstance(output, Tensor):
        return [("", output)]
    parts = _parts(output)
    if not parts:
        raise InvalidTypeError(
            f"The model must return tensors to be exported, but returned {type(output).__name__}."
        )
    return [
        ("_".join(filter(None, (name, inner))), tensor)
        for name, part in parts
        for inner, tensor in named_outputs(part)
    ]


def tensors_in(output: object) -> Iterator[Tensor]:
    """Yield the tensors in a module's output or a batch, whatever else it contains."""
    if isinstance(output, Tensor):
        yield output
        return
    parts: list[object] = [part for _, part in _parts(output)]
    if not parts and dataclasses.is_dataclass(output):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    for part in parts:
        yield from tensors_in(part)


def in_full_precision(outputs: Tensor) -> Tensor:
    """Return outputs in half precision as float32, which numpy can take, and others unchanged."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _parts(output: object) -> list[tuple[str, object]]:
    if isinstance(output, Mapping):  # transformers' outputs are mappings too.
        return [(str(name), part) for name, part in output.items()]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", [""] * len(output))
        return list(zip(names, output, strict=True))
    return []
