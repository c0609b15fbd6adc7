"""The batches that a file is compared with its model on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.run import run_model
from finetunelib.errors import InvalidArgumentError, InvalidInputError
from finetunelib.export._request.dynamic_axes import AxisName

#: Sizes that differ from what is usually traced: 1 and an odd one.
_BATCH_SIZES = (1, 2, 7)

#: What stays of an axis that is cut most, and of the others; tried in this order.
_CUTS = ((0.6, 0.9), (0.9, 1.0))


def checked_samples(model: nn.Module, sample_inputs: ModelInputs, inputs: Inputs) -> Inputs:
    """Return a user's samples in the form of the example.

    Raises:
        InvalidArgumentError: They are not as many tensors as the example.
        InvalidInputError: The model cannot take them.
    """
    samples = Inputs.of(sample_inputs, "sample_inputs").on_device_of(model)
    if len(samples.tensors) != len(inputs.tensors):
        raise InvalidArgumentError(
            f"`sample_inputs` holds {len(samples.tensors)} tensors, but `example_input` holds "
            f"{len(inputs.tensors)}. Pass both in the same form."
        )
    if inputs.kwargs:
        samples = samples.in_order(list(inputs.kwargs))
    elif samples.kwargs:
        samples = samples.by_position()
    run_model(model, samples, "sample_inputs")
    return samples


def batches(
    model: nn.Module,
    example: Inputs,
    samples: Inputs | None,
    axes: Sequence[Mapping[int, AxisName]],
    *,
    dynamic_batch: bool,
) -> list[Inputs]:
    """Return batches of different samples: of several sizes, or of the example's own.

    Without samples the first rows are the example's own and the others vary it. Where further
    axes are dynamic, the last batches are shorter along them, if the model takes that.
    """
    lengths = [len(tensor) for tensor in example.tensors]
    sizes = [[*_BATCH_SIZES] if dynamic_batch else [length] * 2 for length in lengths]
    totals = [sum(size) for size in sizes]
    if samples is None:
        # All of a fixed batch; of others what fills the two smallest sizes.
        kept = lengths[0] if not dynamic_batch else sum(_BATCH_SIZES[:2])
        pool = example.resized(totals, torch.Generator().manual_seed(0), kept=kept)
    else:
        pool = samples.first_rows(totals)
    parts = [torch.split(tensor, size) for tensor, size in zip(pool.tensors, sizes, strict=True)]
    found = [pool.with_tensors(part) for part in zip(*parts, strict=True)]
    return [*found, *_shorter(model, found[-1], axes)]


def _shorter(
    model: nn.Module, batch: Inputs, axes: Sequence[Mapping[int, AxisName]]
) -> Iterator[Inputs]:
    """Yield the batch cut along its further dynamic axes, as far as the model takes that.

    Of several axes each is once cut more than the others: what a forward decided by comparing
    two sizes is fixed in the graph.
    """
    names = list(dict.fromkeys(n for own in axes for axis, n in own.items() if axis))
    for most in names:
        for deep, shallow in _CUTS:
            sizes = [
                {
                    axis: _cut(tensor.shape[axis], name, deep if name == most else shallow)
                    for axis, name in own.items()
                    if axis
                }
                for tensor, own in zip(batch.tensors, axes, strict=True)
            ]
            shorter = batch.shortened(sizes)
            try:
                run_model(model, shorter, "example_input")
            except InvalidInputError:
                continue  # Too short for a kernel or a stride; a little less may do.
            yield shorter
            break


def _cut(size: int, name: AxisName, share: float) -> int:
    lowest = 2 if isinstance(name, str) else max(2, int(name.min))
    return min(size, max(lowest, min(int(size * share), size - 1)))
