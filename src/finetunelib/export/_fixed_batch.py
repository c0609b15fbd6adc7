"""Which module of a model turns the batch size into a constant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from finetunelib._preserve import attributes_preserved, evaluating, random_state_preserved
from finetunelib.export._inputs import Inputs
from finetunelib.export._outputs import tensors_in

#: Two sizes of which neither is a multiple of the other.
_SIZES = (2, 3)


def module_that_fixes_the_batch(model: nn.Module, inputs: Inputs) -> str | None:
    """Return the name and class of the first module whose output does not follow the batch.

    The model runs on two batch sizes. In the larger one, the module is the innermost that raises,
    or the first to end with a first axis that did not grow. `None` where all follow.
    """
    generator = torch.Generator().manual_seed(0)
    runs: list[list[tuple[str, list[int]]]] = []
    for size in _SIZES:
        ended: list[tuple[str, list[int]]] = []
        batch = inputs.resized([size] * len(inputs.tensors), generator)
        with _recording(model, ended) as entered:
            try:
                batch.call(model)
            except Exception:  # noqa: BLE001 - whatever a forward raises is what is looked for
                return entered[-1] if entered else None
        runs.append(ended)
    small, large = _SIZES
    for (name, before), (_, after) in zip(runs[0], runs[1], strict=False):
        if any(a * small != b * large for a, b in zip(after, before, strict=False)):
            return name
    return None


@contextlib.contextmanager
def _recording(model: nn.Module, ended: list[tuple[str, list[int]]]) -> Iterator[list[str]]:
    """Note what modules run at the moment, and the first axes of what each returned."""
    entered: list[str] = []

    def enter(name: str, *_event: object) -> None:
        entered.append(name)

    def leave(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        entered.pop()
        ended.append((name, [_first_axis(tensor) for tensor in tensors_in(output)]))

    with attributes_preserved(model), evaluating(model), random_state_preserved():
        for name, module in model.named_modules():
            kind = type(module).__name__
            shown = f"`{name}` ({kind})" if name else kind
            module.register_forward_pre_hook(partial(enter, shown))
            module.register_forward_hook(partial(leave, shown))
        yield entered


def _first_axis(tensor: Tensor) -> int:
    return len(tensor) if tensor.dim() else 0
