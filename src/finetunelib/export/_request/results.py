"""The output of a model without what ONNX does not have: `None`, numbers and caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib.errors import InvalidTypeError


def check_cache(output: object) -> None:
    """Check that a model does not return a cache of keys and values.

    Raises:
        InvalidTypeError: If it does.
    """
    for _, part in _parts(output):
        if type(part).__name__.endswith("Cache"):
            raise InvalidTypeError(
                f"The model returns a cache of keys and values ({type(part).__name__}), which "
                "cannot be exported. Set `model.config.use_cache = False`."
            )


def result_notes(output: object, name: str = "") -> list[str]:
    """Return a sentence for each part of an output that is not a tensor, by name."""
    if isinstance(output, Tensor):
        return []
    if output is None and name:
        return [f"The output `{name}` is None and not in the graph."]
    if isinstance(output, bool | int | float) and name:
        return [f"The output `{name}` is a number, which is a constant in the graph."]
    return [
        note
        for key, part in _parts(output)
        for note in result_notes(part, f"{name}_{key}" if name else key)
    ]


def tensors_only(output: object) -> Any:
    """Return an output without `None`, and with numbers as tensors."""
    if isinstance(output, bool | int | float):
        return torch.tensor(output)
    if isinstance(output, Tensor) or not _parts(output):
        return output
    kept = {key: tensors_only(part) for key, part in _parts(output) if part is not None}
    return kept if _has_names(output) else tuple(kept.values())


def _parts(output: object) -> list[tuple[str, object]]:
    if isinstance(output, Mapping):
        return [(str(key), part) for key, part in output.items()]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", map(str, range(len(output))))
        return list(zip(names, output, strict=True))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(each.name, getattr(output, each.name)) for each in dataclasses.fields(output)]
    return []


def _has_names(output: object) -> bool:
    return not isinstance(output, tuple | list) or hasattr(output, "_fields")
