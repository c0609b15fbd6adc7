"""The inputs and targets of a batch, and the call of a model with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import logits_of
from finetunelib._typing import Batch
from finetunelib.errors import InvalidTypeError


class WeightedBatch(NamedTuple):
    """A batch whose samples count differently.

    Attributes:
        inputs: The inputs, a tensor or a dict of tensors.
        targets: The targets.
        sample_weight: The weight of each sample, `(batch,)`, float32.
    """

    inputs: Any
    targets: Any
    sample_weight: Tensor


#: A longer sequence is described by its length.
_SHOWN = 8


def split(batch: Batch) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch.

    Raises:
        InvalidTypeError: If the batch is neither a pair nor a mapping with `labels`.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, WeightedBatch):
        return batch.inputs, batch.targets
    raise InvalidTypeError(
        "A batch must be a pair (inputs, targets), or a mapping with the targets under `labels`, "
        f"got {describe(batch)}. Let the data yield one of these, or pass a `task`."
    )


def inputs_of(batch: Batch) -> Any:
    """Return the inputs of a batch that may also contain targets."""
    if isinstance(batch, (tuple, list)):  # Before a mapping, whose test is slow.
        return batch[0] if batch else batch
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Run the model on the inputs of a batch, and return the tensor of its output.

    Raises:
        InvalidTypeError: If the output is neither a tensor nor has one in `.logits`.
    """
    # Without the steps of the general case, which take longer than a small layer.
    output = model(inputs) if isinstance(inputs, Tensor) else arguments_of(inputs).call(model)
    return output if isinstance(output, Tensor) else outputs_of(output)


def arguments_of(inputs: Any) -> Inputs:
    """Return the inputs of a batch as arguments: a mapping by name, anything else as one."""
    # Test for a tensor first: `isinstance` with an abstract base class is slow.
    if isinstance(inputs, Tensor) or not isinstance(inputs, Mapping):
        return Inputs((inputs,), {})
    return Inputs((), dict(inputs))


def outputs_of(output: object) -> Tensor:
    """Return the tensor of a model's output.

    Raises:
        InvalidTypeError: If it is neither a tensor nor has one in `.logits`.
    """
    logits = logits_of(output)
    if logits is None:
        raise InvalidTypeError(
            f"The model must return a tensor, or an object with `.logits`, got "
            f"{describe(output)}. Pass a `task` that handles it."
        )
    return logits


def describe(value: object) -> str:
    """Return a short description of a value for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of length {len(value)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, value))}"
    return f"of type {type(value).__name__}"


def shapes_of(value: Any) -> str:
    """Return the shapes and dtypes of the tensors in a batch, for a message."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key!r}: {shapes_of(part)}" for key, part in value.items())
    if isinstance(value, tuple | list) and len(value) <= _SHOWN:
        return f"({', '.join(map(shapes_of, value))})"
    return describe(value)
