"""Guessing inputs that a model takes, if the user passed none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from finetunelib._arguments import is_whole
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.outputs import logits_of
from finetunelib._forward.run import raised_by_forward, run_once
from finetunelib._messages import first_line
from finetunelib._typing import Shape
from finetunelib.errors import FinetuneLibError, InvalidInputError

#: Image sizes of classifiers, the most common first; 299 is Inception's.
_SIZES = (224, 32, 28, 64, 299)

#: Attributes with the image size that a model was built for.
_SIZE_ATTRIBUTES = ("image_size", "img_size")

#: The number of tokens in a guessed text.
_TOKENS = 8

_FirstLayer: TypeAlias = nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d


class OutputKindError(TypeError):
    """A model ran, but did not return a tensor with a batch dimension."""


def first_layer(model: nn.Module) -> tuple[str, _FirstLayer] | None:
    """Return the name and module of the first layer that fixes the width of the inputs, if any."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return name, module
    return None


def likely_shapes(model: nn.Module) -> Iterator[Shape]:
    """Yield the shapes of `likely_inputs`, the most likely first."""
    layer = _input_layer(model)
    if layer is None:
        return
    if isinstance(layer, nn.Embedding):
        yield (2, _TOKENS)
        yield (1, _TOKENS)  # Some models need to know how to pad a batch of several texts.
        return
    card = _card_shape(model)
    if card:
        yield (2, *card)
    if isinstance(layer, nn.Linear):
        yield (2, layer.in_features)
        return
    dimensions = layer.weight.dim() - 2
    # Volumes of the size of images would not fit in memory.
    sizes = [(size,) * dimensions for size in (_SIZES if dimensions < 3 else (32, 16))]
    declared = [size for size in _declared_sizes(model) if len(size) == dimensions]
    for size in dict.fromkeys(declared + sizes):
        shape = (layer.in_channels, *size)
        if shape != card:
            yield (2, *shape)


def likely_inputs(model: nn.Module, device: torch.device | None = None) -> Iterator[Tensor]:
    """Yield inputs of two samples, the most likely first; for an embedding, also of one text.

    Args:
        model: The model. Its first layer determines the shape and the dtype, which is `int64` for
            an embedding.
        device: The device of the inputs. `None` is that of the first layer.
    """
    layer = _input_layer(model)
    if layer is None:
        return
    device = layer.weight.device if device is None else device
    for shape in likely_shapes(model):
        if isinstance(layer, nn.Embedding):
            tokens = torch.arange(3, 3 + _TOKENS) % layer.num_embeddings
            tokens[-1] = _end_of_text(model, layer)
            yield tokens.expand(tuple(shape)).to(device)
        elif device.type == "meta":
            yield torch.empty(tuple(shape), device=device, dtype=layer.weight.dtype)
        else:
            yield random_tensor(shape).to(device=device, dtype=layer.weight.dtype)


