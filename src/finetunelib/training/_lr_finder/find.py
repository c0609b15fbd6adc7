"""`find_lr`: the loss of a model while the learning rate grows from step to step."""

from __future__ import annotations

import math

import torch

from finetunelib._arguments import check_at_least, is_number
from finetunelib._public import public
from finetunelib.data._batches import Data
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._lr_finder.curve import Divergence, smooth, suggest
from finetunelib.training._lr_finder.result import LRFinderResult
from finetunelib.training._trainer import Trainer
from finetunelib.training._trials.trial import Trial, measure_nothing, trial


@public("finetunelib.training")
def find_lr(
    trainer: Trainer,
    data: Data,
    *,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    steps: int = 100,
) -> LRFinderResult:
    """Find a learning rate with a range test (L. N. Smith, 2017).

    The model is trained for a few steps while the learning rate grows exponentially from `min_lr`
    to `max_lr`. As long as it is too small, the loss stays the same; then the loss falls, and when
    the learning rate is too large, it rises. The test stops when the loss is not finite, or has
    risen above its start by more than it had fallen, and by at least half of its start.

    The steps are those of `fit`: with the Trainer's optimizer, loss or task, precision, clipping,
    gradient accumulation and device, on the batches of the next epochs. If there are fewer batches
    than the test needs, it continues with another epoch. Callbacks, metrics and the learning-rate
    schedule are not called.

    Afterwards everything is bitwise what it was, also after an error: weights, buffers, gradients,
    modes and `requires_grad`, the optimizer, the Trainer's counters and history, the global random
    states, and the generators of a DataLoader, its samplers and its dataset. If the Trainer has not
    built its optimizer yet, it does not have one afterwards. What else data keeps is not restored,
    such as the random states of persistent workers. The test needs memory for copies of the model
    and of the optimizer's state.

    Args:
        trainer: The Trainer. Its model may be new, pretrained, partly frozen or already trained.
        data: The training data, in any form that `fit` accepts, except iterators.
        min_lr: The first learning rate, above 0. If the optimizer has several parameter groups,
            it is that of the first group; all groups are multiplied by the same factor, which
            keeps the ratios of their learning rates.
        max_lr: The last learning rate, above `min_lr`.
        steps: The number of updates, at least 20. It is smaller if the test stops early.

    Returns:
        The learning rates and losses, and a suggestion, which is the learning rate at which the
        smoothed loss falls fastest. It is `None`, with a reason, if the loss does not clearly fall.

    Raises:
        InvalidArgumentError: If a learning rate or `steps` is out of range, `data` is an iterator,
            there is nothing to train, or `fit` is running.
        InvalidTypeError: If an argument or the data has the wrong type.
        DataError: If the data is empty, or the model or the loss does not accept it.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.training import find_lr
        >>> inputs = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        >>> trainer = Trainer(build_mlp(4, [16], 2, seed=0), progress=False)
        >>> result = find_lr(trainer, (inputs, (inputs.sum(1) > 0).long()))
        >>> 0.01 < result.suggestion < 10
        True
        >>> trainer.state.step  # Nothing was trained.
        0
    """
    if not isinstance(trainer, Trainer):
        raise InvalidTypeError(f"`trainer` must be a Trainer, got {type(trainer).__name__}.")
    _check_range(min_lr, max_lr)
    check_at_least(20, steps=steps)
    with trial(trainer, data, "find_lr") as run:
        run.coverage.check(trainer._trained)  # noqa: SLF001
        run.check(run.first())
        lrs, losses, stopped = _measure(run, float(min_lr), float(max_lr), steps)
    smoothed = smooth(lrs, losses)
    suggestion, reason = suggest(lrs, losses, smoothed)
    return LRFinderResult(tuple(lrs), tuple(losses), tuple(smoothed), suggestion, reason, stopped)


def _check_range(min_lr: object, max_lr: object) -> None:
    for name, value in (("min_lr", min_lr), ("max_lr", max_lr)):
        if not is_number(value):
            raise InvalidTypeError(
                f"`{name}` must be a number, got {value!r} ({type(value).__name__})."
            )
        if not (value > 0 and math.isfinite(value)):
            raise InvalidArgumentError(f"`{name}` must be above 0 and finite, got {value}.")
    if is_number(min_lr) and is_number(max_lr) and not min_lr < max_lr:
        raise InvalidArgumentError(f"`max_lr` must be above `min_lr`, got {max_lr} and {min_lr}.")


def _measure(
    run: Trial, min_lr: float, max_lr: float, steps: int
) -> tuple[list[float], list[float], str | None]:
    """Return the learning rates and the losses, and why the test stopped early, if it did."""
    rates, divergence = Rates(run.optimizer), Divergence(steps)
    lrs: list[float] = []
    losses: list[float] = []
    for number, window in zip(range(steps), run.windows(), strict=False):
        lr = min_lr * (max_lr / min_lr) ** (number / (steps - 1))
        rates.set(lr)
        run.step(window, measure_nothing)
        loss = run.loss()
        if loss is None:
            continue  # No target of these batches counts.
        if not math.isfinite(loss):
            return lrs, losses, f"Stopped at a learning rate of {lr:.2g}: the loss is {loss}."
        lrs.append(lr)
        losses.append(loss)
        if divergence.add(loss):
            return lrs, losses, f"Stopped at a learning rate of {lr:.2g}: the loss diverges."
    return lrs, losses, None


class Rates:
    """The learning rates of an optimizer's groups, whose ratios stay the same."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups = optimizer.param_groups
        # A schedule keeps the rate that it started from.
        own = [float(group.get("initial_lr", group["lr"])) for group in self._groups]
        unit = next((lr for lr in own if lr > 0), None)
        self._factors = [1.0 if unit is None else lr / unit for lr in own]

    def set(self, lr: float) -> None:
        """Set the rate of the first group whose own is above 0, and those of the others."""
        for group, factor in zip(self._groups, self._factors, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr * factor)  # A compiled or captured optimizer reads this one.
            else:
                group["lr"] = lr * factor
