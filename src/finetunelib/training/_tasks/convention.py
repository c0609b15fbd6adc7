"""What the outputs and targets of a task mean, for the metrics that depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn
from torch.nn import functional

from finetunelib.training._tasks.class_targets import IGNORED
from finetunelib.training._tasks.task import Task

#: Losses of class indices, and losses of numbers.
CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)
CLASS_FUNCTIONS = (functional.cross_entropy, functional.nll_loss)
REGRESSION_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
REGRESSION_FUNCTIONS = (
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
)

#: One class per sample, or several labels, each of which applies or not.
TargetKind: TypeAlias = Literal["classes", "labels"]


@dataclass(frozen=True, slots=True)
class Convention:
    """How outputs become predictions.

    Attributes:
        kind: What targets of the shape of the outputs are, or `None` if it is unknown.
        threshold: Above which a single output predicts class 1: 0 for logits and 0.5 for
            probabilities; `None` if it is unknown.
        ignored: The class index that is not counted.
        regression: Whether the loss is that of a regression.
        of_tokens: Whether outputs are logits `(batch, tokens, classes)` with the classes on the
            last axis, or predicted classes of the shape of the targets.
    """

    kind: TargetKind | None = None
    threshold: float | None = None
    ignored: int = IGNORED
    regression: bool = False
    of_tokens: bool = False


def convention_of(loss_fn: object, ignored: int = IGNORED) -> Convention:
    """Return the convention of a loss, from its class or function.

    Args:
        loss_fn: The loss, without partials around it.
        ignored: The class index that it ignores.
    """
    if isinstance(loss_fn, CLASS_LOSSES) or loss_fn in CLASS_FUNCTIONS:
        return Convention("classes", None, ignored)
    if isinstance(loss_fn, nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss) or loss_fn in (
        functional.binary_cross_entropy_with_logits,
        functional.multilabel_soft_margin_loss,
    ):
        return Convention("labels", 0.0, ignored)
    if isinstance(loss_fn, nn.BCELoss) or loss_fn is functional.binary_cross_entropy:
        return Convention("labels", 0.5, ignored)
    if isinstance(loss_fn, REGRESSION_LOSSES) or loss_fn in REGRESSION_FUNCTIONS:
        return Convention(ignored=ignored, regression=True)
    return Convention(ignored=ignored)


def convention_of_task(task: Task) -> Convention:
    """Return the convention of a task; that of the user's own is unknown."""
    found = getattr(task, "convention", None)
    return found if isinstance(found, Convention) else Convention()
