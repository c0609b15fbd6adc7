"""The adapters that peft adds to a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from finetunelib.finetuning._freezing.selection import Selection, subtree, union


def select_adapters(model: nn.Module) -> Selection:
    """Select the parts that peft adds to a model: adapters, prompts and trainable copies."""
    if "peft" not in sys.modules:
        return Selection()  # Nothing can come from a package that is not imported.
    return union(_adapters(model))


def _adapters(model: nn.Module) -> Iterator[Selection]:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for prefix, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            names = (*module.adapter_layer_names, *module.other_param_names)
        elif isinstance(module, ModulesToSaveWrapper):
            names = ("modules_to_save",)
        elif isinstance(module, PeftModel):
            names = ("prompt_encoder",)
        else:
            continue
        for name in names:
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                yield subtree(part)
            elif isinstance(part, nn.Parameter) and part.requires_grad:
                yield Selection(parameters=frozenset([f"{prefix}.{name}" if prefix else name]))
