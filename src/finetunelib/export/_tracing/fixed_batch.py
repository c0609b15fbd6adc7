"""Finds the module that turns the batch size into a constant."""

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

#: Two sizes, neither of which is a multiple of the other.
_SIZES = (2, 3)


def module_that_fixes_the_batch(model: nn.Module, inputs: Inputs) -> str | None:
    """Return the name and class of the module whose forward hard-codes the batch size.

    The model runs on two batch sizes. A tensor that a module returns is attributed to that module,
    and a tensor that it is passed to the module around it. The result is the module of the first
    tensor that changes with the batch, but not along an axis of that size; else the innermost
    module that raised; else the module of the first tensor whose first axis does not change. It
    is `None` if all tensors follow the batch.
    """
    generator = torch.Generator().manual_seed(0)
    small, large = (
        _run(model, inputs.resized([size] * len(inputs.tensors), generator)) for size in _SIZES
    )
    pairs = list(zip(small.results, large.results, strict=False))
    for before, after in pairs:
        if any(map(_loses_the_batch, before.shapes, after.shapes)):
            return before.module
    raised = small.raised or large.raised
    if raised:
        return raised
    for before, after in pairs:
        if not all(map(_first_axis_follows, before.shapes, after.shapes)):
            return before.module
    return None


@dataclass(frozen=True, slots=True)
class _Result:
    """The shapes of tensors that were computed in the forward of a module."""

    module: str
    shapes: list[torch.Size]


@dataclass(slots=True)
class _Run:
    """The results of modules in order, the modules that are running, and the one that raised."""

    results: list[_Result] = field(default_factory=list)
    entered: list[str] = field(default_factory=list)
    raised: str | None = None

    def enter(
        self, name: str, _module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        """Record the inputs of a module as results of the module around it."""
        if self.entered:
            self.results.append(_Result(self.entered[-1], _shapes([*args, *kwargs.values()])))
        self.entered.append(name)

    def leave(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        """Record the outputs of a module."""
        self.entered.pop()
        self.results.append(_Result(name, _shapes(output)))


def _run(model: nn.Module, batch: Inputs) -> _Run:
    run = _Run()
    with _recording(model, run):
        try:
            batch.call(model)
        except Exception:  # noqa: BLE001 - a forward can raise anything
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


def _loses_the_batch(before: torch.Size, after: torch.Size) -> bool:
    """Return whether a tensor depends on the batch size, but has no axis of that size."""
    if before == after or _first_axis_follows(before, after):
        return False
    # In recurrent layers and attention the batch may be another axis than the first.
    return _SIZES not in zip(before, after, strict=False)


def _first_axis_follows(before: torch.Size, after: torch.Size) -> bool:
    small, large = _SIZES
    return not before or not after or after[0] * small == before[0] * large


def _shapes(values: object) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(values)]
