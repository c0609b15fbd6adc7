"""Modules whose class does more in `train` than set a flag, such as switching between graphs."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from finetunelib.errors import FreezeError
from finetunelib.finetuning._freezing.hold import held_in_eval_mode


def enter_eval_state(model: nn.Module, modules: Collection[nn.Module]) -> None:
    """Call `train(False)` of the modules whose class has its own `train` method.

    Modules inside them that are not in `modules` get their previous mode again.

    Raises:
        FreezeError: If such a method raises. All modes are restored.
    """
    custom = [
        (name, module)
        for name, module in model.named_modules()
        if module in modules
        and module.training
        and not held_in_eval_mode(module)
        and type(module).train is not nn.Module.train
    ]
    if not custom:
        return
    modes = {module: module.training for module in model.modules()}
    for name, module in custom:
        try:
            type(module).train(module, False)
        except Exception as error:
            _restore(modes)
            where = f"`{name}`" if name else "The model"
            raise FreezeError(
                f"{where} cannot be put in eval mode: `{type(module).__name__}.train(False)` "
                f"raised {type(error).__name__}: {error}"
            ) from error
    for module, training in modes.items():
        changed = module.training != training and module not in modules
        if changed and type(module).train is not nn.Module.train:
            type(module).train(module, training)
    _restore({module: mode for module, mode in modes.items() if module not in modules})


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
