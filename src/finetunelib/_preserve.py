"""Saving and restoring a model's modes, attributes and tensors, and random states; seeding."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from finetunelib._writes import WritesUndone

#: The size of the parameters of a model in bytes from which a second copy may not fit into memory.
_LARGE = 64 * 2**20


@contextlib.contextmanager
def modes_preserved(model: nn.Module) -> Iterator[None]:
    """Restore the `training` flag of every submodule on exit, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:  # Setting an attribute of a module is slow.
                module.training = training


@contextlib.contextmanager
def attributes_preserved(model: nn.Module) -> Iterator[None]:
    """Restore every attribute of every submodule on exit: modes, hooks, caches and others.

    Parameters and buffers are restored as objects. Their values are not copied.
    """
    attributes = Attributes(model.modules())
    try:
        yield
    finally:
        attributes.restore()


class Attributes:
    """The attributes of objects, and the content of those that are containers.

    Args:
        parts: The objects, such as modules.
    """

    def __init__(self, parts: Iterable[object]) -> None:
        self._attributes = [(part, dict(vars(part))) for part in parts]
        self._contents = [
            (value, value.copy() if value else ())
            for _, values in self._attributes
            for value in values.values()
            if type(value) in (dict, OrderedDict, list, set)
        ]

    def restore(self) -> None:
        """Set the attributes to those that the objects had."""
        for part, values in self._attributes:
            vars(part).update(values)
            for name in vars(part).keys() - values.keys():
                del vars(part)[name]
        for container, content in self._contents:
            if container or content:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)


