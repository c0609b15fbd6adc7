"""What functions put back as they found it: modes of submodules, and random states.

Nothing here knows of training, export or drawing; those rooms enter these blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

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
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with the whole model in eval mode and without gradients, then restore."""
    with modes_preserved(model), torch.no_grad():
        model.eval()
        yield


@contextlib.contextmanager
def random_state_preserved() -> Iterator[None]:
    """Put the random states of torch (all devices), numpy and python back at the end.

    A device that was not initialised before stays so: reading its state would start it.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what users seed
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if _cuda_started() else None
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


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
