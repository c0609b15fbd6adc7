"""The arguments of a model's forward: parsing what the user passed, and batches of other sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from finetunelib.errors import InvalidTypeError

#: One tensor, several in the order of the forward's arguments, or several by argument name.
ModelInputs: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The positional and named arguments of a model's forward."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]

    @classmethod
    def of(cls, value: object, name: str, *, batched: bool = True) -> Inputs:
        """Return the inputs that a user passed as the argument `name`.

        Args:
            value: A tensor, a sequence (passed by position) or a mapping (passed by name).
            name: The argument, for the message.
            batched: Whether each input must be a tensor with a batch dimension. If `False`, other
                values are passed to the model unchanged.

        Raises:
            InvalidTypeError: If `value` is of another type, or not batched where it must be.
        """
        if isinstance(value, Tensor):
            inputs = cls((value,), {})
        elif isinstance(value, Mapping):
            inputs = cls((), dict(value))
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            inputs = cls(tuple(value), {})
        else:
            raise _not_inputs(value, name)
        if batched and not (inputs.tensors and all(map(_is_batch, inputs.tensors))):
            raise _not_inputs(value, name)
        return inputs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All inputs, in the order in which the exporter takes them."""
        return (*self.args, *self.kwargs.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to each."""
        return self.with_tensors([function(tensor) for tensor in self.tensors])

    def call(self, model: nn.Module) -> object:
        """Run the model."""
        return model(*self.args, **self.kwargs)

    def on_device_of(self, model: nn.Module) -> Inputs:
        """Return the inputs on the device of a model."""
        tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
        if tensor is None:
            return self
        device = tensor.device
        return self.map(lambda value: value.to(device))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Inputs:
        """Return inputs of the same form with other values."""
        count = len(self.args)
        return Inputs(tuple(tensors[:count]), dict(zip(self.kwargs, tensors[count:], strict=True)))

    def in_order(self, names: Sequence[str]) -> Inputs:
        """Return the named inputs in the order of `names`, if they have these names."""
        if self.kwargs.keys() != set(names):
            return self
        return Inputs((), {name: self.kwargs[name] for name in names})

    def by_position(self) -> Inputs:
        """Return the same inputs, all of them positional."""
        return Inputs(self.tensors, {})

    def with_two_rows(self) -> Inputs:
        """Return the inputs with a batch of one doubled: the exporter treats a 1 as a constant."""
        return self.with_tensors(
            [t.repeat(2, *[1] * (t.dim() - 1)) if len(t) == 1 else t for t in self.tensors]
        )

    def resized(self, rows: Sequence[int], generator: torch.Generator, *, kept: int = 1) -> Inputs:
        """Return `rows` samples of each input: the first `kept` unchanged, then variations."""
        return self.with_tensors(
            [
                _resized(t.detach(), n, generator, min(kept, len(t)))
                for t, n in zip(self.tensors, rows, strict=True)
            ]
        )

    def first_rows(self, rows: Sequence[int]) -> Inputs:
        """Return the first samples, repeated if there are too few."""
        return self.with_tensors(
            [_first_rows(t, n) for t, n in zip(self.tensors, rows, strict=True)]
        )

    def shortened(self, sizes: Sequence[Mapping[int, int]]) -> Inputs:
        """Return the inputs with some axes shortened: for each input a size per axis."""
        tensors = []
        for tensor, own in zip(self.tensors, sizes, strict=True):
            for axis, size in own.items():
                tensor = tensor.narrow(axis, 0, size)  # noqa: PLW2901 - cut axis by axis
            tensors.append(tensor)
        return self.with_tensors(tensors)


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) > 0


def _not_inputs(value: object, name: str) -> InvalidTypeError:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return InvalidTypeError(
        f"`{name}` must be a tensor with a batch dimension, a tuple of such tensors, or a dict of "
        f"them by argument name, got {type(value).__name__}{shape}."
    )


def _first_rows(tensor: Tensor, rows: int) -> Tensor:
    return tensor[torch.arange(rows, device=tensor.device) % len(tensor)]


def _resized(tensor: Tensor, rows: int, generator: torch.Generator, kept: int) -> Tensor:
    repeated = _first_rows(tensor, rows)
    if tensor.is_floating_point():
        spread = float(tensor.float().std()) if tensor.numel() > 1 else 0.0
        noise = torch.randn(repeated.shape, generator=generator) * (spread or 1.0)
        # The first rows are the example itself, which the user knows.
        noise[:kept] = 0
        return repeated + noise.to(device=tensor.device, dtype=tensor.dtype)
    if tensor.dtype == torch.bool:
        return repeated
    low, high = int(tensor.min()), int(tensor.max())
    # Integers are often indices, so only values in the range of the example are safe.
    values = torch.randint(low, high + 1, repeated.shape, generator=generator)
    values[:kept] = repeated[:kept].cpu()
    return values.to(device=tensor.device, dtype=tensor.dtype)