@contextlib.contextmanager
def buffers_preserved(model: nn.Module) -> Iterator[None]:
    """Restore the values of all buffers on exit: a forward may change them in eval mode too."""
    saved = [
        (buffer, buffer._version, buffer.detach().clone())  # noqa: SLF001 - torch's own counter
        for buffer in model.buffers()
        if not buffer.is_meta
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, value in saved:
                if buffer._version != version:  # noqa: SLF001
                    buffer.copy_(value)


@contextlib.contextmanager
def unchanged(
    *modules: nn.Module, others: Iterable[object] = (), signs_of_zeros: bool = False
) -> Iterator[None]:
    """Restore attributes, parameters and buffers of modules on exit, with their values.

    A forward may change a buffer, keep a hidden state, initialize parameters from its data, or
    renormalize an embedding. The parameters of a large model are not copied: one that an operation
    writes into is saved before.

    Args:
        *modules: The modules.
        others: Other objects, whose attributes are restored too.
        signs_of_zeros: Whether 0.0 and -0.0 count as different, which an optimizer may turn into
            each other. It writes into all parameters, so they are always copied.
    """
    parts = [part for module in modules for part in module.modules()]
    everything = [*parts, *(other for other in others if hasattr(other, "__dict__"))]
    parameters = {id(p): p for module in modules for p in module.parameters()}
    size = sum(parameter.nbytes for parameter in parameters.values())
    large = size > _LARGE and not signs_of_zeros
    undone = WritesUndone(parameters.values()) if large else contextlib.nullcontext()
    values, attributes = _Values(everything, parameters=not large), Attributes(everything)
    try:
        with undone:
            yield
    finally:
        values.restore(signs_of_zeros=signs_of_zeros)
        attributes.restore()


@contextlib.contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Restore attributes and the values of buffers if the block raises."""
    values, attributes = _Values(model.modules(), parameters=False), Attributes(model.modules())
    try:
        yield
    except BaseException:
        values.restore()
        attributes.restore()
        raise


class _Values:
    """The values of the tensors of modules: parameters, buffers and attributes."""

    def __init__(self, parts: Iterable[object], *, parameters: bool = True) -> None:
        found: dict[int, torch.Tensor] = {}
        for own in map(vars, parts):
            values = [*own.get("_buffers", {}).values(), *own.values()]
            if parameters:
                values += own.get("_parameters", {}).values()
            for value in values:
                if isinstance(value, torch.Tensor) and not _is_empty(value):
                    found[id(value)] = value
        self._saved = [(tensor, tensor.detach().clone()) for tensor in found.values()]

    def restore(self, *, signs_of_zeros: bool = False) -> None:
        """Write back the values that have changed."""
        with torch.no_grad():
            for tensor, value in self._saved:
                now = tensor.detach()
                if not _same_values(now, value) or (signs_of_zeros and not _same_signs(now, value)):
                    now.copy_(value)


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal; nan equals nan."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or (
        one.is_floating_point() and bool(((one == other) | (one.isnan() & other.isnan())).all())
    )


def _same_signs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not one.is_floating_point() or torch.equal(one.signbit(), other.signbit())


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore attributes and random states on exit, and run compiled code uncompiled.

    The old `weight_norm` and `spectral_norm` set their weight in a forward, and models keep caches.
    Values of parameters and buffers are not restored: call the model with copies of them.
    """
    eager = (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules  # Otherwise nothing is compiled, and the import is slow.
        else contextlib.nullcontext()
    )
    silent = warnings.catch_warnings()
    with attributes_preserved(model), random_state_preserved(), eager, silent:
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with the model in eval mode and without gradients, then restore both."""
    with modes_preserved(model), torch.no_grad():
        model.eval()
        yield


class _Inner(threading.local):
    """Whether this thread is in a block whose end decides about the random states."""

    is_free = False


_inner = _Inner()


@contextlib.contextmanager
def random_state_preserved(*, inner: bool = True) -> Iterator[None]:
    """Restore the random states of torch (all devices), numpy and Python on exit.

    Args:
        inner: Whether blocks inside this one restore them too. Saving and restoring takes longer
            than a small model.
    """
    if _inner.is_free:
        yield
        return
    states = raw_random_states()
    try:
        with contextlib.nullcontext() if inner else random_state_free():
            yield
    finally:
        set_raw_random_states(states)


@contextlib.contextmanager
def random_state_free() -> Iterator[None]:
    """Let `random_state_preserved` do nothing in the block, after which the states are set."""
    before, _inner.is_free = _inner.is_free, True
    try:
        yield
    finally:
        _inner.is_free = before


def raw_random_states() -> dict[str, Any]:
    """Return the random states of torch (all devices), numpy and Python, to set them again.

    A device that was not initialized is left out, because reading its state would initialize it.
    """
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the global state is what users seed
        "python": random.getstate(),
    }
    if _cuda_started():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_raw_random_states(states: Mapping[str, Any]) -> None:
    """Set the random states that `raw_random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def random_states() -> dict[str, Any]:
    """Return the random states of torch (all devices), numpy and Python, to save them.

    They consist of tensors, numbers and lists, which `torch.load(weights_only=True)` reads.
    """
    states = raw_random_states()
    version, words, gauss = states["python"]
    kind, keys, *others = states["numpy"]
    # As tensors: a NumPy array would be saved as a pickled object.
    return states | {
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *others],
        "python": [version, torch.from_numpy(np.array(words, np.int64)), gauss],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set the random states that `random_states` returned."""
    version, words, gauss = states["python"]
    kind, keys, *others = states["numpy"]
    raw = {
        "python": (version, tuple(words.tolist()), gauss),
        "numpy": (kind, keys.numpy().astype(np.uint32), *others),
    }
    set_raw_random_states({**states, **raw})


def reseed(seed: int) -> None:
    """Seed the global generators of torch (all devices in use), numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    # Not torch.manual_seed, which also sets a seed for a CUDA that is initialized later.
    torch.default_generator.manual_seed(seed)
    if _cuda_started():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _cuda_started() -> bool:
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started


@lru_cache(maxsize=256)
def derive_seed(seed: int, *path: int) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and on each number in `path`.

    The numbers are hashed. With `seed + epoch`, the second epoch of seed 0 would equal the first
    epoch of seed 1.
    """
    text = ":".join(str(number) for number in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def initialising_with(seed: int | None) -> Iterator[None]:
    """Draw the initial weights of new modules from `seed`, without the global generator.

    If `seed` is `None`, the global generator is used and advanced, as in PyTorch.
    """
    if seed is None:
        yield
        return
    # On the CPU only. The seed of an accelerator that is not initialized cannot be restored, and
    # this way a seed gives the same weights on every device.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_rng_state(state)


def _is_empty(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has no values: on the meta device, or of PyTorch's FakeTensorMode."""
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor"
