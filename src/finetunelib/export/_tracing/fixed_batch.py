"""Which module of a model turns the batch size into a constant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import tensors_in
from finetunelib._preserve import attributes_preserved, evaluating, random_state_preserved

#: Two sizes of which neither is a multiple of the other.
_SIZES = (2, 3)


def module_that_fixes_the_batch(model: nn.Module, inputs: Inputs) -> str | None:
    """Return the name and class of the module in whose forward the batch is no longer followed.

    The model runs on two batch sizes. What a module returns is its own work, and what it is given
    is the work of the module around it. The first that changes with the batch but not along an
    axis of it is sought; else the innermost module that raised; else the first work whose first
    axis stayed. `None` where all follow.
    """
    generator = torch.Generator().manual_seed(0)
    small, large = (
        _run(model, inputs.resized([size] * len(inputs.tensors), generator)) for size in _SIZES
    )
    works = list(zip(small.works, large.works, strict=False))
    for before, after in works:
        if any(map(_departs, before.shapes, after.shapes)):
            return before.module
    raised = small.raised or large.raised
    if raised:
        return raised
    for before, after in works:
        if not all(map(_first_axis_follows, before.shapes, after.shapes)):
            return before.module
    return None


@dataclass(frozen=True, slots=True)
class _Work:
    """The shapes of tensors that were made in the forward of a module."""

    module: str
    shapes: list[torch.Size]


@dataclass(slots=True)
class _Run:
    """What modules made, in order, and which of them run at the moment or raised."""

    works: list[_Work] = field(default_factory=list)
    entered: list[str] = field(default_factory=list)
    raised: str | None = None

    def enter(
        self, name: str, _module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        """Note what a module is given by the one around it."""
        if self.entered:
            self.works.append(_Work(self.entered[-1], _shapes([*args, *kwargs.values()])))
        self.entered.append(name)

    def leave(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        """Note what a module returns."""
        self.entered.pop()
        self.works.append(_Work(name, _shapes(output)))


def _run(model: nn.Module, batch: Inputs) -> _Run:
    run = _Run()
    with _recording(model, run):
        try:
            batch.call(model)
        except Exception:  # noqa: BLE001 - whatever a forward raises is what is looked for
            run.raised = run.entered[-1] if run.entered else None
    return run


@contextlib.contextmanager
def _recording(model: nn.Module, run: _Run) -> Iterator[None]:
    with attributes_preserved(model), evaluating(model), random_state_preserved():
        for name, module in model.named_modules():
            kind = type(module).__name__
            shown = f"`{name}` ({kind})" if name else kind
            module.register_forward_pre_hook(partial(run.enter, shown), with_kwargs=True)
            module.register_forward_hook(partial(run.leave, shown))
        yield


def _departs(before: torch.Size, after: torch.Size) -> bool:
    """Return whether a tensor holds the batch, but not along an axis of its size."""
    if before == after or _first_axis_follows(before, after):
        return False
    # Recurrent layers and attention may have the batch as another axis than the first.
    return _SIZES not in zip(before, after, strict=False)


def _first_axis_follows(before: torch.Size, after: torch.Size) -> bool:
    small, large = _SIZES
    return not before or not after or after[0] * small == before[0] * large


def _shapes(values: object) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(values)]
