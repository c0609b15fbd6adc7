"""Findings about the outputs and the loss of the first batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib.training._diagnosis.finding import Certainty, Finding
from finetunelib.training._tasks.convention import convention_of_task
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.task import StepOutput, Task
from finetunelib.training._tasks.weighting import function_of

#: The most outputs that are examined.
_MOST = 1 << 20

#: How far the sum of a row's probabilities may be from 1, in units of the dtype's precision.
_ROUNDING = 64

#: Operations that change the form of a tensor, but not its values, by the name of their gradient.
_VIEWS = (
    "Alias",
    "Clone",
    "Permute",
    "Reshape",
    "Select",
    "Slice",
    "Squeeze",
    "ToCopy",
    "Transpose",
    "UnsafeView",
    "Unsqueeze",
    "View",
)


def output_findings(
    task: Task, output: StepOutput, model: nn.Module, *, initial: bool
) -> Iterator[Finding]:
    """Yield the findings about the output of a step in training.

    Args:
        task: The task.
        output: Its output for the first batch, with the graph.
        model: The user's model.
        initial: Whether the loss is expected to be that of guessing, before the first update.
    """
    outputs = output.outputs
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        return
    if not outputs.numel() or outputs.layout != torch.strided or outputs.is_nested:
        return
    loss_fn = function_of(task.loss_fn) if isinstance(task, SupervisedTask) else None
    of_tokens = convention_of_task(task).of_tokens
    axis = -1 if of_tokens or outputs.dim() == 1 else 1
    if isinstance(loss_fn, nn.BCEWithLogitsLoss) or (
        loss_fn is functional.binary_cross_entropy_with_logits
    ):
        yield from _before_sigmoid(outputs, model)
    if outputs.shape[axis] < 2:
        return
    if of_tokens or isinstance(loss_fn, nn.CrossEntropyLoss) or loss_fn is functional.cross_entropy:
        yield from _before_softmax(outputs, axis)
        weight, smoothing = (getattr(loss_fn, n, None) for n in ("weight", "label_smoothing"))
        # PyTorch's smoothing with class weights has another scale.
        if initial and (weight is None or not smoothing):
            yield from _initial_loss(output.loss, outputs.shape[axis])
    if isinstance(loss_fn, nn.NLLLoss) or loss_fn is functional.nll_loss:
        yield from _into_nll(outputs, axis)


def _before_softmax(outputs: Tensor, axis: int) -> Iterator[Finding]:
    kind = _kind_of(outputs, axis)
    last = _last_operation(outputs)
    certain: Certainty = "certain" if "Softmax" in last else "likely"
    if kind == "probabilities":
        yield Finding(
            "softmax-before-cross-entropy",
            certain,
            "The outputs of the model are probabilities: they are at least 0, and each row sums to "
            "1. Cross-entropy applies softmax again, which keeps the loss high and the gradients "
            "small.",
            "Let the model return logits: remove its softmax. For probabilities, call "
            "`.softmax(1)` on what `trainer.predict` returns.",
        )
    elif kind == "log-probabilities":
        yield Finding(
            "log-softmax-before-cross-entropy",
            certain,
            "The outputs of the model are log-probabilities. Cross-entropy applies log-softmax "
            "again, which changes nothing, but costs time.",
            "Remove the log-softmax from the model, or pass `loss_fn=nn.NLLLoss()`.",
        )


def _into_nll(outputs: Tensor, axis: int) -> Iterator[Finding]:
    kind = _kind_of(outputs, axis)
    if kind == "log-probabilities":
        return
    positive = bool((outputs.detach() > 1e-3).any())
    what = "probabilities" if kind == "probabilities" else "no log-probabilities"
    yield Finding(
        "logits-into-nll-loss",
        "certain" if positive else "likely",
        f"The outputs of the model are {what}, but NLLLoss needs log-probabilities: the loss can "
        "fall without limit while the model learns nothing.",
        "Pass `loss_fn=nn.CrossEntropyLoss()` and let the model return logits.",
    )


def _before_sigmoid(outputs: Tensor, model: nn.Module) -> Iterator[Finding]:
    last = _last_operation(outputs)
    certain: Certainty = "certain"
    if not last.startswith("Sigmoid"):
        # A compiled model hides its operations.
        if not last.startswith("Compiled") or not _ends_with_sigmoid(model):
            return
        low, high = (float(value) for value in outputs.detach().aminmax())
        if low < 0 or high > 1:
            return
        certain = "likely"
    yield Finding(
        "sigmoid-before-bce-with-logits",
        certain,
        "The model ends with a sigmoid, and BCEWithLogitsLoss applies another one: its "
        "probabilities stay between 0.5 and 0.73.",
        "Remove the sigmoid from the model, or pass `loss_fn=nn.BCELoss()`.",
    )


def _initial_loss(loss: Tensor, classes: int) -> Iterator[Finding]:
    value, chance = float(loss.detach()), math.log(classes)
    if math.isfinite(value) and value > 2 * chance + 3:
        yield Finding(
            "initial-loss-too-high",
            "likely",
            f"The loss of the first batch is {value:.3g}. With {classes} classes, guessing all of "
            f"them with the same probability gives {chance:.3g}: the model is confident and wrong.",
            "Scale the inputs to about mean 0 and standard deviation 1, initialize the last layer "
            "with small weights, and check that the labels are those that the model was trained "
            "with, if it was.",
        )


def _kind_of(outputs: Tensor, axis: int) -> str:
    """Return what the rows of the first outputs are: probabilities, log-probabilities or logits."""
    rows = outputs.detach()
    if rows.dim() > 1:
        rows = rows[: max(1, _MOST // max(1, rows[0].numel()))]
    rounding = _ROUNDING * torch.finfo(rows.dtype).eps
    low, high = (float(value) for value in rows.aminmax())
    if low < 0 and high > rounding:
        return "logits"
    rows = rows.float().movedim(axis, -1).reshape(-1, rows.shape[axis])
    if low >= 0 and 0 < high <= 1 + rounding:
        sums = rows.sum(-1)
        kind = "probabilities"
    elif high <= rounding and low < 0:
        sums = rows.logsumexp(-1).exp()
        kind = "log-probabilities"
    else:
        return "logits"
    if bool(((sums - 1).abs() > max(rounding, 1e-5)).any()):
        return "logits"
    # A model whose last layer is zero returns the same row for each sample, whatever it is.
    same = len(rows) > 1 and bool((rows == rows[0]).all())
    return "logits" if same and "Softmax" not in _last_operation(outputs) else kind


def _last_operation(outputs: Tensor) -> str:
    """Return the name of the gradient of the operation that computed the values of a tensor."""
    node: Any = outputs.grad_fn
    for _ in range(8):
        if node is None:
            return ""
        name: str = node.name()
        if not name.startswith(_VIEWS):
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""


def _ends_with_sigmoid(model: nn.Module) -> bool:
    last = None
    for last in model.modules():  # noqa: B007 - the last one is needed
        pass
    return isinstance(last, nn.Sigmoid)
