"""Finding a head without a run: what a model and its names say."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from finetunelib._messages import quoted
from finetunelib._wrappers import last_layers, own_modules
from finetunelib.errors import AmbiguousHeadError, HeadNotFoundError
from finetunelib.finetuning._heads.head import (
    HEAD_LAYERS,
    Head,
    HeadLayer,
    describe_head,
    layers_of,
    out_features_of,
)

#: What the libraries call the heads of their classifiers.
_NAMES = (
    "fc",
    "classifier",
    "head",
    "heads",
    "score",
    "logits",
    "classification_head",
    "last_linear",
    "classif",
)


def head_by_names(model: nn.Module, reason: str) -> Head:
    """Find the head of an unwrapped model that does not run.

    The model's own `get_classifier()` decides; else the last layer under one of the usual names,
    else the last layer of all. The latter two only where no other layer is as wide.

    Args:
        model: The model.
        reason: Why it does not run, for messages.

    Raises:
        AmbiguousHeadError: Several layers may be it.
        HeadNotFoundError: The model has no layer, or says that it has no head.
    """
    layers = {
        name: part for name, part in own_modules(model).items() if isinstance(part, HEAD_LAYERS)
    }
    if not layers:
        raise HeadNotFoundError(
            f"{reason} And it has no Linear and no convolution that could be its head."
        )
    own = getattr(model, "get_classifier", None)
    if callable(own):
        return _declared_head(model, own, reason)
    name, found_by = _last_named_layer(model, layers)
    width = out_features_of(layers[name])
    rivals = [
        other
        for other, layer in layers.items()
        if other != name and out_features_of(layer) == width
    ]
    if rivals:
        raise AmbiguousHeadError(
            f"{reason} By its names the head is `{name}`, but there are others that make {width} "
            f"features: {quoted(rivals[-5:])}. Or name the head with `at=`."
        )
    return describe_head(name, layers[name], found_by)


def _declared_head(model: nn.Module, get_classifier: Callable[[], object], reason: str) -> Head:
    """Return what a model says is its classifier."""
    try:
        declared = get_classifier()
    except Exception as error:  # A model's own code, which may fail in any way.
        raise HeadNotFoundError(
            f"{reason} And its `get_classifier()` failed: {error}. Name the head with `at=`."
        ) from error
    parts = list(declared) if isinstance(declared, tuple | list) else [declared]
    layers = [layer for part in parts if isinstance(part, nn.Module) for layer in layers_of(part)]
    names = {module: name for name, module in own_modules(model).items()}
    known = [names[layer] for layer in layers if layer in names]
    if not known:
        kind = type(declared).__name__
        last = last_layers(own_modules(model), HEAD_LAYERS)
        raise HeadNotFoundError(
            f"{reason} Its `get_classifier()` returns {kind}, so it has no head. Pass one with "
            f"`head=` and its place with `at=`; the last layers are {last}."
        )
    if len(known) > 1:
        raise AmbiguousHeadError(
            f"{reason} Its `get_classifier()` names {len(known)} layers: {quoted(known)}. "
            "Name the one to replace with `at=`."
        )
    return describe_head(known[0], layers[0], "the model's own get_classifier")


def _last_named_layer(model: nn.Module, layers: dict[str, HeadLayer]) -> tuple[str, str]:
    for field in _NAMES:
        part = getattr(model, field, None)
        within = layers_of(part) if isinstance(part, nn.Module) else []
        named = [name for name, layer in layers.items() if within and layer is within[-1]]
        if named:
            return named[0], f"its name, without a run (`{field}`)"
    return list(layers)[-1], "being the last layer, without a run"
