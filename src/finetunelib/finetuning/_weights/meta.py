"""Tensors on the meta device, which have no values until a file gives them some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from finetunelib._messages import listed, quoted
from finetunelib.errors import InvalidArgumentError, InvalidTypeError


def dtypes_after_loading(
    state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Return the dtypes that the tensors of a model will have, by name.

    Args:
        state: The tensors by name.
        dtype: The dtype of floating-point tensors on the meta device, or `None` for their own.

    Raises:
        InvalidTypeError: If `dtype` is not a dtype.
        InvalidArgumentError: If `dtype` is not a floating-point dtype, or no tensor would get it.
    """
    if dtype is None:
        return {name: tensor.dtype for name, tensor in state.items()}
    if not isinstance(dtype, torch.dtype):
        raise InvalidTypeError(
            f"`dtype` must be a dtype such as torch.bfloat16, got {dtype!r} "
            f"({type(dtype).__name__})."
        )
    if not dtype.is_floating_point:
        raise InvalidArgumentError(f"`dtype` must be a floating-point dtype, got {dtype}.")
    found = {n for n, tensor in state.items() if tensor.is_meta and tensor.is_floating_point()}
    if not found:
        raise InvalidArgumentError(
            f"`dtype` is {dtype}, but the model has no floating-point tensor on the meta device. "
            f"Other tensors keep their dtype: convert them first with `model.to({dtype})`."
        )
    return {name: dtype if name in found else tensor.dtype for name, tensor in state.items()}


def check_leaves_no_meta(
    model: nn.Module, state: Mapping[str, Tensor], given: Iterable[str]
) -> None:
    """Raise if tensors of a model would still be on the meta device after loading.

    Args:
        model: The model.
        state: Its tensors by name.
        given: The names of the tensors that get values.

    Raises:
        InvalidArgumentError: If there are such tensors.
    """
    filled = {id(state[name]) for name in given}
    left = {
        name: tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_meta and id(tensor) not in filled
    }
    saved = set(map(id, state.values()))
    computed = [name for name, tensor in left.items() if id(tensor) not in saved]
    if computed:
        part = _owner(computed[0])
        raise InvalidArgumentError(
            f"{len(computed)} buffers of the model are on the meta device, and no file contains "
            f"them, because they are not persistent: {quoted(computed)}. The constructors of their "
            'modules compute them. Build these modules again outside `torch.device("meta")`, such '
            f"as `{part} = type({part})(...)` with the arguments of the model, and load again."
        )
    if left:
        part = _owner(next(iter(left)))
        raise InvalidArgumentError(
            f"{len(left)} tensors of the model are on the meta device and get no values from the "
            f"file: {listed(list(left))}. Give them values first, such as "
            f'`{part}.to_empty(device="cpu")` and `{part}.reset_parameters()`, and load again.'
        )


def _owner(name: str) -> str:
    """Return the code for the module that has a tensor."""
    owner = name.rpartition(".")[0]
    return f"model.{owner}" if owner else "model"