def random_tensor(shape: Shape) -> Tensor:
    """Return float32 numbers in [0, 1), the same at each call, without the global generator."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0))


def run_on_example(
    model: nn.Module,
    example_input: ModelInputs | Inputs | None,
    run: Callable[[Inputs], object] | None = None,
    *,
    device: torch.device | None = None,
) -> tuple[Inputs, Tensor]:
    """Run a model on an example, or on the first guess that it takes.

    Args:
        model: The model, whose first layer the guesses come from.
        example_input: A batch that the model takes, or `None` to guess. A tuple is passed by
            position and a mapping by name.
        run: Runs the model once and returns its output. `None` is `run_once`.
        device: The device of the guesses. `None` is that of the first layer.

    Returns:
        The inputs that the model took, and the tensor of its output.

    Raises:
        InvalidInputError: If the model does not take the example, or any guess. The cause is an
            `OutputKindError` if the model ran but did not return a batch.
        InvalidTypeError: If `example_input` is of another type.
    """
    run = run or partial(run_once, model)
    inputs, output = first_accepted(model, example_input, run, device=device)
    try:
        return inputs, batch_of(output)
    except OutputKindError as error:
        raise _does_not_run(example_input, str(error)) from error


def first_accepted(
    model: nn.Module,
    example_input: ModelInputs | Inputs | None,
    run: Callable[[Inputs], object],
    *,
    device: torch.device | None = None,
) -> tuple[Inputs, object]:
    """Return the first inputs that a model takes, and its output, whatever that is.

    Args:
        model: See `run_on_example`.
        example_input: See `run_on_example`.
        run: Runs the model once and returns its output.
        device: See `run_on_example`.

    Raises:
        InvalidInputError: If the model does not take the example, or any guess. The cause is the
            exception of the first run.
        InvalidTypeError: If `example_input` is of another type.
    """
    failure: Exception | None = None
    for inputs in _candidates(model, example_input, device):
        try:
            return inputs, run(inputs)
        except FinetuneLibError as error:
            failure = failure or raised_by_forward(error)
    reason = first_line(failure) if failure else "its first layer is unknown"
    raise _does_not_run(example_input, reason) from failure


def batch_of(output: object) -> Tensor:
    """Return the tensor of a model's output, `(batch, ...)`: the output itself, or its `.logits`.

    Raises:
        OutputKindError: If there is none.
    """
    tensor = logits_of(output)
    if tensor is None:
        raise OutputKindError(f"it returns {type(output).__name__} and not a tensor")
    if tensor.dim() < 2:
        raise OutputKindError(f"its outputs have the shape {tuple(tensor.shape)}, without a batch")
    return tensor


def _does_not_run(example_input: ModelInputs | Inputs | None, reason: str) -> InvalidInputError:
    source = "an input guessed from its first layer" if example_input is None else "`example_input`"
    return InvalidInputError(
        f"The model does not run on {source}: {reason.rstrip('.')}. Pass `example_input=`, a batch "
        "that the model takes (a tuple is passed by position, a mapping by name)."
    )


def _candidates(
    model: nn.Module, example_input: ModelInputs | Inputs | None, device: torch.device | None
) -> Iterator[Inputs]:
    if example_input is None:
        for guess in likely_inputs(model, device):
            yield Inputs((guess,), {})
    elif isinstance(example_input, Inputs):
        yield example_input
    else:
        yield Inputs.of(example_input, "example_input", batched=False)


def _input_layer(model: nn.Module) -> _FirstLayer | None:
    """Return the layer that determines the inputs: the first one, or the one the model names."""
    named = getattr(model, "get_input_embeddings", None)
    if callable(named):
        with contextlib.suppress(Exception):  # The model's code may fail in any way.
            layer = named()  # A transformers model may define its head before its body.
            if isinstance(layer, nn.Embedding):
                return layer
    found = first_layer(model)
    return found[1] if found else None


def _card_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of one input in the configuration of a timm model, if any."""
    card = getattr(model, "pretrained_cfg", None)
    shape = card.get("input_size") if isinstance(card, Mapping) else None
    return tuple(shape) if isinstance(shape, tuple | list) else None


def _declared_sizes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield the image sizes in the attributes of models from common libraries."""
    holders = (model, getattr(model, "config", None), getattr(model, "patch_embed", None))
    for value in [getattr(holder, name, None) for holder in holders for name in _SIZE_ATTRIBUTES]:
        if is_whole(value) and value > 0:
            yield (value, value)
        elif isinstance(value, tuple | list) and all(isinstance(side, int) for side in value):
            yield tuple(value)


def _end_of_text(model: nn.Module, layer: nn.Embedding) -> int:
    """Return the end-of-text token, at which some models read their output, or any token."""
    token = getattr(getattr(model, "config", None), "eos_token_id", None)
    return token if isinstance(token, int) and 0 <= token < layer.num_embeddings else 0
