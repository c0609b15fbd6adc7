"""Creating the new head: a layer like the old one, or what the user's function returns."""

from __future__ import annotations

from typing import Any

from torch import nn

from finetunelib.errors import InvalidTypeError
from finetunelib.finetuning._heads.head import Head, HeadLayer, describe_head, layers_of
from finetunelib.finetuning._heads.request import HeadRequest


def new_head(old: Head, request: HeadRequest) -> nn.Module:
    """Return the head to put in place of the old one.

    Raises:
        HeadNotFoundError: If the width of the old head's input is needed and unknown.
        InvalidTypeError: If the user's function does not return a module.
    """
    if isinstance(request.head, nn.Module):
        return request.head
    if old.in_features == 0:
        describe_head(old.name, old.module, "name")  # Raises, because the width is unknown.
    if request.head is not None:
        created = request.head(old.in_features)
        if not isinstance(created, nn.Module):
            raise InvalidTypeError(
                f"`head` must return a module, got {created!r} ({type(created).__name__})."
            )
        reference = next(old.module.parameters())
        return created.to(device=reference.device, dtype=reference.dtype)
    assert request.num_classes is not None  # noqa: S101 - `check_request` has checked it
    return _layer_like(layers_of(old.module)[-1], old.in_features, request.num_classes)


def _layer_like(layer: HeadLayer, in_features: int, out_features: int) -> nn.Module:
    """Return a new layer of the same kind, dtype and device with other numbers of features."""
    bias = layer.bias is not None
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        return nn.Linear(
            in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype
        )
    # The plain class: a parametrized class, or one of a library, takes other arguments.
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind: type[nn.Module] = next(kind for kind in kinds if isinstance(layer, kind))
    geometry: dict[str, Any] = {  # Any: tuples whose length depends on the kind.
        name: getattr(layer, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    return kind(
        in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype, **geometry
    )
