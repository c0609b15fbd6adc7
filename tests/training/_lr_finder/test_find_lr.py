"""`find_lr`: the curve, the suggestion, and the arguments that are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib import Trainer, build_mlp
from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError
from finetunelib.training import LRFinderResult, find_lr
from finetunelib.training._lr_finder.curve import Divergence, noise_of, smooth, suggest
from finetunelib.training._lr_finder.find import Rates
from training.tiny import plain_network, points, quiet_trainer

INPUTS = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS.sum(1) > 0).long()


def classifier(**options: Any) -> Trainer:
    """Return a Trainer of a small classifier of `INPUTS`."""
    return Trainer(build_mlp(4, [16], 2, seed=0), progress=False, **options)


def curve(*losses: float, decades: float = 6.0) -> tuple[list[float], list[float]]:
    """Return learning rates that end at 1, and losses."""
    count = len(losses)
    return [10 ** (decades * (n / (count - 1) - 1)) for n in range(count)], list(losses)


def valley(count: int = 90, *, noise: float = 0.0) -> tuple[list[float], list[float]]:
    """Return a curve that is flat, falls around 1e-2, and rises again."""
    lrs, _ = curve(*[0.0] * count)
    places = [math.log10(lr) for lr in lrs]
    wiggle = [noise * math.sin(37.0 * n * n) for n in range(count)]
    losses = [
        2.0 - 1.5 / (1 + math.exp(-6 * (p + 2))) + 8 * max(0.0, p + 0.5) + w
        for p, w in zip(places, wiggle, strict=True)
    ]
    return lrs, losses


def test_the_suggestion_trains_and_a_hundred_times_it_does_not() -> None:
    """The steps are those of `fit` with the learning rate of each step."""
    result = find_lr(classifier(), (INPUTS, TARGETS), steps=60)
    assert result.suggestion is not None
    assert result.suggestion in result.lrs
    assert result.lrs[0] == 1e-6
    assert result.stopped is None or "Stopped" in result.stopped
    good = classifier(lr=result.suggestion)
    good.fit((INPUTS, TARGETS), epochs=5)
    assert good.evaluate((INPUTS, TARGETS))["accuracy"] > 0.9
    assert find_lr(classifier(), (INPUTS, TARGETS), steps=60) == result


def test_losses_are_those_of_a_hand_written_range_test() -> None:
    """Bit by bit, over more than one epoch, with one group of the optimizer."""
    data = points(12)
    model = plain_network()
    result = find_lr(quiet_trainer(plain_network()), data, steps=20, max_lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    from finetunelib.data import TensorBatches

    batches = [b for e in range(7) for b in TensorBatches(*data, batch_size=4).epoch(e)]
    losses = []
    for lr, (inputs, targets) in zip(result.lrs, batches, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert list(result.losses) == losses
    assert len(losses) == 20


def test_accumulated_losses_are_means_over_the_update() -> None:
    """The loss before the first update is that of its batches together."""
    data = points(12)
    one = find_lr(quiet_trainer(plain_network(), batch_size=12), data, steps=20)
    several = find_lr(quiet_trainer(plain_network(), gradient_accumulation_steps=3), data, steps=20)
    assert several.losses[0] == pytest.approx(one.losses[0], rel=1e-6)


def test_it_stops_when_the_loss_is_not_finite_or_diverges() -> None:
    """The steps from there on are not in the result."""
    squares = nn.Linear(4, 1)
    trainer = Trainer(squares, loss_fn=nn.MSELoss(), progress=False)
    target = INPUTS.sum(1, keepdim=True)
    result = find_lr(trainer, (INPUTS, target), steps=40, min_lr=1e-4, max_lr=1e8)
    assert len(result.lrs) < 40
    assert result.stopped is not None
    assert all(map(math.isfinite, result.losses))
    exploding = Trainer(nn.Linear(4, 2), progress=False, loss_fn=_infinite_after_a_while)
    result = find_lr(exploding, (INPUTS, TARGETS), steps=40)
    assert "inf" in str(result.stopped)
    assert "inf" not in str(result.losses)


def _infinite_after_a_while(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss = nn.functional.cross_entropy(outputs, targets)
    return loss + torch.where(loss < 0.4, math.inf, 0.0)


def test_targets_that_do_not_learn_give_no_suggestion() -> None:
    """The loss of a constant model does not fall; the reason says so."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Threshold(1e9, 0.0))
    result = find_lr(Trainer(model, progress=False), (INPUTS, TARGETS), steps=20)
    assert result.suggestion is None
    assert "does not fall" in result.reason
    assert "No suggestion." in str(result)


