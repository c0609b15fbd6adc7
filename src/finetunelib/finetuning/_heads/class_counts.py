"""Copies of a head's number of classes in the attributes of a model and its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from finetunelib._wrappers import own_modules
from finetunelib.finetuning._heads.head import layers_of, out_features_of

#: The attributes in which torchvision, timm and transformers store the number of classes.
_ATTRIBUTES = ("num_classes", "num_labels")


def ancestors(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the modules around a named part of a model, from the root inwards."""
    modules = own_modules(model)
    path = name.split(".")
    for depth in range(len(path)):
        around = ".".join(path[:depth])
        if around in modules:
            yield modules[around]


def update_class_counts(model: nn.Module, name: str, old: int, new: int) -> Callable[[], None]:
    """Update the number of classes in the modules around a head, if they store the old one.

    These are the attributes `num_classes` and `num_labels` of the modules and of their `config`.
    An attribute with another value means something else and is left alone. In a config of
    transformers, the names of the labels and the kind of problem are reset, because they describe
    the old head, also if the number of classes stays the same. So is `vocab_size`, if the head has
    one output per token and the model has no embedding of that size, as a CTC model.

    Returns:
        A function that restores all attributes.
    """
    saved: list[tuple[object, dict[str, object]]] = []

    def restore() -> None:
        for holder, values in reversed(saved):
            vars(holder).clear()
            vars(holder).update(values)

    attributes = _ATTRIBUTES if _embeds(model, old) else (*_ATTRIBUTES, "vocab_size")
    for module in ancestors(model, name):
        for holder in (module, vars(module).get("config")):
            if holder is None or not hasattr(holder, "__dict__"):
                continue
            # Setting the number of labels of a transformers config also resets the label names.
            saved.append((holder, dict(vars(holder))))
            stored = [name for name in attributes if _stores(holder, name, old)]
            for attribute in stored:
                if old != new:
                    setattr(holder, attribute, new)
            if "num_labels" in stored:
                _reset_labels(holder, new)
    return restore


def _stores(holder: object, attribute: str, number: int) -> bool:
    value = getattr(holder, attribute, None)
    return type(value) is int and value == number and _settable(holder, attribute)


def _reset_labels(config: object, count: int) -> None:
    """Give the labels of a transformers config the names that a new config has."""
    attributes = vars(config)
    if isinstance(attributes.get("id2label"), dict):
        names = {number: f"LABEL_{number}" for number in range(count)}
        attributes["id2label"] = names
        attributes["label2id"] = {name: number for number, name in names.items()}
    if "problem_type" in attributes:
        attributes["problem_type"] = None


def _embeds(model: nn.Module, tokens: int) -> bool:
    """Return whether a model has an embedding for some number of tokens."""
    return any(
        isinstance(module, nn.Embedding) and module.num_embeddings == tokens
        for module in model.modules()
    )


def class_count(head: nn.Module) -> int | None:
    """Return the number of output features of a module's last layer, or `None` without a layer."""
    layers = layers_of(head)
    return out_features_of(layers[-1]) if layers else None


def _settable(holder: object, attribute: str) -> bool:
    """Return whether an attribute can be set, which a property without a setter cannot."""
    declared = getattr(type(holder), attribute, None)
    return not isinstance(declared, property) or declared.fset is not None
