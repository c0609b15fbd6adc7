"""Sizes of dynamic axes at which a file is compared, other than the example's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from finetunelib.export._request.dynamic_axes import (
    BATCH,
    AxisName,
    bounds,
    derived_size,
    original_size,
    root_name,
)

#: Models often accept only multiples of one of these.
_STEPS = (32, 16, 8, 7, 4, 2)

#: The batch sizes that are compared first: 1, and sizes that are rarely used for tracing.
BATCH_SIZES = (1, 2, 7)

#: The same for models with at least this many parameters, whose rows are expensive.
BATCH_SIZES_OF_LARGE_MODELS = (1, 3)
LARGE_MODEL = 20_000_000


class Axes:
    """The dynamic axes of all inputs: their names, sizes in the example, and bounds."""

    def __init__(
        self,
        axes: Sequence[Mapping[int, AxisName]],
        tensors: Sequence[Tensor],
        limits: Mapping[str, tuple[int, int | None]] | None = None,
    ) -> None:
        self.of_input = list(axes)
        self._shapes = [tuple(tensor.shape) for tensor in tensors]
        self.example: dict[str, int] = {}
        self._bounds: dict[str, tuple[int, int | None]] = {}
        for tensor, own in zip(tensors, axes, strict=True):
            for axis, name in own.items():
                size = original_size(name, tensor.shape[axis])
                self.example.setdefault(root_name(name), size)
                own_limits = (limits or {}).get(root_name(name), bounds(name))
                self._bounds.setdefault(root_name(name), own_limits)

    @property
    def further(self) -> list[str]:
        """The names of the dynamic axes other than the batch."""
        return [name for name in self.example if name != BATCH]

    def allows(self, sizes: Mapping[str, int]) -> bool:
        """Return whether sizes are within the declared bounds."""
        for name, size in sizes.items():
            low, high = self._bounds[name]
            if size < low or (high is not None and size > high):
                return False
        return True

    def declared(self, name: str) -> tuple[int, int | None]:
        """Return the bounds that the user declared for an axis."""
        return self._bounds[name]

    def fixed(self, number: int, axis: int) -> int:
        """Return the size of an axis in the example."""
        return self._shapes[number][axis]

    def shape(self, number: int, sizes: Mapping[str, int]) -> dict[int, int]:
        """Return the sizes of an input's dynamic axes, by axis."""
        return {
            axis: derived_size(name, sizes[root_name(name)])
            for axis, name in self.of_input[number].items()
        }


def step_of(size: int) -> int:
    """Return the largest common step that divides a size, 1 if there is none."""
    return next((step for step in _STEPS if step < size and size % step == 0), 1)


def adjacent(size: int) -> tuple[int, int]:
    """Return the sizes next to a size."""
    return size - 1, size + 1


def smaller(size: int) -> Iterator[int]:
    """Yield smaller sizes, in the order in which they are tried."""
    step = step_of(size)
    yield from (size - step * max(1, size // step // 2), size - step, step, int(size * 0.6))
    yield from (size - size // 8, size // 2)


def larger(size: int) -> Iterator[int]:
    """Yield larger sizes, in the order in which they are tried."""
    step = step_of(size)
    yield from (size + step * max(1, size // step // 2), size + step, 2 * size)
    yield from (size + size // 2, size + 32)
