"""A model's tensors by name: which of them are one, and how they get the values of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from finetunelib._arguments import uninitialized
from finetunelib._messages import listed
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._weights.formats import FileTensor


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, themselves and no copies.

    Raises:
        InvalidArgumentError: The model's state holds something else.
    """
    lazy = uninitialized(model)
    if lazy is not None:
        raise InvalidArgumentError(lazy)
    state = dict(model.state_dict(keep_vars=True))
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InvalidArgumentError(
                f"The model's state holds `{name}`, a {type(value).__name__} and no tensor, which "
                "a weights file cannot hold."
            )
    return state


def check_has_values(state: Mapping[str, Tensor]) -> None:
    """Raise where a tensor is on the meta device.

    Raises:
        InvalidArgumentError: One of them has no values.
    """
    for name, tensor in state.items():
        if tensor.is_meta:
            raise InvalidArgumentError(
                f"`{name}` is on the meta device and has no values. Give the model memory first: "
                '`model.to_empty(device="cpu")`, or load a weights file into it.'
            )


def check_takes_values(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise where writing into one of a model's tensors would fail, or go nowhere.

    Raises:
        InvalidArgumentError: A tensor is a copy, sharded, overlaps itself, or was made in
            inference mode.
    """
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers())
        if not is_traceable_wrapper_subclass(tensor)
    }
    for name, tensor in state.items():
        reason = ""
        if is_traceable_wrapper_subclass(tensor):
            reason = f"is a {type(tensor).__name__} (load before the model is sharded or quantized)"
        elif tensor.is_quantized or tensor.layout is not torch.strided:
            reason = "is quantized or sparse (load before it becomes so)"
        elif tensor.is_inference():
            reason = "was made in inference mode (build the model outside of it)"
        elif any(
            step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
        ):
            reason = "is expanded, several values in one place (call `.contiguous()` on it)"
        elif not tensor.is_meta and tensor.untyped_storage().data_ptr() not in own:
            reason = "is a copy that the model's own `state_dict` makes (use its own loading)"
        if reason:
            raise InvalidArgumentError(f"Nothing can be loaded into the model: `{name}` {reason}.")


def tied_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of tensors, those of one and the same tensor together."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        same: tuple[object, ...] = (id(tensor),)
        if tensor.numel() and not tensor.is_meta:
            same = (
                tensor.device,
                tensor.data_ptr(),
                tensor.dtype,
                tuple(tensor.shape),
                tensor.stride(),
            )
        groups.setdefault(same, []).append(name)
    return list(groups.values())


def check_leaves_no_meta(
    model: nn.Module, state: Mapping[str, Tensor], given: Iterable[str]
) -> None:
    """Raise where tensors of a model would still be on the meta device after loading.

    Args:
        model: The model.
        state: Its tensors by name.
        given: The names that get values.

    Raises:
        InvalidArgumentError: Some have no values, and get none.
    """
    filled = {id(state[name]) for name in given}
    left = [
        name
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_meta and id(tensor) not in filled
    ]
    if left:
        owner = left[0].rpartition(".")[0]
        part = f"model.{owner}" if owner else "model"
        raise InvalidArgumentError(
            f"{len(left)} tensors of the model are on the meta device and get no values from the "
            f"file: {listed(left)}. Give them values first, such as "
            f'`{part}.to_empty(device="cpu")` and `{part}.reset_parameters()`, and load again.'
        )


def write_values(
    model: nn.Module,
    state: Mapping[str, Tensor],
    values: Sequence[tuple[str, FileTensor]],
) -> dict[str, Tensor]:
    """Write the values of a file into a model, one tensor after another.

    A tensor with memory keeps it, its dtype and its device. One on the meta device is replaced
    on the CPU, in every place that holds it, by the file's tensor itself where its dtype agrees.

    Args:
        model: The model; everything that could fail has been checked.
        state: Its tensors by name.
        values: One name of each tensor that is written, and where its values are.

    Returns:
        The tensors that the model has now, by name as in `values`.
    """
    fresh: dict[int, Tensor] = {}
    for name, source in values:
        if state[name].is_meta:
            fresh[id(state[name])] = _own_values(source, state[name])
    with torch.no_grad():
        for name, source in values:
            if not state[name].is_meta:
                state[name].copy_(source.read().to(state[name].dtype))
    if fresh:
        _replace(model, fresh)
    return {name: fresh.get(id(state[name]), state[name]) for name, _ in values}


def _own_values(source: FileTensor, target: Tensor) -> Tensor:
    """Return a file's values as a contiguous tensor whose memory nothing else uses."""
    values = source.read()
    if values.dtype != target.dtype:
        return values.to(target.dtype, memory_format=torch.contiguous_format)
    return values if source.is_own else values.clone(memory_format=torch.contiguous_format)


def _replace(model: nn.Module, fresh: Mapping[int, Tensor]) -> None:
    """Put tensors with values in the places of those on the meta device, tied ones together."""
    parameters: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(old) not in fresh:
                continue
            if id(old) not in parameters:
                new = nn.Parameter(fresh[id(old)], requires_grad=old.requires_grad)
                vars(new).update(vars(old))  # Marks that libraries set on parameters.
                parameters[id(old)] = new
            # By attribute: recurrent layers keep a list of their parameters up to date this way.
            setattr(module, name, parameters[id(old)])
        for name, old_buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if id(old_buffer) in fresh:
                setattr(module, name, fresh[id(old_buffer)])
