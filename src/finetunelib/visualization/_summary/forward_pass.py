"""Records one forward pass: the shapes that each module returned, and where it failed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetunelib._arguments import uninitialized
from finetunelib._forward.guess import likely_inputs
from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import tensors_in
from finetunelib._forward.run import ANY_ERROR, raised_by_forward, run_once
from finetunelib._forward.uses import values_used
from finetunelib._writes import WritesUndone, alias_of
from finetunelib.errors import FinetuneLibError
from finetunelib.visualization._summary.tree import Part

#: The shapes of the tensors returned by one call of a module.
Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class ForwardRecord:
    """The record of a forward pass.

    Attributes:
        inputs: The inputs of the model, or `None` if it did not run.
        guessed: Whether the inputs were guessed.
        calls: For each module that returned, the shapes of each call.
        used: The modules whose parameters or buffers were used by an operation.
        unfinished: The modules that were called and did not return, the innermost last.
        error: The exception that the forward pass raised.
        advice: How to get shapes, if the model did not run or no guessed input fits it.
    """

    inputs: Inputs | None = None
    guessed: bool = False
    calls: dict[nn.Module, list[Shapes]] = field(default_factory=dict)
    used: set[nn.Module] = field(default_factory=set)
    unfinished: list[nn.Module] = field(default_factory=list)
    error: Exception | None = None
    advice: str | None = None


def record_forward(tree: Part, example: Inputs | None) -> ForwardRecord:
    """Run a model in eval mode without changing it, and return the record.

    Args:
        tree: The model and the modules to record.
        example: The inputs of the model, or `None` to guess them.
    """
    model = tree.module
    lazy = uninitialized(model)
    if lazy is not None:
        return ForwardRecord(advice=f"Shapes are unknown: {lazy}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return ForwardRecord(
            advice="Shapes are unknown because TorchScript does not expose its calls. Pass the "
            "module that it was created from."
        )
    if example is not None:
        return _run(tree, _on_meta_like(model, example), guessed=False)
    furthest = ForwardRecord(
        advice="Shapes are unknown. Pass `example_input=`, a batch for the model."
    )
    for guess in likely_inputs(model):
        record = _run(tree, Inputs.of(guess, "guess"), guessed=True)
        if record.error is None:
            return record
        if furthest.inputs is None or len(record.calls) > len(furthest.calls):
            furthest = record
    if furthest.error is not None:
        furthest.advice = (
            "No guessed input fits; the one that got furthest is shown. Pass `example_input=`, a "
            "batch for the model."
        )
    return furthest


def _run(tree: Part, inputs: Inputs, *, guessed: bool) -> ForwardRecord:
    model, record = tree.module, ForwardRecord(inputs, guessed)
    # A forward may write into its weights, buffers or inputs. Only the inputs are copied, because
    # the weights of a large model may fill half of the memory.
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    stand_ins = {name: alias_of(tensor) for name, tensor in tensors.items()}
    inputs = inputs.map(lambda tensor: tensor.detach().clone())
    owners = _owners(model, stand_ins)
    undone = WritesUndone(tensors.values())
    with contextlib.ExitStack() as hooks:
        before, after = _hooks(record)
        for module in {part.module for part in tree.walk()}:
            hooks.callback(module.register_forward_pre_hook(before, prepend=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        try:
            with undone, _UseRecorder(owners, record.used, undone):
                run_once(model, inputs, stand_ins=stand_ins, errors=ANY_ERROR)
        except FinetuneLibError as error:
            record.error = raised_by_forward(error)
    return record


def _hooks(record: ForwardRecord) -> tuple[Any, Any]:  # Any: torch's own types of hooks are unions
    """Return the hooks to call before and after a module's forward."""

    def before(module: nn.Module, _: object) -> None:
        record.unfinished.append(module)

    def after(module: nn.Module, _: object, output: object) -> None:
        # If this module caught the exception of an inner one, that is still in the list.
        while record.unfinished and record.unfinished.pop() is not module:
            pass
        shapes = tuple(tuple(tensor.shape) for tensor in tensors_in(output))
        record.calls.setdefault(module, []).append(shapes)

    return before, after


class _UseRecorder(TorchFunctionMode):
    """Records the modules whose tensors are used: some are used without being called."""

    def __init__(
        self, owners: Mapping[int, nn.Module], used: set[nn.Module], undone: WritesUndone
    ) -> None:
        super().__init__()
        self._owners = owners
        self._used = used
        self._undone = undone

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # Any: the arguments and the result of any operation
        kwargs = kwargs or {}
        self._undone.before_function(func, args)
        result = func(*args, **kwargs)
        for value in values_used(func, args, kwargs):
            owner = self._owners.get(id(value))
            if owner is not None:
                self._used.add(owner)
        return result


def _owners(model: nn.Module, stand_ins: Mapping[str, Tensor]) -> dict[int, nn.Module]:
    """Return the module that each tensor belongs to, by the tensor's identity."""
    owners = {}
    for name, stand_in in stand_ins.items():
        path, _, own_name = name.rpartition(".")
        module = model.get_submodule(path)
        owners[id(stand_in)] = module
        # `functional_call` does not replace the list of weights that a recurrent layer keeps.
        owners[id(getattr(module, own_name, None))] = module
    return owners


def _on_meta_like(model: nn.Module, example: Inputs) -> Inputs:
    """Return the inputs, as meta tensors if the whole model is on the meta device."""
    weights = list(model.parameters())
    if not weights or not all(weight.is_meta for weight in weights):
        return example
    return example.with_tensors([torch.empty_like(t, device="meta") for t in example.tensors])
