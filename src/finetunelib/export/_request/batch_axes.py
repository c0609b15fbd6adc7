"""Finds the batch axis of each input by running the model at a second batch size."""

from __future__ import annotations

import contextlib
import itertools

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import flat_outputs
from finetunelib._forward.run import run_model
from finetunelib.errors import InvalidInputError
from finetunelib.export._request.rows import BatchAxes, batch_size, take_rows

#: How many assignments of batch axes are tried.
_MOST_TRIES = 32


def find_batch_axes(model: nn.Module, inputs: Inputs) -> list[int | None]:
    """Return the batch axis of each input, `None` for an input without one.

    The batch is the first axis of the first input. In the others it is an axis of the same size,
    the first one if possible. If several are possible, the first assignment counts with which the
    model runs on one more row.
    """
    first = next((tensor for tensor in inputs.tensors if tensor.dim()), None)
    if first is None:
        return [None] * len(inputs.tensors)
    size = len(first)
    choices = [[0] if tensor is first else _choices(tensor, size) for tensor in inputs.tensors]
    assignments = list(itertools.islice(itertools.product(*choices), _MOST_TRIES))
    if len(assignments) > 1:
        for assignment in assignments:
            with contextlib.suppress(InvalidInputError):
                rows = take_rows(inputs, assignment, size + 1)
                run_model(model, rows.map(Tensor.clone), "example_input")
                return list(assignment)
    return list(assignments[0])


def fixed_outputs(model: nn.Module, inputs: Inputs, batch: BatchAxes) -> list[bool | None]:
    """Return for each output whether its first axis is fixed to the batch size of the example.

    It is not if it follows the batch, or if the batch is another axis. `None`: it follows the
    batch in the model, so it must not be fixed in a graph.
    """
    size = batch_size(inputs, batch)
    outputs = flat_outputs(run_model(model, inputs.map(Tensor.clone), "example_input"))
    for other in (size + 1, 2 * size):
        with contextlib.suppress(InvalidInputError):
            rows = take_rows(inputs, batch, other).map(Tensor.clone)
            others = flat_outputs(run_model(model, rows, "example_input"))
            return [
                _fixed(before.shape, after.shape, size, other)
                for before, after in zip(outputs, others, strict=True)
            ]
    return [output.dim() > 0 and len(output) == size for output in outputs]


def _fixed(before: torch.Size, after: torch.Size, size: int, other: int) -> bool | None:
    if not before or before == after:
        return False
    if before[0] != after[0]:
        return None
    return before[0] == size and (size, other) not in zip(before, after, strict=False)


def _choices(tensor: Tensor, size: int) -> list[int | None]:
    same = [axis for axis, length in enumerate(tensor.shape) if length == size]
    return [*same, None] if same else [None]
