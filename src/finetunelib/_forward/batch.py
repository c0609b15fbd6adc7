"""The inputs and targets of a batch, and the call of a model with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from finetunelib._typing import Batch
from finetunelib.errors import InvalidTypeError


def split(batch: Batch) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch.

    Raises:
        InvalidTypeError: The batch is neither a pair nor a mapping with `labels`.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    raise InvalidTypeError(
        "A batch must be a pair (inputs, targets), or a mapping with the targets under `labels`, "
        f"but is {describe(batch)}. Let the data yield one of these, or pass a `task`."
    )


def inputs_of(batch: Batch) -> Any:
    """Return the inputs of a batch that may hold targets too."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    return batch


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Run the model on inputs, by name where they are a mapping, and return its tensor.

    Raises:
        InvalidTypeError: The model returns something else than a tensor.
    """
    # Tensors are looked for first, since to ask an abstract class takes its time.
    if isinstance(inputs, Tensor) or not isinstance(inputs, Mapping):
        output = model(inputs)
    else:
        output = model(**inputs)
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise InvalidTypeError(
        f"The model must return a tensor, or an object with `.logits`, but returned "
        f"{describe(output)}. Pass a `task` that knows what to do with it."
    )


def describe(value: object) -> str:
    """Return a few words about what a value is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of length {len(value)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, value))}"
    return f"of type {type(value).__name__}"
