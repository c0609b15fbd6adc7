"""What functions put back as they found it: a model's modes, attributes and buffers, random states.

The seeds that random states begin from are made and set here too. Nothing here knows of training,
export or drawing; those rooms enter these blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def modes_preserved(model: nn.Module) -> Iterator[None]:
    """Put the `training` flag of every submodule back at the end, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def attributes_preserved(model: nn.Module) -> Iterator[None]:
    """Put back every attribute of every submodule: modes, hooks, caches, what a forward sets.

    Parameters and buffers are put back as the objects that they were; their values are not copied.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy())
        for _, values in attributes
        for value in values.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    try:
        yield
    finally:
        for module, values in attributes:
            vars(module).update(values)
            for name in vars(module).keys() - values.keys():
                del vars(module)[name]
        for container, values in contents:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(values)


@contextlib.contextmanager
def buffers_preserved(model: nn.Module) -> Iterator[None]:
    """Put back the values of all buffers, which a forward may change in eval mode too."""
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
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back all that a forward pass may change, and run what is compiled uncompiled.

    Old `weight_norm` and `spectral_norm` set their weight in a forward, and models keep caches.
    Parameters and buffers are not copied: call the model with copies in their place.
    """
    eager = (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules  # Else nothing is compiled, and the import is slow.
        else contextlib.nullcontext()
    )
    silent = warnings.catch_warnings()
    with attributes_preserved(model), random_state_preserved(), eager, silent:
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with the whole model in eval mode and without gradients, then restore."""
    with modes_preserved(model), torch.no_grad():
        model.eval()
        yield


@contextlib.contextmanager
def random_state_preserved() -> Iterator[None]:
    """Put the random states of torch (all devices), numpy and python back at the end."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def random_states() -> dict[str, Any]:
    """Return the random states of torch (all devices), numpy and python.

    They are tensors, numbers and lists of them, which `torch.load(weights_only=True)` reads. A
    device that was not initialised has none: reading its state would start it.
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002 - the global state is what users seed
    kind, keys, *others = legacy
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        # A tensor of its own: numpy's array would be written as a pickled object.
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *others],
        "python": [version, torch.tensor(words, device="cpu"), gauss],
    }
    if _cuda_started():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set the random states that `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *others = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def reseed(seed: int) -> None:
    """Seed the global generators of torch (all devices in use), numpy and python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    # Not torch.manual_seed: it would leave a seed behind for CUDA when CUDA starts later.
    torch.default_generator.manual_seed(seed)
    if _cuda_started():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _cuda_started() -> bool:
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started


def derive_seed(seed: int, *path: int) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and on every number of `path`.

    Hashing keeps neighbouring seeds and epochs apart: `seed + epoch` would make the second
    epoch of seed 0 the first of seed 1.
    """
    text = ":".join(str(number) for number in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def initialising_with(seed: int | None) -> Iterator[None]:
    """Draw the initial weights of new modules from `seed`, and leave the global generator alone.

    With `None` the global generator is used and advanced, as PyTorch does.
    """
    if seed is None:
        yield
        return
    # On the CPU only: seeding an accelerator's generator could not be undone before it starts,
    # and the same seed gives the same weights wherever the model will live.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_rng_state(state)
