"""A forward pass without side effects, on meta tensors if the model allows it.

Meta tensors have shapes but no data, so nothing is computed and no memory is allocated. The
autograd graph of such a run is the same as that of a run on real tensors.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from finetunelib._forward.guess import batch_of, first_accepted, random_tensor
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.run import ANY_ERROR, run_once
from finetunelib.errors import InvalidInputError

_META = torch.device("meta")

#: The number of parameters of a model that runs on two samples in a fraction of a second.
_SMALL = 5_000_000


@dataclass(frozen=True, slots=True)
class DryRun:
    """The result of a forward pass without side effects.

    Attributes:
        example: The inputs that the model accepted: the user's, or a guess. A guess consists of
            meta tensors if the run did.
        output: What the model returned, with its autograd graph.
        sources: Where the inputs enter that graph.
        twins: The tensor that was used in place of each parameter, by the parameter's name.
        on_meta: Whether the run was on meta tensors.
    """

    example: Inputs
    output: object
    sources: list[Node]
    twins: dict[str, Tensor]
    on_meta: bool

    @property
    def outputs(self) -> Tensor:
        """The tensor of the output, `(batch, ...)`.

        Raises:
            OutputKindError: If the output is not a tensor and has none in `.logits`.
        """
        return batch_of(self.output)


def dry_run(model: nn.Module, example_input: ModelInputs | Inputs | None) -> DryRun:
    """Run a model on meta tensors, or on real ones if that fails, without changing it.

    Args:
        model: An unwrapped model.
        example_input: A batch that the model accepts, or `None` to guess.

    Raises:
        InvalidInputError: If the model does not run. The cause is the exception of its forward.
        InvalidTypeError: If `example_input` is of another type.
    """
    if example_input is not None and not isinstance(example_input, Inputs):
        example_input = Inputs.of(example_input, "example_input", batched=False)
    if (_is_recurrent(model) or _is_small(model)) and not _is_on_meta(model):
        return _run(model, example_input, on_meta=False)
    try:
        return _run(model, example_input, on_meta=True)
    except InvalidInputError:
        if _is_on_meta(model):
            raise
    if isinstance(example_input, Inputs):
        device = next((parameter.device for parameter in model.parameters()), None)
        example_input = _with_data(example_input, device)
    return _run(model, example_input, on_meta=False)


def real_run(model: nn.Module, inputs: Inputs, device: torch.device) -> DryRun:
    """Run a model on real tensors, without changing it.

    Args:
        model: An unwrapped model.
        inputs: A batch that the model accepts; its meta tensors are replaced by tensors with data.
        device: The device of those tensors.

    Raises:
        InvalidInputError: If the model does not run. The cause is the exception of its forward.
    """
    return _run(model, _with_data(inputs, device), on_meta=False)


def _run(model: nn.Module, example_input: Inputs | None, *, on_meta: bool) -> DryRun:
    # Copies of the parameters: the user's get no gradients, and a forward may write into them.
    twins = {
        name: (
            torch.empty_like(parameter, device=_META) if on_meta else parameter.detach().clone()
        ).requires_grad_(_is_differentiable(parameter))
        for name, parameter in model.named_parameters()
    }
    buffers = buffer_twins(model, on_meta=on_meta)
    sources: list[Node] = []

    def attempt(inputs: Inputs, constant: frozenset[int]) -> object:
        """Run the model, with gradients for all inputs but those at some positions."""
        sources.clear()
        tensors = [
            _traced(value, sources, on_meta=on_meta, constant=position in constant)
            for position, value in enumerate(inputs.tensors)
        ]
        return run_once(
            model,
            inputs.with_tensors(tensors),
            stand_ins=twins | buffers,
            gradients=True,
            errors=ANY_ERROR,
        )

    def run(inputs: Inputs) -> object:
        """Run the model, if needed without gradients for one or all inputs.

        Some functions refuse gradients for one of their arguments, such as the target of a loss.
        """
        try:
            return attempt(inputs, frozenset())
        except InvalidInputError as error:
            refusal = error
        everything, *single = _constants(inputs)
        try:
            output = attempt(inputs, everything) if everything else None
        except InvalidInputError:
            output = None
        if output is None:
            raise refusal
        for constant in single:
            with contextlib.suppress(InvalidInputError):
                return attempt(inputs, constant)
        return attempt(inputs, everything)

    example, output = first_accepted(model, example_input, run, device=_META if on_meta else None)
    return DryRun(example, output, sources, twins, on_meta)


def buffer_twins(model: nn.Module, *, on_meta: bool) -> dict[str, Tensor]:
    """Return a tensor to use in place of each buffer of a model, by the buffer's name."""
    return {
        name: torch.empty_like(buffer, device=_META) if on_meta else buffer.clone()
        for name, buffer in model.named_buffers()
    }


def _constants(inputs: Inputs) -> Iterator[frozenset[int]]:
    """Yield the positions of all differentiable inputs, and of each if there are several."""
    positions = [
        position
        for position, value in enumerate(inputs.tensors)
        if isinstance(value, Tensor) and _is_differentiable(value)
    ]
    yield frozenset(positions)
    if len(positions) > 1:
        yield from (frozenset([position]) for position in positions)


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _traced(value: Tensor, sources: list[Node], *, on_meta: bool, constant: bool) -> Tensor:
    """Return an argument in a form that shows where it enters the graph."""
    if not isinstance(value, Tensor):
        return value
    if on_meta:
        value = torch.empty_like(value, device=_META)
    if constant or not _is_differentiable(value):
        return value.detach()
    # A copy, because an in-place operation on a leaf that requires gradients is refused.
    value = value.detach().requires_grad_().clone()
    if value.grad_fn is not None:
        sources.append(value.grad_fn)
    return value


def _with_data(inputs: Inputs, device: torch.device | None) -> Inputs:
    """Return the inputs with data in place of meta tensors."""

    def filled(value: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        if _is_differentiable(value):
            return random_tensor(value.shape).to(device=device, dtype=value.dtype)
        return torch.zeros_like(value, device=device or torch.device("cpu"))

    return inputs.map(filled)


def _is_small(model: nn.Module) -> bool:
    """Return whether a real run is faster than the imports of the first run on meta tensors."""
    # These imports take seconds, once per process; torchvision and transformers need them too.
    loaded = "torch._dynamo" in sys.modules
    return not loaded and sum(p.numel() for p in model.parameters()) < _SMALL


def _is_recurrent(model: nn.Module) -> bool:
    """Return whether a meta run is slower than a real one: torch unrolls recurrent layers."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _is_on_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
