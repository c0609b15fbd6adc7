"""`parameter_groups`: learning rates by depth, and no weight decay where it does harm."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import nn

from finetunelib._arguments import check_model, is_number, uninitialized
from finetunelib._forward.execution import parameter_order
from finetunelib._forward.inputs import ModelInputs
from finetunelib._messages import listed, quoted
from finetunelib._public import public
from finetunelib._tables import text_table
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.errors import HeadError, HeadNotFoundError, InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning._freezing.selection import Parts, select
from finetunelib.finetuning._groups.layers import Layer, layers_from_head
from finetunelib.finetuning._heads.find import find_head

_HEADINGS = ("depth", "layers", "tensors", "values", "learning rate", "weight decay")


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters with the same learning rate and weight decay.

    Attributes:
        depth: The number of layers between the parameters and the outputs; 0 is the head.
        parts: The layers that the parameters belong to.
        parameters: The parameters by name.
        lr: The learning rate.
        weight_decay: The weight decay, or `None` for the optimizer's own.
    """

    depth: int
    parts: tuple[str, ...]
    parameters: dict[str, nn.Parameter]
    lr: float
    weight_decay: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the group as an optimizer takes it."""
        group: dict[str, Any] = {"params": list(self.parameters.values()), "lr": self.lr}
        if self.weight_decay is not None:
            group["weight_decay"] = self.weight_decay
        return group

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        values = sum(parameter.numel() for parameter in self.parameters.values())
        decay = "default" if self.weight_decay is None else f"{self.weight_decay:g}"
        return (
            str(self.depth),
            listed(self.parts),
            f"{len(self.parameters):,}",
            f"{values:,}",
            f"{self.lr:.3g}",
            decay,
        )


@public("finetunelib.finetuning")
class ParameterGroups(Sequence[dict[str, Any]]):
    """The groups of `parameter_groups`, to pass to an optimizer. Printed, they are a table.

    Each item is a new dict with the keys `"params"`, `"lr"` and, where it is set, `"weight_decay"`.

    Args:
        groups: The groups that `parameter_groups` made.

    Example:
        See `parameter_groups`.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = tuple(groups)

    @property
    def names(self) -> list[list[str]]:
        """The names of the parameters of each group."""
        return [list(group.parameters) for group in self._groups]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [group.to_dict() for group in self._groups[index]]
        return self._groups[index].to_dict()

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        rows = [group.cells() for group in self._groups]
        numeric = [heading for heading in _HEADINGS if heading != "layers"]
        return "\n".join(text_table(_HEADINGS, rows, numeric=numeric))


@public("finetunelib.finetuning")
def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    decay: float = 1.0,
    head_lr: float | None = None,
    weight_decay: float | None = None,
    no_weight_decay: Parts | None = None,
    head: str | nn.Module | None = None,
    example_input: ModelInputs | None = None,
) -> ParameterGroups:
    """Return the parameters of a model in groups, with smaller learning rates far from the head.

    The layer right before the head has the learning rate `lr * decay`, the one before it
    `lr * decay**2`, and so on, as in ULMFiT's discriminative fine-tuning (Howard and Ruder, 2018)
    and in ELECTRA. The layers are the blocks that `freeze(except_last=...)` counts, such as the
    blocks of a ResNet or a transformer. Their depth is counted in the order in which the forward
    pass uses them, in a run on meta tensors if the model allows it. A norm between two blocks
    belongs to the block before it, and several embeddings in a row are one layer.

    Every parameter is in exactly one group, including frozen ones, which an optimizer skips. They
    can be unfrozen later without a change of the optimizer. A parameter that several layers share
    is in the group of the layer that uses it first.

    Args:
        model: The model. It is not changed.
        lr: The learning rate of the head, above 0.
        decay: The factor from one layer to the one before it, above 0 and at most 1.
        head_lr: The learning rate of the head in place of `lr`, above 0, for a new head.
        weight_decay: The weight decay, at least 0. `None` leaves the optimizer's default.
        no_weight_decay: The parts whose weight decay is 0, named as for `freeze`. `None` means
            biases and the weights of norms (all parameters with at most one dimension), and the
            parameters that the model's own method `no_weight_decay` names, as those of timm do.
            An empty list means none.
        head: The head, as a module or its name, if `find_head` does not find it.
        example_input: A batch that the model accepts, as for `find_head`. `None` guesses.

    Returns:
        The groups, for an optimizer. Printed, they are a table.

    Raises:
        InvalidArgumentError: If a number is out of its range, `head` or `no_weight_decay` is not
            part of the model, the model has no parameters, or `head_lr` would apply to no
            parameter, because the head shares all of them with an earlier layer.
        InvalidTypeError: If `model` is not an `nn.Module`, or an argument has another type.
        HeadNotFoundError: If `head_lr` is given without `head`, and the head is not found.
        InvalidInputError: If the model does not run on `example_input`, or on a guess.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.finetuning import parameter_groups
        >>> model = build_mlp(4, [8, 8], 3)
        >>> groups = parameter_groups(model, lr=0.1, decay=0.5, weight_decay=0.01)
        >>> groups
        depth  layers      tensors  values  learning rate  weight decay
            0  head              1      24            0.1          0.01
            0  head              1       3            0.1             0
            1  backbone.3        1      64           0.05          0.01
            1  backbone.3        1       8           0.05             0
            2  backbone.1        1      32          0.025          0.01
            2  backbone.1        1       8          0.025             0
        >>> trainer = Trainer(model, optimizer=torch.optim.AdamW(groups))
    """
    own = unwrapped(check_model(model))
    _check_numbers(lr, decay, head_lr, weight_decay)
    lazy = uninitialized(own)
    if lazy is not None:
        raise InvalidArgumentError(lazy)
    if not any(True for _ in own.parameters()):
        raise InvalidArgumentError("The model has no parameters, so there is nothing to optimize.")
    last = _head_of(own, head, example_input, needed=head_lr is not None)
    undecayed = _undecayed(own, no_weight_decay)
    layers = layers_from_head(own, last, parameter_order(own, example_input))
    if head_lr is not None and not layers[0].is_head:
        raise InvalidArgumentError(
            f"`head_lr` is {head_lr}, but the head shares all of its parameters with an earlier "
            "layer, whose learning rate they have. Omit `head_lr`."
        )
    # No layer has the depth 0 if the head shares all of its parameters with others.
    first_depth = 0 if last is None or layers[0].is_head else 1
    groups: list[Group] = []
    for depth, layer in enumerate(layers, first_depth):
        rate = head_lr if layer.is_head and head_lr is not None else lr * decay**depth
        groups += _groups_of(own, layer, depth, rate, weight_decay, undecayed)
    return ParameterGroups(groups)


