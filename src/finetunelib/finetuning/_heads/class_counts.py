"""What repeats a head's number of classes elsewhere in a model: attributes and auxiliary heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

from torch import nn

from finetunelib._messages import quoted
from finetunelib._wrappers import own_modules
from finetunelib.finetuning._heads.head import layers_of, out_features_of

#: What models call their number of classes: torchvision's and timm's, and transformers'.
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
    """Write a new number of classes where the modules around a head repeat the old one.

    These are the attributes `num_classes` and `num_labels` of the modules and of their `config`.
    An attribute of another value means something else, and stays.

    Returns:
        A function that puts everything back.
    """
    kept: list[tuple[object, dict[str, object]]] = []

    def put_back() -> None:
        for holder, values in reversed(kept):
            vars(holder).clear()
            vars(holder).update(values)

    for module in ancestors(model, name):
        # A module's own attributes lie in its dictionary, its parts one level deeper.
        for holder in (module, vars(module).get("config")):
            if holder is None or not hasattr(holder, "__dict__"):
                continue
            # A transformers config writes its label names anew with the number of labels.
            before = dict(vars(holder))
            for attribute in _ATTRIBUTES:
                value = getattr(holder, attribute, None)
                if type(value) is int and value == old != new and _settable(holder, attribute):
                    kept.append((holder, before))
                    setattr(holder, attribute, new)
    return put_back


def remove_auxiliary_heads(model: nn.Module, name: str, width: int) -> Callable[[], None]:
    """Remove the heads beside a head that a model trains with, as GoogLeNet and Inception do.

    They would go on making outputs of the old number of classes in training. A model says that it
    has them by `aux_logits=True`; they are its parts whose names begin with "aux", and are set to
    None, as torchvision does.

    Args:
        model: An unwrapped model.
        name: The name of the head that is replaced.
        width: The number of classes that it had; heads of another width stay.

    Returns:
        A function that puts them back.

    Warns:
        UserWarning: There were some; the message names them.
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

    def put_back() -> None:
        for parent, child, part in removed:
            setattr(parent, child, part)
            vars(parent)["aux_logits"] = True

    for parent, child, _ in removed:
        setattr(parent, child, None)
        vars(parent)["aux_logits"] = False
    if removed:
        try:
            warnings.warn(
                f"The auxiliary heads {quoted([names[part] for _, _, part in removed])} made "
                f"{width} classes in training and are removed (`aux_logits=False`), so that the "
                "model's one output is that of the new head.",
                UserWarning,
                stacklevel=4,
            )
        except UserWarning:  # Where warnings are errors.
            put_back()
            raise
    return put_back


def class_count(head: nn.Module) -> int | None:
    """Return how many features a module makes by its last layer, if it has one."""
    layers = layers_of(head)
    return out_features_of(layers[-1]) if layers else None


def _settable(holder: object, attribute: str) -> bool:
    """Return whether an attribute may be written: a property without a setter follows others."""
    declared = getattr(type(holder), attribute, None)
    return not isinstance(declared, property) or declared.fset is not None
