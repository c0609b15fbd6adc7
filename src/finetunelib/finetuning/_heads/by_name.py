"""Finding a head without running the model, from what the model and its names say."""

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
from finetunelib.finetuning._heads.headless import (
    check_not_followed_by_activation,
    check_states_a_head,
)

#: The names that model libraries give to the heads of their classifiers.
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

    The model's `get_classifier()` decides, if it has one. Otherwise it is the last layer under one
    of the usual names, or else the last layer of the model, provided that no other layer has the
    same width.

    Args:
        model: The model.
        reason: Why the model does not run, for messages.

    Raises:
        AmbiguousHeadError: If several layers may be the head.
        HeadNotFoundError: If the model has no layer, or states that it has no head.
    """
    layers = {
        name: part for name, part in own_modules(model).items() if isinstance(part, HEAD_LAYERS)
    }
    if not layers:
        raise HeadNotFoundError(
            f"{reason} It also has no Linear or convolution that could be its head."
        )
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        return _declared_head(model, get_classifier, reason)
    name, found_by = _last_named_layer(model, layers)
    width = out_features_of(layers[name])
    rivals = [
        other
        for other, layer in layers.items()
        if other != name and out_features_of(layer) == width
    ]
    if rivals:
        raise AmbiguousHeadError(
            f"{reason} By its name the head is `{name}`, but other layers also have {width} output "
            f"features: {quoted(rivals[-5:])}. Or name the head with `at=`."
        )
    head = describe_head(name, layers[name], found_by)
    check_states_a_head(model, head)
    check_not_followed_by_activation(model, head)
    return head


def _declared_head(model: nn.Module, get_classifier: Callable[[], object], reason: str) -> Head:
    """Return the layer that a model's `get_classifier()` returns."""
    try:
        declared = get_classifier()
    except Exception as error:  # The model's code may fail in any way.
        raise HeadNotFoundError(
            f"{reason} Its `get_classifier()` failed too: {error}. Name the head with `at=`."
        ) from error
    parts = list(declared) if isinstance(declared, tuple | list) else [declared]
    layers = [layer for part in parts if isinstance(part, nn.Module) for layer in layers_of(part)]
    names = {module: name for name, module in own_modules(model).items()}
    known = [names[layer] for layer in layers if layer in names]
    if not known:
        last = last_layers(own_modules(model), HEAD_LAYERS)
        raise HeadNotFoundError(
            f"{reason} Its `get_classifier()` returns {type(declared).__name__}, so it has no "
            f"head. Pass one with `head=` and its place with `at=`; the last layers are {last}."
        )
    if len(known) > 1:
        raise AmbiguousHeadError(
            f"{reason} Its `get_classifier()` returns {len(known)} layers: {quoted(known)}. "
            "Name the one to replace with `at=`."
        )
    return describe_head(known[0], layers[0], "the model's own get_classifier")


def _last_named_layer(model: nn.Module, layers: dict[str, HeadLayer]) -> tuple[str, str]:
    """Return the name of the likeliest head, and how it was found."""
    for field in _NAMES:
        part = getattr(model, field, None)
        within = layers_of(part) if isinstance(part, nn.Module) else []
        named = [name for name, layer in layers.items() if within and layer is within[-1]]
        if named:
            return named[0], f"its name, without a run (`{field}`)"
    return list(layers)[-1], "being the last layer, without a run"