def _groups_of(
    model: nn.Module,
    layer: Layer,
    depth: int,
    lr: float,
    weight_decay: float | None,
    undecayed: set[str],
) -> Iterator[Group]:
    """Yield the parameters of a layer with weight decay, and those without."""
    for decayed in (True, False):
        parameters = {
            own_name(name): model.get_parameter(name)
            for name in layer.names
            if (name not in undecayed) is decayed
        }
        if parameters:
            parts = tuple(map(own_name, layer.parts))
            yield Group(depth, parts, parameters, lr, weight_decay if decayed else 0.0)


def _check_numbers(
    lr: float, decay: float, head_lr: float | None, weight_decay: float | None
) -> None:
    given = {"lr": lr, "decay": decay, "head_lr": head_lr, "weight_decay": weight_decay}
    for name, value in given.items():
        optional = name in ("head_lr", "weight_decay")
        if value is None and optional:
            continue
        if not is_number(value):
            raise InvalidTypeError(
                f"`{name}` must be a number, got {value!r} ({type(value).__name__})."
            )
        least = value >= 0 if name == "weight_decay" else value > 0
        if not (least and value <= (1 if name == "decay" else math.inf)) or math.isinf(value):
            expected = {
                "decay": "above 0 and at most 1",
                "weight_decay": "a finite number of at least 0",
            }.get(name, "a finite number above 0")
            raise InvalidArgumentError(f"`{name}` must be {expected}, got {value}.")


def _head_of(
    model: nn.Module,
    head: str | nn.Module | None,
    example_input: ModelInputs | None,
    *,
    needed: bool,
) -> nn.Module | None:
    """Return the head that the user named, or that is found.

    Raises:
        HeadNotFoundError: If it is needed and not found.
        InvalidArgumentError: If it is not a single module of the model.
    """
    if head is not None:
        named = select(model, head, "head").named
        if len(named) != 1:
            raise InvalidArgumentError(
                f"`head` must name one module of the model, but {head!r} names {len(named)}."
            )
        return next(iter(named))
    with contextlib.suppress(HeadError):
        return find_head(model, example_input).module
    if needed:
        children = quoted([name for name, _ in model.named_children()])
        raise HeadNotFoundError(
            "`head_lr` needs the head, which was not found. Pass `head=`, the module that computes "
            f"the outputs or its name. The model has {children or 'no modules'}."
        )
    return None


def _undecayed(model: nn.Module, no_weight_decay: Parts | None) -> set[str]:
    """Return the names of the parameters without weight decay."""
    if no_weight_decay is not None:
        if isinstance(no_weight_decay, Sequence) and not no_weight_decay:
            return set()
        ids = _ids(model, select(model, no_weight_decay, "no_weight_decay").parameter_names(model))
    else:
        declared: Callable[[], Iterable[str]] | None = getattr(model, "no_weight_decay", None)
        names = declared() if callable(declared) else ()
        ids = _ids(model, {str(name) for name in names})
        ids |= {id(parameter) for parameter in model.parameters() if parameter.dim() <= 1}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def _ids(model: nn.Module, names: set[str]) -> set[int]:
    """Return the identities of the parameters with some of these names."""
    return {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in names
    }
