"""Varies the rows of an example, in levels that stay closer and closer to the example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetunelib.export._batches.masks import mask_form, vary_mask

#: Above this magnitude a number stands for infinity, such as in an additive mask.
_HUGE = 1e30


@dataclass(frozen=True, slots=True)
class Level:
    """How rows are varied.

    Attributes:
        values: `"noise"` adds noise of the example's standard deviation. `"range"` keeps each
            column in the range of its values, whole numbers whole. `"mixed"` takes each value from
            the same position of another row. `"rows"` repeats rows.
        masks: Whether masks are varied.
    """

    values: Literal["noise", "range", "mixed", "rows"]
    masks: bool


#: The first level whose batches the model accepts, with finite outputs, is used.
LEVELS = (
    Level("noise", masks=True),
    Level("range", masks=True),
    Level("mixed", masks=True),
    Level("noise", masks=False),
    Level("range", masks=False),
    Level("mixed", masks=False),
    Level("rows", masks=False),
)


def varied(
    rows: Tensor, example: Tensor, name: str, level: Level, generator: torch.Generator
) -> Tensor:
    """Return variations of some rows.

    Args:
        rows: The rows to vary, along the first axis.
        example: All rows of the example; its other axes may be of other sizes.
        name: The name of the input.
        level: How to vary them.
        generator: Where random numbers come from.
    """
    form = mask_form(example, name)
    if form is not None:
        return vary_mask(rows, form, generator) if level.masks else rows
    if level.values == "rows" or not rows.numel() or rows.is_complex():
        return rows
    same = example.shape[1:] == rows.shape[1:]
    if level.values == "mixed" or not _is_ordinary(example):
        return _mixed(rows, example if same else rows, generator)
    if rows.is_floating_point():
        return _noisy(rows, example, generator, within=level.values == "range" and same)
    return _integers(rows, example, generator, by_column=level.values == "range" and same)


def _is_ordinary(tensor: Tensor) -> bool:
    """Return whether all values are finite numbers, and none stands for infinity."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) < _HUGE


def _mixed(rows: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    choice = torch.randint(0, len(source), rows.shape, generator=generator).to(source.device)
    return source.gather(0, choice) if rows.dim() else rows


def _noisy(rows: Tensor, example: Tensor, generator: torch.Generator, *, within: bool) -> Tensor:
    values = example.detach().to(torch.float32)
    spread = float(values.std()) if values.numel() > 1 else 0.0
    noise = torch.randn(rows.shape, generator=generator).to(rows.device) * (spread or 1.0)
    result = rows.to(torch.float32) + noise
    if within:
        low, high = values.amin(0), values.amax(0)
        # A column of one value keeps its sign.
        factors = 0.75 + 0.5 * torch.rand(rows.shape, generator=generator).to(rows.device)
        uniform = torch.rand(rows.shape, generator=generator).to(rows.device)
        result = torch.where(low == high, rows * factors, low + uniform * (high - low))
        whole = (values == values.round()).all(0)
        result = torch.where(whole, result.round().clamp(low, high), result)
    return result.to(rows.dtype)


def _integers(
    rows: Tensor, example: Tensor, generator: torch.Generator, *, by_column: bool
) -> Tensor:
    # Integers are often codes or indices, so only values in the range of the example are safe.
    low, high = (example.amin(0), example.amax(0)) if by_column else (example.min(), example.max())
    uniform = torch.rand(rows.shape, generator=generator, dtype=torch.float64).to(rows.device)
    drawn = low.to(torch.float64) + (uniform * (high - low + 1).to(torch.float64)).floor()
    return drawn.to(rows.dtype)
