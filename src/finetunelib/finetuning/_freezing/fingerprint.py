"""Digests of the frozen tensors of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._public import public
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.finetuning._freezing.hold import held_in_eval_mode
from finetunelib.finetuning._freezing.known_digests import computed_digest, known_digest

#: From how many bytes several threads compute digests, and how many threads.
_LARGE, _THREADS = 16 * 2**20, 4

#: The largest total of trainable tensors in bytes of which digests are computed.
_AFFORDABLE = 256 * 2**20


@public("finetunelib.finetuning")
def fingerprint(model: nn.Module) -> dict[str, str]:
    """Compute a digest of every frozen tensor of a model.

    The frozen tensors are all parameters that do not require a gradient, and the buffers of the
    modules that `freeze` holds in eval mode. Two fingerprints are equal if and only if the same
    tensors are frozen and have the same dtypes, shapes and bits; the device does not matter. Every
    frozen byte is read once. Tensors on the meta device have no bits and are left out.

    Args:
        model: The model. A shared tensor is listed once, under its first name.

    Returns:
        The sha256 of each tensor in hexadecimal, by its name in the model without the parts that
        `torch.compile` or DataParallel add.

    Raises:
        InvalidTypeError: If `model` is not an `nn.Module`.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import fingerprint, freeze
        >>> model = build_mlp(4, [8], 3, seed=0)
        >>> before = freeze(model, "backbone")
        >>> list(before)
        ['backbone.1.weight', 'backbone.1.bias']
        >>> fingerprint(model) == before
        True
    """
    return _digests(check_model(model), computed_digest)


def known_fingerprint(model: nn.Module) -> dict[str, str]:
    """Return the fingerprint of a model, reading only tensors that may have changed.

    A digest from an earlier call of `fingerprint` or `freeze` is used again if nothing shows that
    the tensor was written to. Use it as the state before, never as the state after.
    """
    return _digests(model, known_digest)


def _digests(model: nn.Module, of: Callable[[Tensor], str]) -> dict[str, str]:
    tensors = frozen_tensors(unwrapped(model))
    return digests_of({own_name(name): tensor for name, tensor in tensors.items()}, of)


def digests_of(tensors: Mapping[str, Tensor], of: Callable[[Tensor], str]) -> dict[str, str]:
    """Return a digest of each tensor by name, computed by several threads if they are large.

    Args:
        tensors: The tensors by name.
        of: The function that computes a digest.
    """
    unique = {id(tensor): tensor for tensor in tensors.values()}  # Tied ones have several names.
    if len(unique) < len(tensors):
        digests = digests_of({str(key): tensor for key, tensor in unique.items()}, of)
        return {name: digests[str(id(tensor))] for name, tensor in tensors.items()}
    names = list(tensors)
    size = sum(tensor.nbytes for tensor in tensors.values() if tensor.layout is torch.strided)
    # The number of cores is read from a file, so only if it matters.
    workers = 1 if size < _LARGE else min(len(names), _THREADS, os.cpu_count() or 1)
    if workers < 2:
        return dict(zip(names, map(of, tensors.values()), strict=True))
    with ThreadPoolExecutor(workers) as pool:  # hashlib computes without Python's lock.
        return dict(zip(names, pool.map(of, tensors.values()), strict=True))


def frozen_tensors(model: nn.Module, *, meta: bool = False) -> dict[str, Tensor]:
    """Return the frozen tensors of a model by name.

    Args:
        model: The model, without wrappers.
        meta: Whether tensors on the meta device are included.
    """
    tensors: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        if held_in_eval_mode(module):
            for buffer_name, buffer in module.named_buffers(name, recurse=False):
                if buffer not in seen:
                    seen.add(buffer)
                    tensors[buffer_name] = buffer
    return {name: tensor for name, tensor in tensors.items() if meta or not tensor.is_meta}


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters of a model by name, without the names of wrappers."""
    return {
        own_name(name): parameter
        for name, parameter in unwrapped(model).named_parameters()
        if parameter.requires_grad and not parameter.is_meta
    }


def affordable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the smallest of the tensors, whose digests can be computed without a delay."""
    chosen: dict[str, Tensor] = {}
    left = _AFFORDABLE
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].nbytes):
        left -= tensor.nbytes
        if left < 0:
            break
        chosen[name] = tensor
    return chosen
