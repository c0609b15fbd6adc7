"""One forward pass of a model that is only watched: what each module returned, and what failed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetunelib._arguments import uninitialized
from finetunelib._forward.guess import likely_inputs
from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import tensors_in
from finetunelib._forward.run import ANY_ERROR, raised_by_forward, run_once
from finetunelib.errors import FinetuneLibError
from finetunelib.visualization._summary.tree import Part

#: The shapes of the tensors that one call of a module returned.
Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Watched:
    """What a forward pass has shown.

    Attributes:
        inputs: What the model was run on; `None` where it was not run.
        guessed: Whether these inputs were made up.
        calls: For each module that returned, the shapes of each call.
        touched: The modules of whose own tensors an operation took one.
        unfinished: The modules that were entered and did not return, the innermost last.
        error: What the forward pass raised.
        advice: What to do to see shapes, where the model was not run or no guess fits it.
    """

    inputs: Inputs | None = None
    guessed: bool = False
    calls: dict[nn.Module, list[Shapes]] = field(default_factory=dict)
    touched: set[nn.Module] = field(default_factory=set)
    unfinished: list[nn.Module] = field(default_factory=list)
    error: Exception | None = None
    advice: str | None = None


def watch(tree: Part, example: Inputs | None) -> Watched:
    """Run a model in eval mode, and change nothing of it.

    Args:
        tree: The model, with the modules to watch.
        example: What it takes, or `None` to guess.
    """
    model = tree.module
    lazy = uninitialized(model)
    if lazy is not None:
        return Watched(advice=f"Shapes are unknown: {lazy}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return Watched(
            advice="Shapes are unknown, since TorchScript does not show its calls. Pass the "
            "module that it was made from."
        )
    if example is not None:
        return _run(tree, _on_meta_like(model, example), guessed=False)
    furthest = Watched(advice="Shapes are unknown. Pass `example_input=`, a batch for the model.")
    for guess in likely_inputs(model):
        watched = _run(tree, Inputs.of(guess, "guess"), guessed=True)
        if watched.error is None:
            return watched
        if furthest.inputs is None or len(watched.calls) > len(furthest.calls):
            furthest = watched
    if furthest.error is not None:
        furthest.advice = (
            "No guessed input fits, and the one that came furthest is shown. Pass "
            "`example_input=`, a batch for the model."
        )
    return furthest


def _run(tree: Part, inputs: Inputs, *, guessed: bool) -> Watched:
    model, watched = tree.module, Watched(inputs, guessed)
    # Copies, since a forward may write into its weights and buffers.
    twins = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    # A first layer may work in place.
    inputs = inputs.map(lambda tensor: tensor.detach().clone())
    owners = _owners(model, twins | buffers)
    with contextlib.ExitStack() as hooks:
        before, after = _hooks(watched)
        for module in {part.module for part in tree.walk()}:
            hooks.callback(module.register_forward_pre_hook(before, prepend=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        try:
            with _Touches(owners, watched.touched):
                run_once(model, inputs, stand_ins=twins | buffers, errors=ANY_ERROR)
        except FinetuneLibError as error:
            watched.error = raised_by_forward(error)
    return watched


def _hooks(watched: Watched) -> tuple[Any, Any]:  # Any: torch's own types of hooks are unions
    """Return what to call before and after a module's forward."""

    def before(module: nn.Module, _: object) -> None:
        watched.unfinished.append(module)

    def after(module: nn.Module, _: object, output: object) -> None:
        # What a model caught and went on from stands above it.
        while watched.unfinished and watched.unfinished.pop() is not module:
            pass
        shapes = tuple(tuple(tensor.shape) for tensor in tensors_in(output))
        watched.calls.setdefault(module, []).append(shapes)

    return before, after


class _Touches(TorchFunctionMode):
    """Notes whose tensors the operations take: some modules are not called, only their weights."""

    def __init__(self, owners: Mapping[int, nn.Module], touched: set[nn.Module]) -> None:
        super().__init__()
        self._owners = owners
        self._touched = touched

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # Any: whatever the operation takes and returns
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") != "__get__":  # A look at a shape or a dtype uses nothing.
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    owner = self._owners.get(id(tensor))
                    if owner is not None:
                        self._touched.add(owner)
        return result


def _owners(model: nn.Module, twins: Mapping[str, Tensor]) -> dict[int, nn.Module]:
    """Return the module that each tensor belongs to, by the tensor's identity."""
    owners = {}
    for name, twin in twins.items():
        path, _, own_name = name.rpartition(".")
        module = model.get_submodule(path)
        owners[id(twin)] = module
        # A recurrent layer keeps a list of its weights, which nothing swaps.
        owners[id(getattr(module, own_name, None))] = module
    return owners


def _on_meta_like(model: nn.Module, example: Inputs) -> Inputs:
    """Return the inputs as they are, or without data for a model that has none."""
    weights = list(model.parameters())
    if not weights or not all(weight.is_meta for weight in weights):
        return example
    return example.with_tensors([torch.empty_like(t, device="meta") for t in example.tensors])
