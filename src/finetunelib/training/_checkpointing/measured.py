"""The weights that validation measured, in checkpoints of runs whose own weights differ.

With an average of the weights, `model.safetensors` of the best checkpoint contains the averages
that gave its value, and the state contains the weights that training continues with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from finetunelib._forward.state_tensors import state_tensors, tensors_replaced
from finetunelib.training._checkpointing.contents import Contents

#: The key of the training weights in the state of a checkpoint.
TRAINING_WEIGHTS = "weights"


@contextlib.contextmanager
def weights_replaced(
    model: nn.Module, measured: Mapping[str, Tensor] | None
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Run the block with other weights in the model, and restore its own afterwards.

    Args:
        model: The model.
        measured: The weights by their name in the state dict, or `None` to change nothing.

    Yields:
        What the state of the checkpoint must contain in addition.
    """
    if measured is None:
        yield {}
        return
    with tensors_replaced(model, measured) as own:
        yield {TRAINING_WEIGHTS: own}


def check_training_weights(contents: Contents, saved: Mapping[str, Any], model: nn.Module) -> None:
    """Raise if the training weights of a checkpoint, if it has any, are not those of the model.

    Raises:
        CheckpointError: If a name, a shape or a type differs.
    """
    if TRAINING_WEIGHTS not in saved:
        return
    values = contents.as_dict(saved[TRAINING_WEIGHTS], TRAINING_WEIGHTS)
    own = state_tensors(model)
    same = values.keys() == own.keys()
    contents.check(same, TRAINING_WEIGHTS, "a tensor for each of the model's")
    for name, tensor in own.items():
        value = values[name]
        fits = isinstance(value, Tensor) and value.layout is tensor.layout
        fits = fits and value.shape == tensor.shape and value.dtype == tensor.dtype
        place = f"{TRAINING_WEIGHTS}.{name}"
        contents.check(fits, place, f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}")
