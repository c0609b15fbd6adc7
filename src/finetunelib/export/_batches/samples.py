"""Makes batches of any size, from an example that is varied or from real samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.run import run_model
from finetunelib.errors import InvalidArgumentError
from finetunelib.export._batches.masks import mask_form
from finetunelib.export._batches.sizes import Axes
from finetunelib.export._batches.variation import Level, varied
from finetunelib.export._request.rows import BatchAxes, batch_size, take_rows


@dataclass(frozen=True, slots=True)
class Sampler:
    """A source of batches.

    Attributes:
        source: The example, or real samples.
        names: The names of the inputs.
        batch: The batch axis of each input, `None` for an input without one.
        axes: The dynamic axes of the inputs.
        level: How rows are varied. `None` uses them unchanged.
        kept: The number of first rows that are used unchanged.
    """

    source: Inputs
    names: Sequence[str]
    batch: BatchAxes
    axes: Axes
    level: Level | None = None
    kept: int = 0

    def at(self, level: Level, kept: int) -> Sampler:
        """Return this sampler with another way to vary rows."""
        return replace(self, level=level, kept=min(kept, self.rows))

    @property
    def rows(self) -> int:
        """The number of rows of the source."""
        return batch_size(self.source, self.batch)

    def make(self, sizes: Mapping[str, int], offset: int) -> Inputs:
        """Return a batch of these sizes, with the rows from `offset` on."""
        return self.source.with_tensors(
            [self._tensor(number, sizes, offset) for number in range(len(self.names))]
        )

    def _tensor(self, number: int, sizes: Mapping[str, int], offset: int) -> Tensor:
        tensor, axis = self.source.tensors[number].detach(), self.batch[number]
        shape = self.axes.shape(number, sizes)
        # With the rows along the first axis; an input without a batch is one row.
        example = tensor[None] if axis is None else tensor.movedim(axis, 0)
        ordered = mask_form(example, self.names[number]) is not None
        for other, size in shape.items():
            if other != axis:
                tensor = _stretched(tensor, other, size, repeat_last=ordered)
        if axis is None:
            rows = tensor[None]
        else:
            count = shape[axis] if axis in shape else self.axes.fixed(number, axis)
            index = (torch.arange(count, device=tensor.device) + offset) % tensor.shape[axis]
            rows = tensor.index_select(axis, index).movedim(axis, 0)
        rows = self._varied(number, rows, example, offset)
        return rows[0] if axis is None else rows.movedim(0, axis).contiguous()

    def _varied(self, number: int, rows: Tensor, example: Tensor, offset: int) -> Tensor:
        kept = max(0, self.kept - offset)
        if self.level is None or kept >= len(rows):
            return rows
        seed = 1 + number + 1009 * offset + 9176 * rows.numel()
        generator = torch.Generator().manual_seed(seed)
        changed = varied(rows, example, self.names[number], self.level, generator)
        return torch.cat([rows[:kept], changed[kept:]]) if kept else changed


def checked_samples(model: nn.Module, samples: Inputs, inputs: Inputs, batch: BatchAxes) -> Inputs:
    """Return real samples in the form of the example.

    Raises:
        InvalidArgumentError: If they are not as many tensors as the example, or the inputs have
            different numbers of rows.
        InvalidInputError: If the model cannot take them.
    """
    if len(samples.tensors) != len(inputs.tensors):
        raise InvalidArgumentError(
            f"`sample_inputs` has {len(samples.tensors)} tensors, but `example_input` has "
            f"{len(inputs.tensors)}. Pass both in the same form."
        )
    if inputs.kwargs:
        samples = samples.in_order(list(inputs.kwargs))
    elif samples.kwargs:
        samples = samples.by_position()
    rows = {
        tensor.shape[axis]
        for tensor, axis in zip(samples.tensors, batch, strict=True)
        if axis is not None and axis < tensor.dim()
    }
    if len(rows) > 1:
        raise InvalidArgumentError(
            f"The tensors of `sample_inputs` have different numbers of rows: {sorted(rows)}."
        )
    first = min(batch_size(samples, batch), batch_size(inputs, batch))
    run_model(model, take_rows(samples, batch, first).map(Tensor.clone), "sample_inputs")
    return samples


def _stretched(tensor: Tensor, axis: int, size: int, *, repeat_last: bool) -> Tensor:
    """Return a tensor cut or extended along an axis, starting again or repeating the last value."""
    index = torch.arange(size, device=tensor.device)
    length = tensor.shape[axis]
    index = index.clamp(max=length - 1) if repeat_last else index % length
    return tensor.index_select(axis, index)
