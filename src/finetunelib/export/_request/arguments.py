"""The arguments of a model as flat tensors: nested inputs, numbers, and the rest of `*args`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib.errors import InvalidTypeError

_CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The place of a tensor, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Arguments:
    """The tensors of a call, and how to call a model with such tensors.

    Attributes:
        tensors: All tensors, in order.
        names: A name for each tensor: the name of the argument, and the key or index in it.
        positional: The positional arguments, with a `_Leaf` for each tensor.
        named: The named arguments, with a `_Leaf` for each tensor.
        notes: A sentence for each number or text, which is a constant in the graph.
        rest: Whether the forward takes some arguments by name and the rest as `*args`.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    positional: tuple[Any, ...]
    named: dict[str, Any]
    notes: tuple[str, ...]
    rest: bool

    @classmethod
    def of(cls, value: object, model: nn.Module, argument: str) -> Arguments:
        """Return the arguments that a user passed as the argument of this name.

        Raises:
            InvalidTypeError: If they contain no tensor, or an entry of an unsupported type.
        """
        collected = _Collected([], [], [], argument)
        named = dict(value) if isinstance(value, Mapping) else {}
        if isinstance(value, Tensor):
            entries: Sequence[object] = [value]
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            entries = value
        else:
            entries = []
        names = _argument_names(model, len(entries))
        positional = tuple(
            collected.tree(entry, name) for entry, name in zip(entries, names, strict=True)
        )
        trees = {name: collected.tree(entry, str(name)) for name, entry in named.items()}
        if not any(tensor.dim() for tensor in collected.tensors):
            Inputs.of(value, argument)  # Raises.
        return cls(
            tuple(collected.tensors),
            tuple(collected.names),
            positional,
            trees,
            tuple(collected.notes),
            _has_rest(model, len(entries)),
        )

    @property
    def plain(self) -> bool:
        """Whether every argument is a tensor, and none is one of `*args` after others."""
        return not self.rest and all(
            isinstance(argument, _Leaf) for argument in (*self.positional, *self.named.values())
        )

    def on_device_of(self, model: nn.Module) -> Arguments:
        """Return the arguments on the device of a model."""
        return replace(self, tensors=Inputs(self.tensors, {}).on_device_of(model).tensors)

    @property
    def inputs(self) -> Inputs:
        """The tensors as inputs, by argument name if they were passed so and are plain."""
        if not self.plain:
            return Inputs(self.tensors, {})
        count = len(self.positional)
        return Inputs(
            self.tensors[:count], dict(zip(self.named, self.tensors[count:], strict=True))
        )

    def flat(self, value: object, model: nn.Module, argument: str) -> Inputs:
        """Return other values of the same structure, such as real samples.

        Raises:
            InvalidTypeError: If they have another structure.
        """
        if self.plain:
            return Inputs.of(value, argument)
        other = Arguments.of(value, model, argument)
        if (other.positional, other.named) != (self.positional, self.named):
            raise InvalidTypeError(
                f"`{argument}` must have the structure of `example_input`, with the same numbers."
            )
        return Inputs(other.tensors, {})

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> object:
        """Call a model with other tensors in place of these."""
        positional = [_filled(argument, tensors) for argument in self.positional]
        named = {name: _filled(argument, tensors) for name, argument in self.named.items()}
        return model(*positional, **named)


@dataclass(frozen=True, slots=True)
class _Collected:
    """The tensors of some arguments, found one after another."""

    tensors: list[Tensor]
    names: list[str]
    notes: list[str]
    argument: str

    def tree(self, value: object, name: str) -> Any:
        """Add the tensors of an argument, and return it with a `_Leaf` in place of each."""
        if isinstance(value, Tensor):
            # The exporter would merge two inputs that are the same tensor.
            known = any(value is tensor for tensor in self.tensors)
            self.tensors.append(value.clone() if known else value)
            self.names.append(name)
            return _Leaf(len(self.tensors) - 1)
        if isinstance(value, Mapping):
            return {key: self.tree(entry, f"{name}_{key}") for key, entry in value.items()}
        if isinstance(value, tuple | list):
            entries = [self.tree(entry, f"{name}_{i}") for i, entry in enumerate(value)]
            if hasattr(value, "_fields"):
                return type(value)(*entries)
            return type(value)(entries)
        if isinstance(value, _CONSTANTS):
            if value is not None:
                self.notes.append(f"The input `{name}` is the constant {value!r}.")
            return value
        raise InvalidTypeError(
            f"The entry `{name}` of `{self.argument}` must be a tensor, a number, `None`, or "
            f"a list, tuple or dict of these, got {type(value).__name__}."
        )


def _argument_names(model: nn.Module, count: int) -> list[str]:
    """Return the names of the first arguments of a forward, numbered for `*args`."""
    return [name for name, _ in zip(_names(model), range(count), strict=False)]


def _has_rest(model: nn.Module, count: int) -> bool:
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    variadic = inspect.Parameter.VAR_POSITIONAL
    return variadic in kinds and 0 < kinds.index(variadic) < count


def _names(model: nn.Module) -> Iterator[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    number = 0
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            start = "input" if len(parameters) == 1 else parameter.name
            while True:
                yield f"{start}_{number}" if number or start != "input" else "input"
                number += 1
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            yield parameter.name
    while True:  # More arguments than the forward takes; the dry run says so.
        yield f"input_{number}"
        number += 1


def _filled(argument: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(argument, _Leaf):
        return tensors[argument.number]
    if isinstance(argument, dict):
        return {key: _filled(entry, tensors) for key, entry in argument.items()}
    if isinstance(argument, tuple | list):
        entries = [_filled(entry, tensors) for entry in argument]
        return type(argument)(*entries) if hasattr(argument, "_fields") else type(argument)(entries)
    return argument
