"""Checks before freezing: modules that cannot be frozen, and what two parts share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from finetunelib._arguments import uninitialized
from finetunelib._messages import quoted
from finetunelib.errors import FreezeError
from finetunelib.finetuning._digests import check_readable


def check_can_freeze(name: str, module: nn.Module) -> None:
    """Raise if one module cannot be frozen.

    Raises:
        FreezeError: If the module is lazy, a ScriptModule, or a BatchNorm without statistics.
    """
    where = f"`{name}`" if name else "The model"
    lazy = uninitialized(module, name, recurse=False)
    if lazy is not None:
        raise FreezeError(f"{where} is a {type(module).__name__}: {lazy}")
    if isinstance(module, torch.jit.ScriptModule):
        raise FreezeError(
            f"{where} is a ScriptModule, which cannot be held in eval mode because its submodules "
            "run without hooks. Freeze the model that it was created from."
        )
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        raise FreezeError(
            f"{where} is a {type(module).__name__} without running statistics "
            "(track_running_stats=False). It normalizes with the statistics of the current batch "
            "and cannot be frozen. Give it statistics, or use another normalization."
        )


def check_can_be_compared(
    model: nn.Module, held: Collection[nn.Module], fix: Collection[str]
) -> None:
    """Raise if a tensor that will be frozen has no values that a digest could read.

    Args:
        model: The model.
        held: The modules that will be held in eval mode.
        fix: The names of the parameters that will be untrainable.

    Raises:
        InvalidTypeError: If there is one.
    """
    for name, parameter in model.named_parameters():
        if name in fix:
            check_readable(name, parameter)
    for name, module in model.named_modules():
        if module in held:
            for buffer_name, buffer in module.named_buffers(name, recurse=False):
                check_readable(buffer_name, buffer)


def check_shared_parameters(
    model: nn.Module, fix: Collection[str], give_back: Collection[str]
) -> None:
    """Raise if a tensor with several names would be frozen under some of them only.

    Args:
        model: The model.
        fix: The names of parameters that will be untrainable.
        give_back: The names of parameters that become trainable.

    Raises:
        FreezeError: If there is one. The message contains all names of all such tensors.
    """
    names_of: dict[object, dict[str, bool]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stays_fixed = not parameter.requires_grad and name not in give_back
        frozen = name in fix or stays_fixed
        names_of.setdefault(_memory_of(parameter), {})[name] = frozen
    mixed = [names for names in names_of.values() if len(set(names.values())) == 2]
    if mixed:
        pairs = [
            (
                [name for name, frozen in names.items() if frozen],
                [name for name, frozen in names.items() if not frozen],
            )
            for names in mixed
        ]
        raise FreezeError(_shared_message("tensor", pairs, "untie them first"))


def check_shared_statistics(model: nn.Module, held: Callable[[nn.Module], bool]) -> None:
    """Raise if a norm in train mode would change the running statistics of a frozen norm.

    Args:
        model: The model.
        held: Returns whether a module will be held in eval mode.

    Raises:
        FreezeError: If there is one. The message contains all of the norms.
    """
    owners: dict[object, dict[str, bool]] = {}
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            owners.setdefault(_memory_of(module.running_mean), {})[name] = held(module)
    for norms in owners.values():
        frozen = [name for name, is_held in norms.items() if is_held]
        moving = [name for name, is_held in norms.items() if not is_held]
        if frozen and moving:
            raise FreezeError(
                f"{quoted(frozen)} would be frozen, but {quoted(moving)} would update the same "
                "running statistics. Name all of them, or give each norm its own statistics."
            )


def check_shared_modules(
    model: nn.Module,
    held: Callable[[nn.Module], bool],
    *,
    changed: Collection[nn.Module],
    named: Collection[nn.Module],
) -> None:
    """Raise if a frozen part and another part use the same module, and its mode matters.

    Args:
        model: The model.
        held: Returns whether a module will be held in eval mode.
        changed: The modules that will be frozen or made trainable.
        named: The modules among them that the user named, which may be shared.

    Raises:
        FreezeError: If there is one. The message contains all names of all such modules.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    users: dict[nn.Module, dict[str, bool]] = {}
    for name, module in modules.items():
        if name:
            users.setdefault(module, {})[name] = held(modules[name.rpartition(".")[0]])
    pairs = [
        (
            [name for name, is_held in names.items() if is_held],
            [name for name, is_held in names.items() if not is_held],
        )
        for module, names in users.items()
        if module in changed
        and module not in named
        and len(set(names.values())) == 2
        and _depends_on_mode(module)
    ]
    if pairs:
        raise FreezeError(_shared_message("module", pairs, "give each part its own module"))


def _shared_message(kind: str, pairs: Iterable[tuple[list[str], list[str]]], remedy: str) -> str:
    found = [f"{quoted(frozen)} would be frozen and {quoted(free)} not" for frozen, free in pairs]
    shown, more = "; ".join(found[:4]), f" (and {len(found) - 4} more)" if len(found) > 4 else ""
    return (
        f"{shown}{more}: these are names of the same {kind}, which cannot be both. Name all parts "
        f"that use it, or {remedy}."
    )


def _depends_on_mode(module: nn.Module) -> bool:
    """Return whether freezing a module changes what it computes or learns."""
    has_tensors = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    return has_tensors or any(map(_reads_mode, module.modules()))


def _reads_mode(module: nn.Module) -> bool:
    code = getattr(type(module).forward, "__code__", None)
    return isinstance(module, _DropoutNd) or (code is not None and "training" in code.co_names)


def _memory_of(tensor: Tensor) -> object:
    """Return a key that is equal for two tensors with the same memory."""
    opaque = isinstance(tensor, UninitializedParameter | UninitializedBuffer)
    opaque = opaque or is_traceable_wrapper_subclass(tensor)
    if opaque or tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.numel()
