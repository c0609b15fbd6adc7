"""Running a block without keeping its activations, and running it again in the backward pass."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetunelib._preserve import Attributes


def run_and_recompute(
    block: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run a function of a block, of whose activations only the inputs are kept.

    The backward pass runs it again with the random states, the modes, the attributes and the values
    of the buffers of the first run, and discards what the second run has changed.

    Source: "activation checkpointing" of Chen et al., "Training deep nets with sublinear memory
    cost", 2016, implemented by `torch.utils.checkpoint`.

    Args:
        block: The module that the function runs.
        function: The function.
        *args: Its arguments.
        **kwargs: Its arguments by name.

    Returns:
        What the function returns.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    from torch.utils.checkpoint import checkpoint  # Only this feature needs it.

    return checkpoint(
        partial(function, **kwargs),
        *args,
        use_reentrant=False,
        context_fn=lambda: _contexts(block),
    )


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and the second run."""
    before = _Before(block)
    return before.kept(), before.restored()


class _Before:
    """What a block was before its first run. PyTorch itself keeps the state of its generators."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what the second run needs, and run the block with it."""
        self._attributes = Attributes(self._block.modules())
        copies: dict[int, Tensor] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        for module in self._block.modules():
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.detach().clone()
                self._buffers.append((module, name, copies[id(buffer)]))
        self._random = _random_states()
        yield

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Run the block as it was before the first run, then set back what is there now.

        The copies of buffers take the place of the buffers, whose values stay as they are.
        """
        now, states = Attributes(self._block.modules()), _random_states()
        try:
            self._attributes.restore()
            for module, name, copy in self._buffers:
                module._buffers[name] = copy  # noqa: SLF001 - `setattr` may be overridden
            _set_random_states(self._random)
            yield
        finally:
            now.restore()
            _set_random_states(states)


def _random_states() -> tuple[Any, Any]:
    """Return the states of the generators of Python and numpy."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002 - what modules draw from


def _set_random_states(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
