"""Guessing what a model takes: the inputs that a dry run can use when the user gave none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from finetunelib._typing import Shape
from finetunelib.errors import InvalidInputError

#: Image sizes that classifiers are built for, the commonest first; 299 is Inception's.
_SIZES = (224, 32, 28, 64, 299)

_FirstLayer: TypeAlias = nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d


def first_layer(model: nn.Module) -> tuple[str, _FirstLayer] | None:
    """Return the name and module of the first layer that fixes the inputs' width, if any."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return name, module
    return None


def likely_shapes(model: nn.Module) -> Iterator[Shape]:
    """Yield input shapes of two samples that the model may take, the likeliest first."""
    found = first_layer(model)
    if found is None:
        return
    _, layer = found
    if isinstance(layer, nn.Linear):
        yield (2, layer.in_features)
    elif not isinstance(layer, nn.Embedding):
        dimensions = layer.weight.dim() - 2
        # Volumes of image size would not fit into memory.
        for size in _SIZES if dimensions < 3 else (32, 16):
            yield (2, layer.in_channels, *[size] * dimensions)


def likely_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Yield inputs of two samples on the model's own device and dtype, the likeliest first."""
    found = first_layer(model)
    if found is None:
        return
    weight = found[1].weight
    generator = torch.Generator().manual_seed(0)
    for shape in likely_shapes(model):
        values = torch.rand(tuple(shape), generator=generator)
        yield values.to(device=weight.device, dtype=weight.dtype)


def run_on_example(
    model: nn.Module,
    example_input: Tensor | None,
    forward: Callable[[Tensor], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a model on an example, or on the first guess that it takes.

    Args:
        model: The model, whose first layer the guesses come from.
        example_input: A batch that the model takes, or `None` to guess.
        forward: What to call in place of the model.

    Returns:
        The inputs that the model took, and its outputs: a tensor, or what it has in `.logits`.

    Raises:
        InvalidInputError: The model does not take the example, or any guess.
    """
    guesses = likely_inputs(model) if example_input is None else iter([example_input])
    failure: Exception | None = None
    for inputs in guesses:
        try:
            return inputs, _tensor_of((forward or model)(inputs))
        # The ways in which models say that an input is not theirs.
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            failure = failure or error
    reason = str(failure).strip().partition("\n")[0] if failure else "its first layer is unknown"
    source = "an input guessed from its first layer" if example_input is None else "`example_input`"
    raise InvalidInputError(
        f"The model does not run on {source}: {reason}. Pass `example_input=`, a batch that the "
        "model takes."
    ) from failure


def _tensor_of(output: object) -> Tensor:
    tensor = getattr(output, "logits", output)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"it returns {type(output).__name__} and not a tensor")
    if tensor.dim() < 2:
        raise TypeError(f"its outputs have the shape {tuple(tensor.shape)}, without a batch")
    return tensor
