"""Gradient checkpointing: which blocks of a model are run again in the backward pass."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from finetunelib._messages import quoted
from finetunelib._wrappers import own_modules
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning._freezing.blocks import CONTAINERS

#: Whether blocks are checkpointed: none, those that the model itself names, or these.
GradientCheckpointing: TypeAlias = bool | Sequence[str]

#: The flag and the function in the modules of transformers.
_FLAG, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"

#: An attribute that a module does not have.
_MISSING = object()


class Checkpointing(Protocol):
    """What is done to a model while it runs and its gradients are computed."""

    def applied(self) -> AbstractContextManager[None]:
        """Return a context in which blocks are checkpointed."""
        ...

    def in_step(self) -> AbstractContextManager[None]:
        """Return the context of the passes of a training step."""
        ...


class NoCheckpointing:
    """Leaves a model as it is."""

    def applied(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def in_step(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()


def choose_checkpointing(
    model: nn.Module, chosen: GradientCheckpointing, *, compiled: bool = False
) -> Checkpointing:
    """Return what is done to a model in its training steps.

    Args:
        model: The model. It is changed in the steps only.
        chosen: Whether blocks are checkpointed, or their names.
        compiled: Whether the model is run through `torch.compile`.

    Raises:
        InvalidTypeError: If `chosen` is neither a bool nor a sequence of strings.
        InvalidArgumentError: If a name matches no block, the model names no blocks itself, or it
            is compiled.
    """
    if chosen is False:
        return NoCheckpointing()
    if compiled or hasattr(model, "_orig_mod"):
        raise InvalidArgumentError(
            "`gradient_checkpointing` cannot be combined with `torch.compile`, which chooses what "
            "to compute again. Leave out one of them."
        )
    if chosen is True:
        return _offered(model)
    if isinstance(chosen, str) or not isinstance(chosen, Sequence):
        raise InvalidTypeError(
            "`gradient_checkpointing` must be True, False or a sequence of names or patterns such "
            f'as `["layers.*"]`, got {chosen!r} ({type(chosen).__name__}).'
        )
    named = _named(model, chosen)
    # A layer of transformers knows which of its arguments must not be used twice.
    flagged = [block for block in named if _checkpoints_itself(block)]
    others = [block for block in named if block not in flagged]
    return _Blocks(model, blocks=others, flagged=flagged)


class _Blocks:
    """Checkpoints blocks of a model.

    Args:
        model: The model.
        blocks: The blocks.
        flagged: Modules of transformers, which checkpoint themselves through a function.
        others: Attributes that a model of timm sets to checkpoint its blocks itself.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Iterable[nn.Module] = (),
        flagged: Iterable[nn.Module] = (),
        others: Sequence[tuple[nn.Module, str, object]] = (),
    ) -> None:
        self._model = model
        self._blocks, self._flagged = list(blocks), list(flagged)
        self._others = others
        self._norms = [m for m in model.modules() if _has_statistics(m)] if others else []
        self._is_first = True
        self._has_run = False

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Run the block with checkpointed blocks, then set back all that was changed.

        Raises:
            InvalidArgumentError: If the model checkpoints itself and has a BatchNorm in train mode.
        """
        self._check_norms()
        changes = [*self._others]
        for module in self._flagged:
            changes += [(module, _FLAG, True), (module, _FUNCTION, self._run_function)]
        for block in self._blocks:
            changes.append((block, "forward", partial(self._run, block, block.forward)))
        before = [(vars(part), name, vars(part).get(name, _MISSING)) for part, name, _ in changes]
        try:
            for part, name, value in changes:
                vars(part)[name] = value
            yield
        finally:
            for attributes, name, value in before:
                if value is _MISSING:
                    attributes.pop(name, None)
                else:
                    attributes[name] = value

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Run the passes of a step, and warn after the first one if no block was checkpointed.

        Raises:
            InvalidArgumentError: As `applied` does.
        """
        if not self._is_first:
            with self.applied():
                yield
            return
        self._is_first = False
        self._has_run = bool(self._others)  # The functions of timm do not tell.
        with self.applied():
            yield
        self._warn_if_unused()

    def _run(
        self, block: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        from finetunelib.training._memory.recompute import run_and_recompute

        self._has_run = True
        return run_and_recompute(block, function, *args, **kwargs)

    def _run_function(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function as the modules of transformers pass it."""
        return self._run(_module_of(function) or self._model, function, *args, **kwargs)

    def _check_norms(self) -> None:
        if any(norm.training for norm in self._norms):
            raise InvalidArgumentError(
                f"{type(self._model).__name__} has BatchNorms in train mode, whose statistics its "
                "own gradient checkpointing would update twice in each step. Name the blocks "
                f"instead, which are then updated once: {_example(self._model)}."
            )

    def _warn_if_unused(self) -> None:
        if not self._has_run:
            parts = {*self._blocks, *self._flagged}
            names = [
                n or type(m).__name__ for n, m in own_modules(self._model).items() if m in parts
            ]
            warnings.warn(
                "`gradient_checkpointing` had no effect on the first step, which called none of "
                f"{quoted(names)} in train mode. They may be frozen, cached, or called by another "
                "method than `forward`.",
                UserWarning,
                stacklevel=2,
            )


def _named(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the blocks with these names, without those inside others.

    Raises:
        InvalidTypeError: If a name is not a string.
        InvalidArgumentError: If a name matches no module that can be checkpointed.
    """
    from finetunelib.finetuning._freezing.selection import select

    if not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(
            f"`gradient_checkpointing` must contain names or patterns, got {list(names)!r}."
        )
    selection = select(model, list(names), "gradient_checkpointing")
    if not selection.named:
        raise InvalidArgumentError(
            f"`gradient_checkpointing` names parameters only: {quoted(list(names))}. Name modules, "
            f"such as {_example(model)}."
        )
    blocks: dict[nn.Module, None] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module not in selection.named or module in inside:
            continue
        if isinstance(module, nn.ModuleList | nn.ModuleDict | torch.jit.ScriptModule):
            raise InvalidArgumentError(
                f"`gradient_checkpointing` contains `{name}`, a {type(module).__name__}, whose "
                "calls cannot be checkpointed. Name modules with a `forward`, such as "
                f'`["{name}.*"]`.'
            )
        blocks[module] = None
        inside.update(module.modules())
    return list(blocks)


def _offered(model: nn.Module) -> _Blocks:
    """Return the blocks that a model of transformers or timm names itself.

    Raises:
        InvalidArgumentError: If there are none.
    """
    flagged = [
        module
        for part in model.modules()
        if getattr(part, "supports_gradient_checkpointing", False) is True
        for module in part.modules()
        if hasattr(module, _FLAG)
    ]
    if flagged:
        return _Blocks(model, flagged=dict.fromkeys(flagged))
    offering = next((m for m in model.modules() if hasattr(m, "set_grad_checkpointing")), None)
    if offering is not None:
        changes = _changes_of(model, offering)
        if changes:
            return _Blocks(model, others=changes)
    raise InvalidArgumentError(
        f"{type(model).__name__} does not say which of its blocks can be checkpointed, as models "
        "of transformers and timm do. Name the blocks that are repeated: "
        f"{_example(model)}."
    )


def _changes_of(model: nn.Module, offering: nn.Module) -> list[tuple[nn.Module, str, object]]:
    """Return the attributes that a model of timm sets, which it then has no longer."""
    from finetunelib._preserve import attributes_preserved

    enable: Any = offering.set_grad_checkpointing
    with attributes_preserved(model):
        before = [(module, dict(vars(module))) for module in model.modules()]
        try:
            enable(True)
        except Exception:  # noqa: BLE001 - some of them refuse it with an assertion
            return []
        return [
            (module, name, value)
            for module, values in before
            for name, value in vars(module).items()
            if name not in values or values[name] is not value
        ]


def _checkpoints_itself(block: nn.Module) -> bool:
    """Return whether a module is a layer of transformers that can checkpoint itself."""
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(block).__mro__)


def _module_of(function: object) -> nn.Module | None:
    """Return the module that a function belongs to: its method, or its first argument."""
    while isinstance(function, partial):
        if function.args and isinstance(function.args[0], nn.Module):
            return function.args[0]
        function = function.func
    owner = getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _has_statistics(module: nn.Module) -> bool:
    """Return whether a module is a norm that follows the statistics of its batches."""
    return getattr(module, "running_mean", None) is not None


def _example(model: nn.Module) -> str:
    """Return how the blocks of a model can be named, as code."""
    names: list[str] = []
    inside: set[nn.Module] = set()
    for name, module in own_modules(model).items():
        children = list(module.children()) if isinstance(module, CONTAINERS) else []
        # Blocks consist of layers.
        if name and children and all(map(_has_parts, children)) and module not in inside:
            names.append(f"{name}.*")
            inside.update(module.modules())
    if not names:
        names = [name for name, part in model.named_children() if list(part.parameters())][:2]
    return f"`gradient_checkpointing={json.dumps(names or ['layers.*'])}`"


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
