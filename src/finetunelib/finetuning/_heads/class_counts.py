"""Copies of a head's number of classes elsewhere in a model: attributes and auxiliary heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

from torch import nn

from finetunelib._messages import quoted
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
    An attribute with another value means something else and is left alone.

    Returns:
        A function that restores all attributes.
    """
    saved: list[tuple[object, dict[str, object]]] = []

    def restore() -> None:
        for holder, values in reversed(saved):
            vars(holder).clear()
            vars(holder).update(values)

    for module in ancestors(model, name):
        for holder in (module, vars(module).get("config")):
            if holder is None or not hasattr(holder, "__dict__"):
                continue
            # Setting the number of labels of a transformers config also resets the label names.
            before = dict(vars(holder))
            for attribute in _ATTRIBUTES:
                value = getattr(holder, attribute, None)
                if type(value) is int and value == old != new and _settable(holder, attribute):
                    saved.append((holder, before))
                    setattr(holder, attribute, new)
    return restore


def remove_auxiliary_heads(model: nn.Module, name: str, width: int) -> Callable[[], None]:
    """Remove the auxiliary heads that GoogLeNet and Inception are trained with.

    In train mode they would return outputs for the old classes. A model announces them by
    `aux_logits=True`; they are its children whose names begin with "aux". They are set to `None`,
    as torchvision does.

    Args:
        model: An unwrapped model.
        name: The name of the head that is replaced.
        width: The previous number of classes. Heads of another width are left alone.

    Returns:
        A function that restores them.

    Warns:
        UserWarning: If heads were removed. The message names them.
    """
    around = [part for part in ancestors(model, name) if vars(part).get("aux_logits") is True]
    names = {part: full for full, part in own_modules(model).items()}
    removed = [
        (parent, child, part)
        for parent in around
        for child, part in parent.named_children()
        if child.lower().startswith("aux")
        and class_count(part) == width
        and not f"{name}.".startswith(f"{names[part]}.")
    ]

    def restore() -> None:
        for parent, child, part in removed:
            setattr(parent, child, part)
            vars(parent)["aux_logits"] = True

    for parent, child, _ in removed:
        setattr(parent, child, None)
        vars(parent)["aux_logits"] = False
    if removed:
        try:
            warnings.warn(
                f"The auxiliary heads {quoted([names[part] for _, _, part in removed])} return "
                f"{width} classes in train mode. They were removed (`aux_logits=False`), which "
                "leaves the new head as the model's only output.",
                UserWarning,
                stacklevel=4,
            )
        except UserWarning:  # The caller turned warnings into errors.
            restore()
            raise
    return restore


def class_count(head: nn.Module) -> int | None:
    """Return the number of output features of a module's last layer, or `None` without a layer."""
    layers = layers_of(head)
    return out_features_of(layers[-1]) if layers else None


def _settable(holder: object, attribute: str) -> bool:
    """Return whether an attribute can be set, which a property without a setter cannot."""
    declared = getattr(type(holder), attribute, None)
    return not isinstance(declared, property) or declared.fset is not None
