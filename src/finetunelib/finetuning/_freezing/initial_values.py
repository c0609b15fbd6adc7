"""A warning for tensors that are frozen with their initial values."""

from __future__ import annotations

import json
import warnings

from torch import Tensor, nn

from finetunelib._messages import quoted
from finetunelib._wrappers import own_name
from finetunelib.finetuning._digests import not_loaded
from finetunelib.finetuning._freezing.plan import FreezePlan


def warn_about_initial_values(model: nn.Module, plan: FreezePlan, *, stacklevel: int) -> None:
    """Warn about frozen tensors that `load_weights` found no values for.

    Tensors that have changed since are not reported.

    Args:
        model: The model.
        plan: The plan that was applied to it.
        stacklevel: The stack level of the warning, seen from the caller.

    Warns:
        UserWarning: If there are such tensors. The message contains their names.
    """
    frozen: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in plan.fix
    }
    for prefix, module in model.named_modules(remove_duplicate=False):
        if module in plan.hold:
            frozen |= dict(module.named_buffers(prefix, recurse=False, remove_duplicate=False))
    names = [own_name(name) for name in not_loaded(model, frozen)]
    if names:
        parts = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        warnings.warn(
            f"{len(names)} frozen tensors have their initial values, because the weights file did "
            f"not contain them: {quoted(names)}. To train them as well, call "
            f"`unfreeze(model, {json.dumps(parts)})`.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
