"""Findings about gradients, and about updates that change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._messages import quoted
from finetunelib.training._diagnosis.finding import Finding

#: The least number of updates after which an adapter has moved.
ADAPTER_STEPS = 3

#: How many parameters in half precision are watched, and how many values of each.
_PARAMETERS, _VALUES = 8, 4096

#: The fraction of weights that the first update may leave unchanged: small ones move first.
_MOST_LOST = 0.75

#: Parts of the names of the parameters of LoRA that are zero before training.
_ADAPTERS = ("lora_B", "lora_embedding_B")


def gradient_findings(parameters: Sequence[tuple[str, nn.Parameter]]) -> Iterator[Finding]:
    """Yield the finding about trainable parameters that the first backward pass did not reach."""
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    missing = [name for name, parameter in trainable if parameter.grad is None]
    # Without any gradient, they were cleared, such as by an optimizer that runs in the backward.
    if missing and len(missing) < len(trainable):
        yield Finding(
            "parameter-without-gradient",
            "certain",
            f"{len(missing)} trainable parameters got no gradient from the first batch: "
            f"{quoted(missing)}. The loss does not depend on them, so they are not trained.",
            "If the model uses them for other batches only, ignore this. Otherwise check that "
            "`forward` uses them, without `.detach()` and `torch.no_grad()`, or freeze them.",
        )


class Resolution:
    """Compares weights in half precision before and after an update.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._before: list[tuple[nn.Parameter, Tensor, float | None]] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                half = parameter.dtype in (torch.bfloat16, torch.float16)
                if half and parameter.requires_grad and len(self._before) < _PARAMETERS:
                    values = parameter.detach().flatten()[:_VALUES].clone()
                    if float(group["lr"]):
                        self._before.append((parameter, values, _reach(optimizer, group)))

    def findings(self) -> Iterator[Finding]:
        """Yield the finding about updates that are rounded away, after the first update."""
        lost = moved = 0
        for parameter, before, reach in self._before:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.detach().flatten()[:_VALUES].float()
            still = parameter.detach().flatten()[:_VALUES] == before
            if reach is not None:
                # Half the distance to the next number is at least this much.
                half = before.float().abs() * (torch.finfo(before.dtype).eps / 4)
                still &= reach * gradient.abs() < half
            counted = gradient != 0
            lost += int((still & counted).sum())
            moved += int((~still & counted).sum())
        if lost > _MOST_LOST * (lost + moved):
            dtype = str(self._before[0][1].dtype).removeprefix("torch.")
            yield Finding(
                "update-below-precision",
                "likely",
                f"The first update did not change {lost} of {lost + moved} weights in {dtype} "
                "that have a gradient: it is smaller than the distance to the next number.",
                'Keep the weights in float32 and pass `precision="bf16-mixed"`, or use a larger '
                "learning rate.",
            )


def adapter_findings(
    parameters: Iterable[tuple[str, nn.Parameter]], steps: int
) -> Iterator[Finding]:
    """Yield the finding about adapters that are still zero after some updates."""
    if steps < ADAPTER_STEPS:
        return
    adapters = [(n, p) for n, p in parameters if p.requires_grad and any(a in n for a in _ADAPTERS)]
    still = [name for name, parameter in adapters if not bool(parameter.detach().any())]
    if still:
        yield Finding(
            "adapter-not-moving",
            "certain",
            f"{len(still)} of {len(adapters)} LoRA adapters are still zero after {steps} updates, "
            f"so they have no effect: {quoted(still)}.",
            "Check that the adapter is enabled, that the adapted layers are used in `forward`, and "
            "that the learning rate is not 0.",
        )


def _reach(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float | None:
    """Return how far SGD with momentum moves a weight per step and unit of a constant gradient.

    Its later updates are larger than the first. For other optimizers, `None`.
    """
    momentum = float(group.get("momentum", 0.0))
    if not isinstance(optimizer, torch.optim.SGD) or not 0 < momentum < 1:
        return None
    return float(group["lr"]) / (1 - momentum)
