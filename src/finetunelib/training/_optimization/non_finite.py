"""Finds where the values of a step stopped being finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetunelib._forward.outputs import tensors_in
from finetunelib._preserve import attributes_preserved, random_state_preserved
from finetunelib._typing import Batch
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._tasks.modules import TrainedModules


@dataclass(frozen=True, slots=True)
class Finding:
    """Where the values of a step stopped being finite, as a text for a message.

    Attributes:
        data: Where the batch itself has such a value, or `None`.
        parameter: The name of a parameter that is not finite, or `None`.
        module: The name of the first module whose output is not finite, or `None`.
        kind: The class of the module.
    """

    data: str | None
    parameter: str | None
    module: str | None
    kind: str = ""

    def __str__(self) -> str:
        text = ""
        if self.module is not None:
            text = (
                f"The first module whose output is not finite is `{self.module or '(the model)'}` "
                f"({self.kind}). "
            )
        if self.data is not None:
            return f"{text}The batch itself has {self.data}. Remove or replace this value."
        if self.parameter is not None:
            return f"{text}Start again with a smaller `lr`, or with `max_grad_norm=1.0`."
        if self.module is None:
            return (
                "The outputs of all modules are finite in a second run of the forward pass. The "
                "loss may have no finite value there, such as the log of 0 or a mean over nothing."
            )
        return f"{text}Use a smaller `lr`, `max_grad_norm=1.0`, or normalized inputs."


def explain(
    trained: TrainedModules, runner: nn.Module, precision: Precision, batch: Batch
) -> Finding:
    """Return where the values of a step stop being finite, by repeating its forward pass once.

    Random states and the attributes of modules are restored; buffers are not.

    Args:
        trained: The user's model with the task that computes the loss.
        runner: What the step called.
        precision: The number format of the forward pass.
        batch: The micro-batch.
    """
    model, task = trained.model, trained.task
    parameter = next((n for n, p in model.named_parameters() if not _is_finite(p)), None)
    names = {id(module): name for name, module in model.named_modules()}
    found: list[tuple[str, str]] = []

    def notice(module: nn.Module, arguments: object, output: object) -> None:  # noqa: ARG001 - a hook's form
        if not found and not all(map(_is_finite, tensors_in(output))):
            found.append((names[id(module)], type(module).__name__))

    with random_state_preserved(), attributes_preserved(model), torch.no_grad():
        for module in model.modules():
            module.register_forward_hook(notice)
        try:
            with precision.autocast():
                task.step(runner, batch)
        # The user's code may raise anything the second time; what it showed until then counts.
        except Exception:  # noqa: BLE001, S110
            pass
    module_name, kind = found[0] if found else (None, "")
    return Finding(_place_in(batch), parameter, module_name, kind)


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(tensor.detach().isfinite().all())


def _place_in(batch: Batch) -> str | None:
    """Return the first value in a batch that is not finite, with its sample."""
    for tensor in tensors_in(batch):
        if not _is_finite(tensor):
            index = (~tensor.isfinite()).nonzero()[0].tolist()
            value = tensor[tuple(index)].item()
            sample = f" in its sample {index[0]}" if index else ""
            return f"{value}{sample}, in a tensor of shape {tuple(tensor.shape)}"
    return None
