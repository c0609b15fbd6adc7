"""The tensors of a model by name, and writing the values of a file into them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from finetunelib._arguments import uninitialized
from finetunelib._messages import listed, quoted
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning._digests import check_readable
from finetunelib.finetuning._weights.formats import FileTensor


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name. They are not copied.

    Raises:
        InvalidArgumentError: If the model's state contains something else.
    """
    lazy = uninitialized(model)
    if lazy is not None:
        raise InvalidArgumentError(lazy)
    state = dict(model.state_dict(keep_vars=True))
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InvalidArgumentError(
                f"The model's state contains `{name}`, a {type(value).__name__}. A weights file "
                "can contain only tensors."
            )
    return state


def check_has_values(state: Mapping[str, Tensor]) -> None:
    """Raise if a tensor has no values that a weights file could contain.

    Raises:
        InvalidArgumentError: If one of them is on the meta device, or is a wrapper subclass.
        InvalidTypeError: If one of them has no memory.
    """
    for name, tensor in state.items():
        if is_traceable_wrapper_subclass(tensor):
            raise InvalidArgumentError(
                f"`{name}` is a {type(tensor.data).__name__}, which a weights file cannot contain. "
                "Save the model before it is sharded or quantized, or save its full tensors."
            )
        check_readable(name, tensor)
    check_not_meta(state)


def check_not_meta(tensors: Mapping[str, Tensor]) -> None:
    """Raise if a tensor is on the meta device.

    Raises:
        InvalidArgumentError: If one of them is.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InvalidArgumentError(
                f"`{name}` is on the meta device and has no values. Allocate it first: "
                '`model.to_empty(device="cpu")`, or load a weights file into it.'
            )


def check_accepts_values(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise if writing into one of a model's tensors would fail or have no effect.

    Raises:
        InvalidArgumentError: If a tensor is a copy, sharded, overlaps itself, or was created in
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
            reason = "is quantized or sparse (load before converting it)"
        elif tensor.is_inference():
            reason = "was created in inference mode (build the model outside it)"
        elif any(
            step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
        ):
            reason = "is expanded, so several values share memory (call `.contiguous()` on it)"
        elif not tensor.is_meta and tensor.untyped_storage().data_ptr() not in own:
            reason = "is a copy that the model's `state_dict` creates (use the model's own loading)"
        if reason:
            raise InvalidArgumentError(f"Nothing can be loaded into the model: `{name}` {reason}.")


def embedding_names(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Return the names in `state` of the weights of embeddings."""
    weights = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    return {name for name, tensor in state.items() if id(tensor) in weights}


def tied_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of tensors, grouped by tensor."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        same: tuple[object, ...] = (id(tensor),)
        if tensor.numel() and not (tensor.is_meta or is_traceable_wrapper_subclass(tensor)):
            same = (
                tensor.device,
                tensor.data_ptr(),
                tensor.dtype,
                tuple(tensor.shape),
                tensor.stride(),
            )
        groups.setdefault(same, []).append(name)
    return list(groups.values())


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


def write_values(
    model: nn.Module,
    state: Mapping[str, Tensor],
    values: Sequence[tuple[str, FileTensor]],
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, Tensor]:
    """Write the values of a file into a model, one tensor after another.

    A tensor with memory keeps its memory, dtype and device. A tensor on the meta device is replaced
    by one on the CPU, which is the file's tensor itself if the dtypes agree.

    Args:
        model: The model. Everything that could fail has been checked.
        state: Its tensors by name.
        values: One name of each tensor that is written, with the source of its values.
        dtypes: The dtypes of the tensors that replace those on the meta device, by name.

    Returns:
        The tensors of the model after loading, by the names in `values`.
    """
    fresh: dict[int, Tensor] = {}
    new = [(name, source) for name, source in values if state[name].is_meta]
    scratch = _scratch(source for name, source in new if source.dtype != dtypes[name])
    for name, source in new:
        fresh[id(state[name])] = _own_values(source, dtypes[name], scratch)
    with torch.no_grad():
        for name, source in values:
            target = state[name]
            if target.is_meta:
                continue
            if source.read_into is not None and _can_be_read_into(target, source):
                source.read_into(target)
                target.view(-1)[:0].zero_()  # PyTorch counts this as a change of the tensor.
            else:
                target.copy_(source.read().to(target.dtype))
    if fresh:
        _replace(model, fresh)
    return {name: fresh.get(id(state[name]), state[name]) for name, _ in values}


def _can_be_read_into(target: Tensor, source: FileTensor) -> bool:
    """Return whether the bytes of a file can be read into the memory of a tensor."""
    return (
        type(target.data) is Tensor
        and target.is_cpu
        and target.dtype == source.dtype
        and tuple(target.shape) == source.shape
        and target.is_contiguous()
        and not target.is_conj()
        and not target.is_neg()
    )


def _scratch(sources: Iterable[FileTensor]) -> Tensor:
    """Return memory in which each of some tensors fits.

    A new temporary for each would leave gaps between the tensors that are kept.
    """
    sizes = [math.prod(source.shape) * source.dtype.itemsize for source in sources]
    return torch.empty(max(sizes, default=0), dtype=torch.uint8)


def _own_values(source: FileTensor, dtype: torch.dtype, scratch: Tensor) -> Tensor:
    """Return a file's values as a contiguous tensor with memory of its own."""
    if source.dtype != dtype and source.read_into is not None:
        size = math.prod(source.shape) * source.dtype.itemsize
        read = scratch[:size].view(source.dtype).reshape(source.shape)
        source.read_into(read)
        return torch.empty(source.shape, dtype=dtype).copy_(read)
    values = source.read()
    if values.dtype != dtype:
        return values.to(dtype, memory_format=torch.contiguous_format)
    return values if source.is_own else values.clone(memory_format=torch.contiguous_format)


def _replace(model: nn.Module, fresh: Mapping[int, Tensor]) -> None:
    """Replace tensors on the meta device by tensors with values, tied ones together."""
    parameters: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(old) not in fresh:
                continue
            if id(old) not in parameters:
                new = nn.Parameter(fresh[id(old)], requires_grad=old.requires_grad)
                vars(new).update(vars(old))  # Attributes that libraries set on parameters.
                parameters[id(old)] = new
            # Recurrent layers update their list of parameters when an attribute is set.
            setattr(module, name, parameters[id(old)])
        for name, old_buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if id(old_buffer) in fresh:
                setattr(module, name, fresh[id(old_buffer)])
