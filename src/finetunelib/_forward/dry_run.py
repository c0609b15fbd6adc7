"""A forward pass that leaves no trace: on meta tensors where a model allows it.

On the meta device tensors have shapes and no data, so that nothing is computed and no memory is
taken. The autograd graph of such a run is the same as that of a real one.
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

#: The parameters of a model that runs on two samples in a fraction of a second.
_SMALL = 5_000_000


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a forward pass without a trace has shown.

    Attributes:
        example: The inputs that the model took: the user's own, or a guess, which is a meta tensor
            where the run was one on meta tensors.
        outputs: The model's outputs, with their autograd graph.
        sources: Where the inputs enter that graph.
        twins: What stood in for each parameter, by the parameter's name in the model.
        on_meta: Whether there was no data.
    """

    example: Inputs
    outputs: Tensor
    sources: list[Node]
    twins: dict[str, Tensor]
    on_meta: bool


def dry_run(model: nn.Module, example_input: ModelInputs | Inputs | None) -> DryRun:
    """Run a model on meta tensors, or on real ones where that fails, and change nothing of it.

    Args:
        model: An unwrapped model.
        example_input: A batch that the model takes, or `None` to guess.

    Raises:
        InvalidInputError: The model does not run. Its cause is an `OutputKindError` where it did,
            but returned something else than a batch.
    """
    if example_input is not None and not isinstance(example_input, Inputs):
        example_input = Inputs.of(example_input, "example_input", batched=False)
    if (_is_recurrent(model) or _is_small(model)) and not _lives_on_meta(model):
        return _run(model, example_input, on_meta=False)
    try:
        return _run(model, example_input, on_meta=True)
    except InvalidInputError as error:
        # What a model returns is the same on real tensors, and a meta model has no others.
        if isinstance(error.__cause__, OutputKindError) or _lives_on_meta(model):
            raise
    if isinstance(example_input, Inputs):
        device = next((parameter.device for parameter in model.parameters()), None)
        example_input = _with_data(example_input, device)
    return _run(model, example_input, on_meta=False)


def real_run(model: nn.Module, inputs: Inputs, device: torch.device) -> DryRun:
    """Run a model on real tensors, and change nothing of it.

    Args:
        model: An unwrapped model.
        inputs: A batch that the model takes; its meta tensors are replaced by tensors with data.
        device: The device of those tensors.

    Raises:
        InvalidInputError: The model does not run. Its cause is an `OutputKindError` where it did,
            but returned something else than a batch.
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
    """Return an argument in a form that shows where it enters the graph."""
    if not isinstance(value, Tensor):
        return value
    if on_meta:
        value = torch.empty_like(value, device=_META)
    if not value.is_floating_point():
        return value
    # A copy, since a first layer that works in place refuses what needs gradients.
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
    """Return whether a run with data is quicker than what torch's first run without data loads."""
    # That takes seconds, and once in a process; torchvision and transformers do it at import.
    loaded = "torch._dynamo" in sys.modules
    return not loaded and sum(p.numel() for p in model.parameters()) < _SMALL


def _is_recurrent(model: nn.Module) -> bool:
    """Return whether a run without data takes longer than one with: torch unrolls it in Python."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _lives_on_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