def test_groups_keep_their_ratios() -> None:
    """The learning rate is that of the first group with one; a schedule's start is the base."""
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.SGD(
        [
            {"params": [first], "lr": 0.0},
            {"params": [second], "lr": 0.02},
            {"params": [third], "lr": 0.3, "initial_lr": 0.2},
        ],
        lr=1.0,
    )
    Rates(optimizer).set(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5, pytest.approx(5.0)]
    still = torch.optim.SGD([first], lr=0.0)
    Rates(still).set(0.5)
    assert still.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_suggestion_is_the_steepest_descent(noise: float) -> None:
    """Within a third of a power of ten, with and without noise."""
    lrs, losses = valley(noise=noise)
    suggestion, reason = suggest(lrs, losses, smooth(lrs, losses))
    assert suggestion is not None
    assert abs(math.log10(suggestion) + 2) < 0.34
    assert "fastest" in reason
    assert "max_lr" not in reason


def test_noise_alone_and_rising_losses_give_no_suggestion() -> None:
    """Also when there are few steps; a loss that still falls at the end is said."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        lrs, losses = curve(*torch.randn(100, generator=generator).add(5).tolist())
        assert suggest(lrs, losses, smooth(lrs, losses))[0] is None
    lrs, losses = curve(*[1.0 + 0.01 * n * n for n in range(50)])
    assert suggest(lrs, losses, smooth(lrs, losses))[0] is None
    assert "min_lr" in suggest(lrs[:6], losses[:6], losses[:6])[1]
    assert suggest([], [], [])[0] is None
    lrs, losses = curve(*[2.0] * 30, *[2.0 - 0.05 * n for n in range(20)])
    suggestion, reason = suggest(lrs, losses, smooth(lrs, losses))
    assert suggestion is not None
    assert "max_lr" in reason


def test_smoothing_has_no_lag_and_keeps_constants() -> None:
    """A step in the losses is in the middle of the smoothed step."""
    lrs, losses = curve(*[1.0] * 30, *[0.0] * 30)
    smoothed = smooth(lrs, losses)
    assert smoothed[29] + smoothed[30] == pytest.approx(1.0)
    assert smooth(lrs, [3.0] * 60) == pytest.approx([3.0] * 60)
    assert noise_of([1.0] * 5) == 0.0
    assert noise_of([1.0, -1.0] * 50) == pytest.approx(math.sqrt(2))


def test_divergence_is_above_the_start() -> None:
    """A rise back to the start, negative losses and noise are no divergence."""
    for level in (2.0, -2.0):
        divergence = Divergence(60)
        assert not any(divergence.add(level) for _ in range(20))
        assert not any(divergence.add(level - 1.5) for _ in range(20))
        assert not any(divergence.add(level) for _ in range(10))
        assert any(divergence.add(level + 9.0) for _ in range(10))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"min_lr": 0.0}, "min_lr"),
        ({"max_lr": math.inf}, "max_lr"),
        ({"min_lr": 1.0, "max_lr": 1.0}, "max_lr"),
        ({"steps": 19}, "steps"),
    ],
    ids=["min_lr", "max_lr", "range", "steps"],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], word: str) -> None:
    """The message names the argument."""
    with pytest.raises(InvalidArgumentError, match=word):
        find_lr(classifier(), (INPUTS, TARGETS), **options)


def test_other_arguments_are_refused() -> None:
    """Wrong types, nothing to train, no samples."""
    wrong: Any = "0.1"
    with pytest.raises(InvalidTypeError, match="min_lr"):
        find_lr(classifier(), (INPUTS, TARGETS), min_lr=wrong)
    with pytest.raises(InvalidTypeError, match="trainer"):
        find_lr(wrong, (INPUTS, TARGETS))
    frozen = plain_network().requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="frozen"):
        find_lr(quiet_trainer(frozen), points(12))
    with pytest.raises(EmptyDataError):
        find_lr(classifier(), (INPUTS[:0], TARGETS[:0]))


def test_a_fit_that_runs_is_not_disturbed() -> None:
    """A callback cannot try learning rates on the model that is being trained."""
    from finetunelib.training import Callback, TrainContext

    class Tries(Callback):
        def on_epoch_end(self, context: TrainContext) -> None:
            find_lr(trainer, points(12))

    trainer = quiet_trainer(plain_network(), callbacks=[Tries()])
    with pytest.raises(InvalidArgumentError, match="running"):
        trainer.fit(points(12), epochs=1)


def test_the_text_of_a_result() -> None:
    """The table has at most sixteen rows, the first and the last step among them."""
    lrs, losses = valley()
    result = LRFinderResult(
        tuple(lrs), tuple(losses), tuple(losses), 0.0123, "Steepest.", "Stopped."
    )
    assert repr(result) == "LRFinderResult(suggestion=0.012, 90 steps from 1e-06 to 1)"
    lines = str(result).splitlines()
    assert len(lines) == 1 + 16 + 2
    assert lines[-2:] == ["Stopped.", "Suggestion: 0.012. Steepest."]
    assert lines[1].split()[0] == "1e-06"
    assert lines[16].split()[0] == "1"
    assert result._repr_html_().count("<tr") == 1 + 16
    empty = dataclasses.replace(result, lrs=(), losses=(), smoothed=(), suggestion=None)
    assert repr(empty) == "LRFinderResult(suggestion=None, 0 steps)"
    assert len(str(empty).splitlines()) == 3
