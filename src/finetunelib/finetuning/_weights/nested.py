"""Finding the state dict in the content of a checkpoint file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finetunelib._messages import listed, quoted
from finetunelib.errors import CorruptFileError, InvalidArgumentError
from finetunelib.finetuning._weights.names import without_wrappers

#: Keys under which training scripts save the weights of the model, in any order.
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module", "net")

#: How deep dicts are searched.
_DEPTH = 4


def find_state_dict(path: Path, content: object, key: str | None) -> dict[str, Tensor]:
    """Return the state dict in the content of a file.

    Args:
        path: The file, for messages.
        content: What it contains.
        key: The dotted key of the state dict, or `None` to search for the only one.

    Raises:
        CorruptFileError: If there is none, or a tensor in it cannot be loaded.
        InvalidArgumentError: If there are several and `key` is `None`, or `key` is not in the file.
    """
    prefix = ""
    if key is not None:
        content, prefix = _value_at(path, content, key), f"{key}."
    found = _state_dicts(content)
    if any(_is_usual(name) for name in found) or len(found) > 1:
        state = found[_chosen(path, found, prefix)]
    else:
        state = _empty_state_dict(path, content, [f"{prefix}{name}" for name in found])
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
            raise CorruptFileError(
                f"`{path}` contains `{name}` as a {kind} tensor, which cannot be loaded. "
                "Save it as a dense tensor with values."
            )
    return {name: tensor.detach() for name, tensor in state.items()}


def _state_dicts(content: object, path: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts in nested dicts by dotted key, except those of optimizers."""
    if not isinstance(content, dict) or depth > _DEPTH or "param_groups" in content:
        return {}
    if content and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        return {path: content}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        if isinstance(key, str):
            found |= _state_dicts(value, f"{path}.{key}" if path else key, depth + 1)
    return found


def _chosen(path: Path, found: Mapping[str, Mapping[str, Tensor]], prefix: str) -> str:
    """Return the key of the only state dict that can be the model's weights.

    Raises:
        InvalidArgumentError: If there are several.
    """
    usual = [key for key in found if _is_usual(key)]
    if len(usual) == 1:
        weights = found[usual[0]]
        others = [key for key in found if key != usual[0] and _may_replace(found[key], weights)]
        if not others:
            return usual[0]
    keys = [f"{prefix}{key}" for key in found]
    raise InvalidArgumentError(
        f"`{path}` contains several state dicts: {quoted(keys)}. Choose one with `key`, such as "
        f'`key="{keys[0]}"`.'
    )


def _is_usual(key: str) -> bool:
    return not key or all(part in _USUAL_KEYS for part in key.split("."))


def _may_replace(other: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether a second dict of tensors may be other weights of the same model."""
    names = {without_wrappers(name) for name in weights}
    if any(without_wrappers(name) in names for name in other):
        return True
    shapes, other_shapes = (
        Counter(tensor.shape for tensor in state.values()) for state in (weights, other)
    )
    return 2 * (shapes & other_shapes).total() >= len(weights)


def _value_at(path: Path, content: object, key: str) -> object:
    """Return the value at a dotted key of a file's content.

    Raises:
        InvalidArgumentError: If there is none.
    """
    found = _lookup(content, key)
    if not found:
        keys = [name for name in _state_dicts(content) if name]
        has = f"It has state dicts at {quoted(keys)}." if keys else "Leave `key` out."
        raise InvalidArgumentError(f"`{path}` has no key {key!r}. {has}")
    return found[0]


def _lookup(content: object, key: str) -> list[object]:
    """Return a list of the value at a dotted key, or an empty list."""
    if not isinstance(content, dict):
        return []
    if key in content:
        return [content[key]]
    for name, value in content.items():
        if isinstance(name, str) and key.startswith(f"{name}."):
            found = _lookup(value, key[len(name) + 1 :])
            if found:
                return found
    return []


def _empty_state_dict(path: Path, content: object, other_keys: list[str]) -> dict[str, Tensor]:
    """Return a state dict without tensors, at the top or under the usual keys.

    Raises:
        CorruptFileError: If the content is something else. The message contains `other_keys`, where
            there is a state dict that may not be the model's, such as an average of the weights.
    """
    while isinstance(content, dict) and content:
        inner = next((key for key in _USUAL_KEYS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = content[inner]
    if content == {}:
        return {}
    if other_keys:
        raise CorruptFileError(
            f"`{path}` contains {_describe(content)}. Its only state dict is at {other_keys[0]!r}. "
            f'To load that, pass `key="{other_keys[0]}"`.'
        )
    raise CorruptFileError(
        f"`{path}` contains {_describe(content)}, but a state dict (name to tensor) is needed, at "
        f"the top or under a key such as {', '.join(_USUAL_KEYS)}. Save `model.state_dict()`."
    )


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"an object of type {type(content).__name__}"
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    found = (
        f", in which `{odd}` is of type {type(content[odd]).__name__}" if odd is not None else ""
    )
    return f"a dict with the keys {listed([str(key) for key in content])}{found}"
