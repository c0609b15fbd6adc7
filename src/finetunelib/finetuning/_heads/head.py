"""The description of a head: a layer of a model with its name and widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from finetunelib._escapes import one_line
from finetunelib._html import html_table
from finetunelib._public import public
from finetunelib._tables import wrapped
from finetunelib.errors import HeadNotFoundError

HeadLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
HEAD_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@public("finetunelib.finetuning")
@dataclass(frozen=True, slots=True, repr=False)
class Head:
    """The layer of a model that computes its outputs.

    Attributes:
        name: The dotted name of the layer in the model, without the prefixes that
            `torch.compile` and `DataParallel` add; empty if the model itself is the head.
        module: The layer.
        in_features: The number of input features.
        out_features: The number of output features. For a classifier, the number of classes.
        found_by: How the head was found, in a few words.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import find_head
        >>> print(find_head(build_mlp(784, [500], 10)))
        The head is `head`, a Linear from 500 to 10 features, found by following the data.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    found_by: str

    def __repr__(self) -> str:
        name, kind = one_line(repr(self.name), 40), one_line(_kind_of(self.module), 20)
        return f"Head({name}, {kind} from {self.in_features} to {self.out_features} features)"

    def __str__(self) -> str:
        subject = f"`{self.name}`, " if self.name else "the model itself, "
        text = (
            f"The head is {subject}a {_kind_of(self.module)} from {self.in_features} to "
            f"{self.out_features} features, found by {self.found_by}."
        )
        return "\n".join(wrapped(text))

    def _repr_html_(self) -> str:
        return html_table(
            ("Head", "Class", "In features", "Out features", "Found by"),
            [
                (
                    self.name or "(model)",
                    _kind_of(self.module),
                    f"{self.in_features:,}",
                    f"{self.out_features:,}",
                    self.found_by,
                )
            ],
            numeric=("In features", "Out features"),
            code=("Head",),
        )


def describe_head(name: str, module: nn.Module, found_by: str) -> Head:
    """Return a module as a `Head`.

    Raises:
        HeadNotFoundError: If the module contains no Linear or convolution to take the width from.
    """
    layers = layers_of(module)
    if not layers:
        raise HeadNotFoundError(
            f"`{name}` ({type(module).__name__}) contains no Linear or convolution, so the number "
            "of its input features is unknown. Pass the new head as a module: "
            "`head=nn.Linear(...)`."
        )
    return Head(name, module, in_features_of(layers[0]), out_features_of(layers[-1]), found_by)


def layers_of(module: nn.Module) -> list[HeadLayer]:
    """Return the layers in a module that can be heads, in the order of their definition."""
    return [part for part in module.modules() if isinstance(part, HEAD_LAYERS)]


def in_features_of(layer: HeadLayer) -> int:
    """Return the number of a layer's input features or channels."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def out_features_of(layer: HeadLayer) -> int:
    """Return the number of a layer's output features or channels."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _kind_of(module: nn.Module) -> str:
    """Return the name of a module's class, without the prefix that a parametrization adds."""
    return type(module).__name__.removeprefix("Parametrized")
