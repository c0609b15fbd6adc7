"""A forward pass that leaves the model unchanged, on the meta device if the model allows it.

Meta tensors have shapes and no data, so nothing is computed and no memory is used. The autograd
graph of such a run is that of a real one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from finetunelib._forward.guess import OutputKindError, random_tensor, run_on_example
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.run import ANY_ERROR, INPUT_ERRORS, run_once
from finetunelib.errors import InvalidInputError

_META = torch.device("meta")

#: A model with fewer parameters runs on two samples in a fraction of a second.
_SMALL = 5_000_000


@dataclass(frozen=True, slots=True)
class DryRun:
    """The inputs, outputs and autograd graph of a dry run.

    Attributes:
        example: The inputs that the model took: the user's, or a guess, which is on the meta device
            if `on_meta` is set.
        outputs: The model's outputs, with their autograd graph.
        sources: The nodes at which the inputs enter that graph.
        twins: The tensor that was used in place of each parameter, by the parameter's name.
        on_meta: Whether the run was on the meta device.
    """

    example: Inputs
    outputs: Tensor
    sources: list[Node]
    twins: dict[str, Tensor]
    on_meta: bool


def dry_run(model: nn.Module, example_input: ModelInputs | Inputs | None) -> DryRun:
    """Run a model on meta tensors, or on real ones if that fails, and leave it unchanged.

    Args:
        model: An unwrapped model.
        example_input: A batch that the model takes, or `None` to guess.

    Raises:
        InvalidInputError: If the model does not run. The cause is an `OutputKindError` if it ran
            but did not return a batch.
    """
    if example_input is not None and not isinstance(example_input, Inputs):
        example_input = Inputs.of(example_input, "example_input", batched=False)
    if (_is_recurrent(model) or _is_small(model)) and not _lives_on_meta(model):
        return _run(model, example_input, on_meta=False)
    try:
        return _run(model, example_input, on_meta=True)
    except InvalidInputError as error:
        # On real tensors the model would return the same, and a meta model has no real tensors.
        if isinstance(error.__cause__, OutputKindError) or _lives_on_meta(model):
            raise
    if isinstance(example_input, Inputs):
        device = next((parameter.device for parameter in model.parameters()), None)
        example_input = _with_data(example_input, device)
    return _run(model, example_input, on_meta=False)


def real_run(model: nn.Module, inputs: Inputs, device: torch.device) -> DryRun:
    """Run a model on real tensors, and leave it unchanged.

    Args:
        model: An unwrapped model.
        inputs: A batch that the model takes; its meta tensors are replaced by tensors with data.
        device: The device of those tensors.

    Raises:
        InvalidInputError: If the model does not run. The cause is an `OutputKindError` if it ran
            but did not return a batch.
    """
    return _run(model, _with_data(inputs, device), on_meta=False)


def _run(model: nn.Module, inputs: Inputs | None, *, on_meta: bool) -> DryRun:
    # Copies of the parameters: the user's get no gradients, and a forward may write into them.
    twins = {
        name: (
            torch.empty_like(parameter, device=_META) if on_meta else parameter.detach().clone()
        ).requires_grad_(parameter.is_floating_point())
        for name, parameter in model.named_parameters()
    }
    buffers = {
        name: torch.empty_like(buffer, device=_META) if on_meta else buffer.clone()
        for name, buffer in model.named_buffers()
    }
    sources: list[Node] = []

    def run(inputs: Inputs) -> object:
        sources.clear()
        return run_once(
            model,
            inputs.map(lambda value: _traced(value, sources, on_meta=on_meta)),
            stand_ins=twins | buffers,
            gradients=True,
            # Without data a model may fail in any way; the real run shows whether it is at fault.
            errors=ANY_ERROR if on_meta else INPUT_ERRORS,
        )

    example, outputs = run_on_example(model, inputs, run, device=_META if on_meta else None)
    return DryRun(example, outputs, sources, twins, on_meta)


def _traced(value: Tensor, sources: list[Node], *, on_meta: bool) -> Tensor:
    """Return a copy of an argument, and append the node at which it enters the graph."""
    if not isinstance(value, Tensor):
        return value
    if on_meta:
        value = torch.empty_like(value, device=_META)
    if not value.is_floating_point():
        return value
    # A clone: an in-place first layer does not accept a leaf that requires gradients.
    value = value.detach().requires_grad_().clone()
    if value.grad_fn is not None:
        sources.append(value.grad_fn)
    return value


def _with_data(inputs: Inputs, device: torch.device | None) -> Inputs:
    """Return the inputs with data in place of meta tensors."""

    def filled(value: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        if value.is_floating_point():
            return random_tensor(value.shape).to(device=device, dtype=value.dtype)
        return torch.zeros_like(value, device=device or torch.device("cpu"))

    return inputs.map(filled)


def _is_small(model: nn.Module) -> bool:
    """Return whether a run with data is faster than the first run without data."""
    # The first one in a process imports torch._dynamo, which takes seconds.
    loaded = "torch._dynamo" in sys.modules
    return not loaded and sum(p.numel() for p in model.parameters()) < _SMALL


def _is_recurrent(model: nn.Module) -> bool:
    """Return whether a run without data is slower: it unrolls recurrent layers in Python."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _lives_on_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
