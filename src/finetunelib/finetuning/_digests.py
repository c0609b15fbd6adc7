"""Digests of tensors, and the record of the tensors that a model loaded from weights files."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from finetunelib.errors import InvalidTypeError

#: Attributes of a module: the digests of the tensors that were loaded, and of those that a file did
#: not have. Copies and pickles of the model keep them.
_LOADED = "_loaded_digests"
_NOT_LOADED = "_not_loaded_digests"

#: Attribute of a new head: the digests of its initial parameters. Copies and pickles keep it.
_INITIAL = "_initial_digests"

#: Dtypes that a model is often converted to after loading.
_CONVERTED_TO = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bits, in hexadecimal.

    A wrapper subclass, such as a DTensor, has the digest of the tensors inside it.

    Raises:
        InvalidTypeError: If a subclass has neither memory nor tensors inside it.
    """
    values = tensor.detach()
    if is_traceable_wrapper_subclass(values):
        kind = f"{type(values).__name__} {values.dtype} {tuple(values.shape)}"
        names, _ = values.__tensor_flatten__()
        inner = [f"{name} {digest(getattr(values, name))}" for name in names]
        return hashlib.sha256(" ".join([kind, *inner]).encode()).hexdigest()
    values = values.cpu().resolve_conj().resolve_neg()
    state = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    for part in _dense_parts(values):
        flat = part.contiguous().reshape(-1)
        # numpy would mark the user's memory as not resizable.
        size = flat.numel() * flat.element_size()
        if size:
            state.update((ctypes.c_char * size).from_address(_address(flat)))
    return state.hexdigest()


def check_readable(name: str, tensor: Tensor) -> None:
    """Raise if `digest` cannot read a tensor.

    Raises:
        InvalidTypeError: If it is a subclass with neither memory nor tensors inside it.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for inner in names:
            check_readable(f"{name}.{inner}", getattr(tensor, inner))
    elif tensor.layout is torch.strided and tensor.numel() and not tensor.is_meta:
        try:
            _address(tensor)
        except InvalidTypeError as error:
            raise InvalidTypeError(
                f"`{name}` cannot be read: {error} Convert it to a plain tensor first."
            ) from error


def _address(tensor: Tensor) -> int:
    """Return where the values of a dense tensor are in memory.

    Raises:
        InvalidTypeError: If it has no memory of its own.
    """
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    if not address:
        raise InvalidTypeError(f"A {type(tensor).__name__} has no memory of its own.")
    return address


def _dense_parts(values: Tensor) -> list[Tensor]:
    """Return the dense tensors that a tensor consists of, which may be sparse or quantized."""
    if values.is_quantized:
        return [values.int_repr()]
    if values.layout is torch.strided:
        return [values]
    entries = values.to_sparse().coalesce()
    return [entries.indices(), entries.values()]


def remember_loaded(model: nn.Module, digests: Mapping[str, str]) -> None:
    """Add the digests of loaded tensors, by name, to those of earlier files."""
    object.__setattr__(model, _LOADED, {**loaded_digests(model), **digests})


def loaded_digests(model: nn.Module) -> dict[str, str]:
    """Return the digests of the tensors that were loaded into a module, by name."""
    return dict(getattr(model, _LOADED, {}))


def remember_not_loaded(
    model: nn.Module, loaded: Iterable[str], missing: Mapping[str, Tensor]
) -> None:
    """Record the floating-point tensors that have no values from a file.

    Args:
        model: The module that a file was loaded into.
        loaded: The names of its tensors that were loaded.
        missing: The other tensors of it, by name. Those that an earlier file gave are left out.
    """
    noted: dict[str, frozenset[str]] = dict(getattr(model, _NOT_LOADED, {}))
    for name in loaded:
        noted.pop(name, None)
    earlier = loaded_digests(model)
    for name, tensor in missing.items():
        if tensor.is_floating_point() and not tensor.is_meta:
            own = digest(tensor)
            if earlier.get(name) != own:
                converted = {digest(tensor.detach().to(dtype)) for dtype in _CONVERTED_TO}
                noted[name] = frozenset(converted | {own})
    object.__setattr__(model, _NOT_LOADED, noted)


def not_loaded(model: nn.Module, among: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that still have the values from before an incomplete load.

    Args:
        model: The model. Records of its submodules count too.
        among: The tensors to check, by name.
    """
    found: dict[str, None] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, digests in getattr(module, _NOT_LOADED, {}).items():
            full_name = f"{prefix}.{name}" if prefix else name
            if full_name in among and digest(among[full_name]) in digests:
                found[full_name] = None
    return [name for name in among if name in found]


def remember_initial(module: nn.Module) -> None:
    """Record the values of a new module's parameters."""
    values = {n: digest(p) for n, p in module.named_parameters() if not p.is_meta}
    object.__setattr__(module, _INITIAL, values)


def has_initial_values(module: nn.Module) -> bool:
    """Return whether a module was new, is frozen, and has the parameters of `remember_initial`."""
    initial: Mapping[str, str] = getattr(module, _INITIAL, {})
    if not initial:
        return False
    now = dict(module.named_parameters())
    return all(
        name in now and not now[name].requires_grad and digest(now[name]) == value
        for name, value in initial.items()
    )
