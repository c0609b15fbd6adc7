"""Auxiliary heads, which models return next to their head and are trained with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from finetunelib._messages import quoted
from finetunelib._wrappers import own_modules
from finetunelib.finetuning._heads.class_counts import ancestors, class_count

#: Attributes of library models that may be `None`: torchvision's segmenters, transformers' UperNet.
_OPTIONAL = {"aux_classifier": "torchvision.", "auxiliary_head": "transformers."}


class _Auxiliary(NamedTuple):
    parent: nn.Module
    child: str
    head: nn.Module


def remove_auxiliary_heads(
    model: nn.Module, name: str, width: int
) -> tuple[list[str], Callable[[], None]]:
    """Remove the auxiliary heads that a model is trained with.

    They would return outputs for the old classes. GoogLeNet and Inception announce them by
    `aux_logits=True`; they are the children whose names begin with "aux". Segmentation models of
    torchvision have an `aux_classifier`. All are set to `None`, as the libraries do.

    Args:
        model: An unwrapped model.
        name: The name of the head that is replaced.
        width: The previous number of classes. Heads of another width are left alone.

    Returns:
        The names of the removed heads, and a function that restores them.
    """
    names = {part: full for full, part in own_modules(model).items()}
    removed = [
        auxiliary
        for parent in ancestors(model, name)
        for auxiliary in _auxiliaries(parent)
        if class_count(auxiliary.head) == width
        and not f"{name}.".startswith(f"{names[auxiliary.head]}.")
    ]
    announced = [parent for parent, _, _ in removed if vars(parent).get("aux_logits") is True]

    def restore() -> None:
        for parent, child, head in removed:
            setattr(parent, child, head)
        for parent in announced:
            vars(parent)["aux_logits"] = True

    for parent, child, _ in removed:
        setattr(parent, child, None)
    for parent in announced:
        vars(parent)["aux_logits"] = False
    return [names[head] for _, _, head in removed], restore


def warn_of_removed(names: list[str], width: int) -> None:
    """Warn of removed auxiliary heads, if there are any.

    Warns:
        UserWarning: If heads were removed. The message names them.
    """
    if names:
        warnings.warn(
            f"The auxiliary heads {quoted(names)} return {width} classes. They were removed, "
            "which leaves the new head as the only one.",
            UserWarning,
            stacklevel=4,
        )


def _auxiliaries(parent: nn.Module) -> list[_Auxiliary]:
    announced = vars(parent).get("aux_logits") is True
    origins = [kind.__module__ for kind in type(parent).__mro__]
    return [
        _Auxiliary(parent, child, head)
        for child, head in parent.named_children()
        if (announced and child.lower().startswith("aux"))
        or any(origin.startswith(_OPTIONAL.get(child, "-")) for origin in origins)
    ]
