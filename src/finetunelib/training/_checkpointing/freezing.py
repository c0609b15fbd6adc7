"""The frozen parts of a model in a checkpoint: their names, and the tensors that it leaves out.

A checkpoint contains the digests of the frozen tensors that its run has not trained, in place of
their values. Copies of them in the states of callbacks, such as averages, are left out too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.state_tensors import same_bits
from finetunelib.errors import CheckpointError, FreezeError
from finetunelib.finetuning._freezing.frozen_state import FrozenState
from finetunelib.training._checkpointing.contents import Contents
from finetunelib.training._checkpointing.manifest import WEIGHTS
from finetunelib.training._checkpointing.measured import TRAINING_WEIGHTS

#: The key of a state that says where copies were left out: pairs of keys that lead to a dict, and
#: the names in it.
_COPIES = "left_out"

#: The parts of a state that may contain copies of the model's tensors.
_WITH_COPIES = ("callbacks", TRAINING_WEIGHTS)


def without_copies(state: Mapping[str, Any], left_out: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a state without the copies of tensors that the checkpoint leaves out.

    A copy is a tensor with the same name and bits, at any depth of dicts.

    Args:
        state: The state.
        left_out: The tensors of the model that the file of weights leaves out, by name.
    """
    places: list[list[Any]] = []

    def kept(values: Mapping[Any, Any], keys: list[Any]) -> dict[Any, Any]:
        copies = {
            name: None
            for name, value in values.items()
            if isinstance(value, Tensor) and name in left_out and same_bits(value, left_out[name])
        }
        if copies:
            places.append([keys, list(copies)])
        return {
            key: kept(value, [*keys, key]) if type(value) is dict and type(key) is str else value
            for key, value in values.items()
            if key not in copies
        }

    parts = {name: kept(state[name], [name]) for name in _WITH_COPIES if name in state}
    return {**state, **parts, **({_COPIES: places} if places else {})}


def with_copies(
    contents: Contents, saved: Mapping[str, Any], left_out: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the state that `without_copies` was given.

    Args:
        contents: The checkpoint.
        saved: Its state, which is not changed.
        left_out: The tensors of the model that its file of weights leaves out, by name. They are
            those that it was written with.

    Raises:
        CheckpointError: If the list of copies is damaged.
    """
    saved = {name: _copied(part) if name in _WITH_COPIES else part for name, part in saved.items()}
    places = saved.get(_COPIES, [])
    contents.check(isinstance(places, list), _COPIES, "a list of places")
    for place in places:
        pair = isinstance(place, list) and len(place) == 2
        contents.check(pair and all(isinstance(x, list) for x in place), _COPIES, "pairs of lists")
        keys, names = place
        known = bool(keys) and all(type(key) is str for key in keys) and keys[0] in _WITH_COPIES
        contents.check(known, _COPIES, "places in the state")
        values: Any = saved
        for key in keys:
            values = contents.as_dict(values, _COPIES).get(key)
        values = contents.as_dict(values, _COPIES)
        for name in names:
            known = isinstance(name, str) and name in left_out and name not in values
            contents.check(known, _COPIES, "names of frozen tensors")
            values[name] = left_out[name].detach().cpu().clone()
    return saved


def _copied(part: Any) -> Any:
    """Return a copy of nested dicts, with the same other values in them."""
    return {key: _copied(value) for key, value in part.items()} if type(part) is dict else part


def saved_frozen_state(
    path: Path, saved: Mapping[str, Any], model: nn.Module
) -> FrozenState | None:
    """Return the frozen parts in a checkpoint, or `None` if an early version wrote it.

    Raises:
        CheckpointError: If they are damaged, or the model does not have one of them.
    """
    if "freezing" not in saved:
        return None
    try:
        frozen = FrozenState.from_dict(saved["freezing"])
        frozen.check_fits(model)
    except FreezeError as error:
        raise CheckpointError(f"`{path}` does not fit the model: {error}") from error
    return frozen


def has_weights_of(path: Path, saved: Mapping[str, Any], model: nn.Module) -> bool:
    """Return whether a model has the training weights of a checkpoint bit for bit."""
    from safetensors import safe_open

    current = model.state_dict()
    if TRAINING_WEIGHTS in saved:
        weights: Mapping[str, torch.Tensor] = saved[TRAINING_WEIGHTS]
        return all(torch.equal(current[name].cpu(), value) for name, value in weights.items())
    with safe_open(path / WEIGHTS, framework="pt") as file:
        return all(
            name in current and torch.equal(current[name].cpu(), file.get_tensor(name))
            for name in file.keys()  # noqa: SIM118 - not a mapping
        )
