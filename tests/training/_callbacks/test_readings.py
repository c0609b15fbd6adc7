"""What callbacks read about the steps so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from finetunelib import Trainer
from finetunelib.training import Callback, StepOutput, Task, TokenTask, TrainContext
from training.tiny import (
    batches_of,
    network,
    plain_network,
    points,
    quiet_trainer,
    ready_batches,
    same_weights,
)

Look = Callable[[TrainContext], Any]


@dataclass
class Looks(Callback):
    """Keeps what a function reads in some of the hooks."""

    look: Look
    hooks: tuple[str, ...] = ("step_end",)
    seen: list[Any] = field(default_factory=list)

    def _at(self, hook: str, context: TrainContext) -> None:
        if hook in self.hooks:
            self.seen.append(self.look(context))

    def on_fit_start(self, context: TrainContext) -> None:
        self._at("fit_start", context)

    def on_epoch_start(self, context: TrainContext) -> None:
        self._at("epoch_start", context)

    def on_step_end(self, context: TrainContext) -> None:
        self._at("step_end", context)

    def on_epoch_end(self, context: TrainContext) -> None:
        self._at("epoch_end", context)


def looked(look: Look, *hooks: str, epochs: int = 2, **options: Any) -> tuple[list[Any], Trainer]:
    """Return what a function reads during a run on a few points, and the Trainer."""
    looks = Looks(look, hooks or ("step_end",))
    trainer = quiet_trainer(plain_network(), callbacks=[looks], **options)
    trainer.fit(points(), epochs=epochs)
    return looks.seen, trainer


def by_hand(epochs: int = 2, max_norm: float = math.inf) -> list[tuple[float, float]]:
    """Return the loss and the norm of the gradients of each step of the hand-written loop."""
    model = plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    found = []
    for epoch in range(epochs):
        for inputs, targets in batches_of(points(), epoch):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            found.append((loss.item(), norm.item()))
    return found


def test_the_last_loss_is_that_of_the_step() -> None:
    """It has the bits of the hand-written loop."""
    seen, trainer = looked(lambda context: context.last_loss)
    assert seen == [loss for loss, _ in by_hand()]
    assert trainer.history["step"] == [6, 12]


def test_the_norm_is_that_before_clipping() -> None:
    """It is the one that clipping computes."""
    seen, _ = looked(lambda context: (context.last_loss, context.grad_norm), max_grad_norm=0.5)
    assert seen == by_hand(max_norm=0.5)
    assert max(norm for _, norm in seen) > 0.5


def test_without_clipping_there_is_no_norm() -> None:
    """Nothing else computes it."""
    seen, _ = looked(lambda context: context.grad_norm, epochs=1)
    assert seen == [None] * 6


def test_the_last_loss_is_the_mean_over_the_micro_batches() -> None:
    """A short micro-batch counts less."""
    looks = Looks(lambda context: context.last_loss)
    trainer = quiet_trainer(
        nn.Linear(1, 1), task=LengthIsLoss(), callbacks=[looks], gradient_accumulation_steps=3
    )
    trainer.fit([torch.zeros(size, 1) for size in (4, 2, 4, 3)], epochs=1)
    assert looks.seen == [pytest.approx((16 + 4 + 16) / 10), 3.0]


class LengthIsLoss(Task):
    """The loss of a batch is its length, which it is also a mean over."""

    counts_tokens = True

    def step(self, model: nn.Module, batch: Tensor) -> StepOutput:
        outputs = model(batch)
        return StepOutput(outputs.sum() * 0.0 + len(batch), outputs, None, weight=len(batch))


def test_an_update_without_counted_targets_has_no_loss() -> None:
    """The mean over nothing is nan, also over several micro-batches."""
    inputs, _ = points(8)
    ignored = torch.full((8,), -100)
    looks = Looks(lambda context: context.last_loss)
    trainer = quiet_trainer(plain_network(), callbacks=[looks], gradient_accumulation_steps=2)
    trainer.fit(ready_batches((inputs, ignored)), epochs=1)
    assert len(looks.seen) == 1
    assert math.isnan(looks.seen[0])


def test_running_means_are_those_of_the_epoch_so_far() -> None:
    """They begin anew in each epoch, and end as its row."""
    hooks = ("epoch_start", "step_end", "epoch_end")
    seen, trainer = looked(lambda context: context.running_means(), *hooks)
    for epoch, row in enumerate(trainer.history):
        start, *steps, end = seen[8 * epoch : 8 * (epoch + 1)]
        assert start == {}
        assert end == steps[-1] == {name: row[name] for name in ("train_loss", "train_accuracy")}
        losses = [loss for loss, _ in by_hand()][6 * epoch : 6 * (epoch + 1)]
        assert steps[0]["train_loss"] == losses[0]
        assert steps[2]["train_loss"] == pytest.approx(sum(losses[:3]) / 3)


def test_reading_changes_nothing() -> None:
    """A run whose values are read at every step has the same weights and rows."""

    def read_all(context: TrainContext) -> None:
        _ = context.last_loss, context.grad_norm, context.lr, context.running_means()
        _ = context.samples_per_second, context.tokens_per_second

    runs = []
    for callbacks in ([], [Looks(read_all)]):
        trainer = quiet_trainer(network(), callbacks=callbacks, max_grad_norm=1.0)
        trainer.fit(points(), points(8, seed=1), epochs=2)
        runs.append(trainer)
    plain, read = runs
    assert same_weights(plain.model, read.model)
    for name in ("train_loss", "train_accuracy", "val_loss"):
        assert plain.history[name] == read.history[name]


class CountsComputes:
    """A metric that counts how often its value was computed."""

    def __init__(self) -> None:
        self.computed: list[int] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> float:
        self.computed.append(1)
        return 0.0

    def reset(self) -> None: ...

    def __deepcopy__(self, memo: object) -> CountsComputes:
        return self


def test_a_metric_is_computed_only_when_someone_asks() -> None:
    """The steps do not compute it."""
    metric = CountsComputes()
    looked(lambda context: len(metric.computed), metrics={"counted": metric}, epochs=1)
    before = len(metric.computed)
    asked = CountsComputes()
    looked(lambda context: context.running_means(), metrics={"counted": asked}, epochs=1)
    assert len(asked.computed) == before + 6


def test_the_learning_rate_is_that_of_the_step() -> None:
    """A schedule that advances after a step has not changed it yet."""
    seen, trainer = looked(
        lambda context: (context.lr, context.optimizer.param_groups[0]["lr"]),
        lr=0.8,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
        lr_scheduler_interval="step",
        epochs=1,
    )
    assert seen == [(0.8 * 0.5**step, 0.8 * 0.5 ** (step + 1)) for step in range(6)]
    assert trainer.history["lr"] == [seen[-1][0]]


def test_the_speed_is_known_after_the_first_step() -> None:
    """Before it there is none; the row has the speed of the whole epoch."""
    hooks = ("fit_start", "epoch_start", "step_end", "epoch_end")
    seen, trainer = looked(lambda context: context.samples_per_second, *hooks, epochs=1)
    assert seen[:2] == [None, None]
    assert all(speed > 0 for speed in seen[2:])
    assert seen[-1] == trainer.history["samples_per_second"][0]


def test_only_a_task_that_counts_tokens_has_a_speed_in_tokens() -> None:
    """Tokens are what its losses are means over."""
    look = Looks(lambda context: (context.tokens_per_second, context.samples_per_second))
    trainer = quiet_trainer(nn.Linear(1, 1), task=LengthIsLoss(), callbacks=[look])
    trainer.fit([torch.zeros(size, 1) for size in (4, 2)], epochs=1)
    assert all(tokens > 0 and samples > 0 for tokens, samples in look.seen)
    seen, _ = looked(lambda context: context.tokens_per_second, epochs=1)
    assert seen == [None] * 6


def test_a_token_task_counts_tokens() -> None:
    """Ignored targets are not counted, so the speed is below that of all positions."""
    tokens = torch.arange(10).repeat(8, 1)
    targets = (9 - tokens).masked_fill(tokens < 8, -100)
    looks = Looks(lambda context: (context.tokens_per_second, context.samples_per_second))
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    trainer = quiet_trainer(model, task=TokenTask(shift=False), callbacks=[looks], batch_size=8)
    trainer.fit((tokens, targets), epochs=1)
    ((tokens_per_second, samples_per_second),) = looks.seen
    assert tokens_per_second == pytest.approx(2 * samples_per_second, rel=0.5)


def test_a_resumed_epoch_counts_only_its_own_tokens(tmp_path: Any) -> None:
    """Those before the checkpoint took none of the time since it was loaded."""

    class Stops(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            if context.state.step == 2:
                context.request_checkpoint(tmp_path / "saved")

    batches = [torch.zeros(size, 1) for size in (1000, 1000, 1)]
    quiet_trainer(nn.Linear(1, 1), task=LengthIsLoss(), callbacks=[Stops()]).fit(batches, epochs=1)
    looks = Looks(lambda context: (context.tokens_per_second, context.samples_per_second))
    trainer = quiet_trainer(nn.Linear(1, 1), task=LengthIsLoss(), callbacks=[looks])
    trainer.fit(batches, epochs=1, resume_from=tmp_path / "saved")
    tokens, samples = looks.seen[0]
    assert tokens == pytest.approx(samples, rel=0.5)  # One token and one sample.


def test_before_the_first_step_there_is_nothing_to_read() -> None:
    """The learning rate is that of the optimizer."""
    seen, _ = looked(
        lambda c: (c.last_loss, c.grad_norm, c.running_means(), c.lr), "fit_start", epochs=1
    )
    assert seen == [(None, None, {}, 0.01)]
