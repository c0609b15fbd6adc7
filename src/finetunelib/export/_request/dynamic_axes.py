"""Which axes of the inputs are dynamic: the batch, and what `dynamic_shapes` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.export import Dim

from finetunelib._arguments import is_whole
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.export._request.rows import BatchAxes

#: The name of a dynamic axis, or a `torch.export.Dim` with bounds.
AxisName: TypeAlias = str | Dim

#: The dynamic axes of one input, by axis number.
Axes: TypeAlias = Mapping[int, AxisName]

#: The dynamic axes of all inputs, by input name or in the order of the inputs.
DynamicShapes: TypeAlias = Mapping[str, Axes] | Sequence[Axes | None]

#: The name of the batch axis in the exported graph.
BATCH = "batch"


def root_name(name: AxisName) -> str:
    """Return the name of an axis, or of the axis that its size is derived from (`2 * length`)."""
    return name if isinstance(name, str) else str(getattr(name, "root", name).__name__)


def derived_size(name: AxisName, size: int) -> int:
    """Return the size of an axis, given that of the axis that it is derived from."""
    derive = getattr(name, "fn", None)
    return size if derive is None else int(derive(size))


def original_size(name: AxisName, size: int) -> int:
    """Return the size of the axis that an axis is derived from, given the size of that axis."""
    if getattr(name, "fn", None) is None:
        return size
    return next(number for number in range(size + 1) if derived_size(name, number) == size)


def bounds(name: AxisName) -> tuple[int, int | None]:
    """Return the smallest and the largest size that an axis may have, as far as declared."""
    dim = None if isinstance(name, str) else getattr(name, "root", name)
    low, high = getattr(dim, "min", None), getattr(dim, "max", None)
    return (1 if low is None else int(low)), (None if high is None else int(high))


def dynamic_axes(
    names: Sequence[str],
    tensors: Sequence[Tensor],
    dynamic_shapes: DynamicShapes | None,
    *,
    batch: BatchAxes,
) -> list[dict[int, AxisName]]:
    """Return the dynamic axes of each input.

    Args:
        names: The names of the inputs in the graph.
        tensors: The example's tensors, in the same order.
        dynamic_shapes: The argument of `export_onnx`.
        batch: The dynamic batch axis of each input, `None` if there is none.

    Raises:
        InvalidArgumentError: If `dynamic_shapes` names an input or axis that does not exist, or an
            axis that has one element in the example, which the exporter would treat as a constant.
        InvalidTypeError: If `dynamic_shapes` is not made of names and axis numbers.
    """
    given = _by_position(names, dynamic_shapes)
    found: list[dict[int, AxisName]] = []
    for name, tensor, axes, batch_axis in zip(names, tensors, given, batch, strict=True):
        own: dict[int, AxisName] = {} if batch_axis is None else {batch_axis: BATCH}
        for axis, size_name in axes.items():
            own[_checked_axis(name, tensor, axis, size_name)] = size_name
        found.append(own)
    return found


def _by_position(
    names: Sequence[str], dynamic_shapes: DynamicShapes | None
) -> list[Mapping[int, AxisName]]:
    if dynamic_shapes is None:
        return [{} for _ in names]
    if isinstance(dynamic_shapes, Mapping):
        unknown = [name for name in dynamic_shapes if name not in names]
        if unknown:
            raise InvalidArgumentError(
                f"`dynamic_shapes` names an unknown input `{unknown[0]}`. The inputs are "
                f"{', '.join(f'`{name}`' for name in names)}."
            )
        parts: list[Any] = [dynamic_shapes.get(name) for name in names]
    else:
        parts = list(dynamic_shapes)
        if len(parts) != len(names):
            raise InvalidArgumentError(
                f"`dynamic_shapes` has {len(parts)} entries, but the model takes {len(names)} "
                "inputs. Pass one entry per input (`None` for no dynamic axes), or a dict by name."
            )
    for part in parts:
        if part is not None and not isinstance(part, Mapping):
            raise InvalidTypeError(
                "Each entry of `dynamic_shapes` must be a dict from an axis to its name, such as "
                f"{{1: 'length'}}, got {part!r}."
            )
    return [part or {} for part in parts]


def _checked_axis(name: str, tensor: Tensor, axis: object, size_name: object) -> int:
    if not is_whole(axis):
        raise InvalidTypeError(
            f"An axis in `dynamic_shapes` must be a whole number, got {axis!r} (for `{name}`)."
        )
    if not isinstance(size_name, str | Dim):
        raise InvalidTypeError(
            f"The name of axis {axis} of `{name}` in `dynamic_shapes` must be text or a "
            f"torch.export.Dim, got {size_name!r}."
        )
    if isinstance(size_name, str) and not size_name.isidentifier():
        raise InvalidArgumentError(
            f"The name of axis {axis} of `{name}` in `dynamic_shapes` must be an identifier, such "
            f"as 'length', got {size_name!r}."
        )
    if not -tensor.dim() <= axis < tensor.dim():
        raise InvalidArgumentError(
            f"`dynamic_shapes` names axis {axis} of `{name}`, but the example's shape is "
            f"{tuple(tensor.shape)}."
        )
    axis %= tensor.dim()
    if axis and tensor.shape[axis] == 1:
        raise InvalidArgumentError(
            f"The dynamic axis {axis} of `{name}` has one element in the example, and the exporter "
            "would treat it as a constant. Pass an example with at least two elements."
        )
    return axis
