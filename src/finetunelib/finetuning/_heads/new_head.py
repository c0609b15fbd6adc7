"""Creating the new head: a layer like the old one, or what the user's function returns."""

from __future__ import annotations

from typing import Any

from torch import nn

from finetunelib._messages import quoted
from finetunelib.errors import HeadError, InvalidTypeError
from finetunelib.finetuning._heads.head import Head, HeadLayer, describe_head, layers_of
from finetunelib.finetuning._heads.plain import computes_like_its_kind, kind_of
from finetunelib.finetuning._heads.request import HeadRequest


def new_head(old: Head, request: HeadRequest) -> nn.Module:
    """Return the head to put in place of the old one.

    Raises:
        HeadError: If `num_classes` is given, and the old head is of a kind that the library cannot
            create: a container without a forward, or a subclass with another one.
        HeadNotFoundError: If the width of the old head's input is needed and unknown.
        InvalidTypeError: If the user's function does not return a module.
    """
    if isinstance(request.head, nn.Module):
        return request.head
    _check_has_forward(old)
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
    layer = layers_of(old.module)[-1]
    _check_plain(layer, old)
    return _layer_like(layer, old.in_features, request.num_classes)


def _check_has_forward(old: Head) -> None:
    if type(old.module).forward is nn.Module.forward:
        parts = quoted([f"{old.name}.{name}" for name, _ in old.module.named_children()])
        raise HeadError(
            f"`{old.name}` is a {type(old.module).__name__}, a container that one layer cannot "
            f"replace. Name one of its parts with `at=` ({parts or 'it has none'}), or pass "
            "another container with `head=`."
        )


def _check_plain(layer: HeadLayer, old: Head) -> None:
    if not computes_like_its_kind(layer):
        kind = kind_of(layer).__name__
        raise HeadError(
            f"`{old.name}` contains a {type(layer).__name__}, a subclass of {kind} with its own "
            "forward, and a new one cannot be created for it. Pass it with `head=`, for example "
            f"`head=lambda features: {type(layer).__name__}(features, {old.out_features}, ...)`, "
            f"or replace it by a plain layer with `head=lambda features: nn.{kind}(features, ...)`."
        )


def _layer_like(layer: HeadLayer, in_features: int, out_features: int) -> nn.Module:
    """Return a new layer of the same kind, dtype and device with other numbers of features."""
    bias = layer.bias is not None
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        return nn.Linear(
            in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype
        )
    # The plain class: a parametrized class, or one of a library, takes other arguments.
    kind: type[nn.Module] = kind_of(layer)
    geometry: dict[str, Any] = {  # Any: tuples whose length depends on the kind.
        name: getattr(layer, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    return kind(
        in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype, **geometry
    )
