"""The multilayer perceptron, and the function that builds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_at_least
from finetunelib._preserve import initialising_with
from finetunelib._public import public
from finetunelib._typing import FeaturesToModule
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTypeError


@public("finetunelib.models")
class MLP(nn.Module):
    """A multilayer perceptron: a `backbone` that computes features, and a linear `head`.

    Build one with `finetunelib.build_mlp`, which checks its arguments.

    Args:
        in_features: The number of values in one sample, at least 1.
        backbone: The hidden layers, from `(batch, in_features)` to `(batch, head.in_features)`.
        head: The last layer, from features to outputs.

    Example:
        >>> import torch
        >>> from finetunelib import build_mlp
        >>> model = build_mlp(784, [500], 10, seed=0)
        >>> model.head
        Linear(in_features=500, out_features=10, bias=True)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_features: int, backbone: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.in_features = in_features
        self.backbone = backbone
        # Typed as a module: a head is what fine-tuning replaces.
        self.head: nn.Module = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the outputs of a batch.

        Args:
            inputs: `(batch, in_features)`, or `(batch, ...)` with `in_features` values per
                sample; of the parameters' floating-point dtype.

        Returns:
            The outputs (logits, for a classifier), `(batch, out_features)`.

        Raises:
            InvalidInputError: If the shape is different, or the dtype is not floating point.
        """
        if inputs.dim() < 2 or math.prod(inputs.shape[1:]) != self.in_features:
            raise InvalidInputError(
                f"`inputs` must be (batch, {self.in_features}), or (batch, ...) with "
                f"{self.in_features} values per sample, got the shape {tuple(inputs.shape)}."
            )
        if not inputs.is_floating_point():
            raise InvalidInputError(
                f"`inputs` must be floating point, got {inputs.dtype}. Convert it, for bytes with "
                "`inputs.float() / 255`."
            )
        outputs: Tensor = self.head(self.backbone(inputs))
        return outputs


@public("finetunelib")
def build_mlp(
    in_features: int,
    hidden_features: Sequence[int],
    out_features: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    normalization: FeaturesToModule | None = None,
    seed: int | None = None,
) -> MLP:
    """Build a multilayer perceptron.

    Each hidden layer consists of linear, normalization, activation and dropout, in this order.

    Args:
        in_features: The number of values in one sample, at least 1. A sample may have any shape
            with this number of values: with 784, `(batch, 784)` or `(batch, 1, 28, 28)`.
        hidden_features: The widths of the hidden layers, each at least 1. An empty sequence
            builds a linear model.
        out_features: The number of outputs (classes, for a classifier), at least 1.
        activation: A class or function that returns an activation module. It is called once per
            hidden layer.
        dropout: The probability that a hidden value is set to zero in training, in [0, 1).
        normalization: A class or function from a width to a module, such as `nn.BatchNorm1d`.
        seed: The seed of the initial weights. PyTorch's global generator is not changed. `None`
            draws from the global generator.

    Returns:
        The model, in train mode, with the hidden layers in `.backbone` and the last one in
        `.head`.

    Raises:
        InvalidArgumentError: If a width is below 1, or `dropout` is outside [0, 1).
        InvalidTypeError: If a width is not a whole number, `dropout` is not a number,
            `hidden_features` is not a sequence, or `activation` or `normalization` is a module
            instead of a class or function.

    Example:
        >>> from torch import nn
        >>> from finetunelib import build_mlp
        >>> model = build_mlp(
        ...     4, [8], 3, activation=nn.GELU, normalization=nn.BatchNorm1d, dropout=0.1
        ... )
        >>> [type(layer).__name__ for layer in model.backbone]
        ['Flatten', 'Linear', 'BatchNorm1d', 'GELU', 'Dropout']
        >>> model.head
        Linear(in_features=8, out_features=3, bias=True)
    """
    if isinstance(hidden_features, str | bytes) or not isinstance(hidden_features, Sequence):
        raise InvalidTypeError(
            f"`hidden_features` must be a sequence of widths, got {hidden_features!r}. Pass a "
            "list, such as [500] for one hidden layer."
        )
    for name, factory in (("activation", activation), ("normalization", normalization)):
        if isinstance(factory, nn.Module):
            raise InvalidTypeError(
                f"`{name}` must be a class or function that returns a module for each layer, got "
                f"the module {factory}. Pass nn.{type(factory).__name__}."
            )
    check_at_least(1, in_features=in_features)
    for position, width in enumerate(hidden_features):
        check_at_least(1, **{f"hidden_features[{position}]": width})
    check_at_least(1, out_features=out_features)
    if not isinstance(dropout, Real):
        raise InvalidTypeError(
            f"`dropout` must be a number in [0, 1), got {dropout!r} ({type(dropout).__name__})."
        )
    if not 0.0 <= dropout < 1.0:
        raise InvalidArgumentError(
            f"`dropout` must be in [0, 1), got {dropout}. Pass 0 for no dropout."
        )

    with initialising_with(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for hidden in hidden_features:
            layers.append(nn.Linear(width, hidden))
            if normalization is not None:
                layers.append(normalization(hidden))
            layers.append(activation())
            if dropout > 0.0:
                layers.append(nn.Dropout(dropout))
            width = hidden
        model = MLP(in_features, nn.Sequential(*layers), nn.Linear(width, out_features))
    return model.to(torch.get_default_device())
