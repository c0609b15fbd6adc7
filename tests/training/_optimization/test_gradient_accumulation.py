"""Several micro-batches give the update of one large batch.

If two orders of adding are compared, models and inputs are float64. The remaining difference is the
rounding of the relative weights of micro-batches, which are float32: 1e-7 of a value. A mean with
wrong weights differs by some percent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib.training import Callback, StepOutput, Task, TrainContext
from training.tiny import (
    CLASSES,
    cut,
    plain_network,
    points,
    quiet_trainer,
    ready_batches,
    same_weights,
    weights_of,
)

CLASS_WEIGHT = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)


def double_network() -> nn.Module:
    """Return a small network in double precision."""
    return plain_network().double()


def double_points(samples: int = 22) -> tuple[Tensor, Tensor]:
    """Return random points in double precision, and classes of which some may be ignored."""
    inputs, targets = points(samples)
    return inputs.double(), targets


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether the values agree up to rounding (see the module)."""
    return all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-8) for name in one)


class Gradients(Callback):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_step_end(self, context: TrainContext) -> None:
        gradients = {name: p.grad for name, p in context.model.named_parameters()}
        self.steps.append({name: g.clone() for name, g in gradients.items() if g is not None})


LOSSES: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "class weights": lambda: nn.CrossEntropyLoss(weight=CLASS_WEIGHT),
    "ignored targets": lambda: nn.CrossEntropyLoss(ignore_index=1),
    "label smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.2),
    "all of them": lambda: nn.CrossEntropyLoss(CLASS_WEIGHT, ignore_index=1, label_smoothing=0.2),
    "negative log-likelihood": lambda: nn.NLLLoss(weight=CLASS_WEIGHT),
    "function": lambda: nn.functional.cross_entropy,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("window", [2, 3])
def test_gradients_are_those_of_one_large_batch(loss: str, window: int) -> None:
    """K micro-batches of b give the gradients of k*b, also in a short last window."""
    one, other = Gradients(), Gradients()
    data = double_points()
    for size, steps, gradients in ((4, window, one), (4 * window, 1, other)):
        quiet_trainer(
            double_network(),
            loss_fn=LOSSES[loss](),
            gradient_accumulation_steps=steps,
            callbacks=[gradients],
        ).fit(ready_batches(data, size), epochs=1)
    assert len(one.steps) == len(other.steps) == -(-22 // (4 * window))
    assert all(map(close, one.steps, other.steps))


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_those_of_large_batches(loss: str) -> None:
    """Epochs with momentum end at the weights of training with large batches."""
    small, large = double_network(), double_network()
    data = double_points()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(model, lr=0.1, loss_fn=LOSSES[loss](), gradient_accumulation_steps=steps).fit(
            ready_batches(data, size), epochs=3
        )
    assert close(weights_of(small), weights_of(large))


@pytest.mark.parametrize(
    "loss_fn", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()], ids=str
)
def test_regression_is_that_of_large_batches(loss_fn: nn.Module) -> None:
    """Losses that average over every value accumulate correctly."""
    inputs, classes = double_points()
    targets = nn.functional.one_hot(classes, CLASSES).double()
    small, large = double_network(), double_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(model, lr=0.1, loss_fn=loss_fn, gradient_accumulation_steps=steps).fit(
            ready_batches((inputs, targets), size), epochs=2
        )
    assert close(weights_of(small), weights_of(large))


def test_class_probabilities_accumulate_like_a_large_batch() -> None:
    """Soft targets are averaged over samples, whatever the class weights."""
    inputs, classes = double_points()
    soft = nn.functional.one_hot(classes, CLASSES).double() * 0.7 + 0.1
    small, large = double_network(), double_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(
            model,
            lr=0.1,
            loss_fn=nn.CrossEntropyLoss(weight=CLASS_WEIGHT),
            gradient_accumulation_steps=steps,
        ).fit(ready_batches((inputs, soft), size), epochs=1)
    assert close(weights_of(small), weights_of(large))


def test_targets_of_several_dimensions_accumulate_like_a_large_batch() -> None:
    """Ignored pixels do not count: segmentation equals the large batch."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(10, 2, 3, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (10, 3, 3), generator=generator)
    targets[targets == 3] = -100
    models = [nn.Conv2d(2, 3, 1).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, size, steps in zip(models, (2, 6), (3, 1), strict=True):
        quiet_trainer(model, lr=0.1, gradient_accumulation_steps=steps).fit(
            ready_batches((images, targets), size), epochs=2
        )
    assert close(weights_of(models[0]), weights_of(models[1]))


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
def test_micro_batch_of_ignored_targets_alone_counts_for_nothing(place: int) -> None:
    """A micro-batch without counted targets has no mean, but its window has one."""
    inputs, targets = double_points(12)
    targets[4 * place : 4 * place + 4] = -100
    small, large = double_network(), double_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(model, lr=0.1, gradient_accumulation_steps=steps).fit(
            ready_batches((inputs, targets), size), epochs=1
        )
    assert close(weights_of(small), weights_of(large))


def test_window_of_ignored_targets_alone_is_that_of_a_large_batch() -> None:
    """If a complete window is ignored, the update is that of one large batch."""
    inputs, targets = double_points(12)
    targets[:] = -100
    small, large = double_network(), double_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(model, lr=0.1, gradient_accumulation_steps=steps).fit(
            ready_batches((inputs, targets), size), epochs=1
        )
    assert close(weights_of(small), weights_of(large))


def test_window_with_frozen_parameters_is_that_of_a_large_batch() -> None:
    """Parameters without a gradient are skipped, the others are averaged."""
    small, large = double_network(), double_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        model.get_submodule("backbone").requires_grad_(False)
        quiet_trainer(model, lr=0.1, gradient_accumulation_steps=steps).fit(
            ready_batches(double_points(), size), epochs=1
        )
    assert close(weights_of(small), weights_of(large))
    assert not close(weights_of(small), weights_of(double_network()))


@pytest.mark.parametrize("loss", LOSSES)
def test_recorded_loss_is_that_of_all_data(loss: str) -> None:
    """`train_loss` weights batches as the loss does; with a learning rate of 0 it is exact."""
    inputs, targets = double_points()
    model = double_network()
    loss_fn = LOSSES[loss]()
    history = quiet_trainer(
        model, lr=0.0, loss_fn=loss_fn, gradient_accumulation_steps=2, metrics={}
    ).fit((inputs, targets), (inputs, targets), epochs=1)
    expected = float((loss_fn or nn.CrossEntropyLoss())(model(inputs), targets).detach())
    # Doubles are added in a different order.
    assert history["train_loss"] == pytest.approx([expected], rel=1e-12)
    assert history["val_loss"] == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize("loss", ["default", "class weights", "ignored targets"])
def test_window_of_one_is_bit_for_bit_the_plain_loop(loss: str) -> None:
    """Without accumulation, gradients are not even multiplied by one."""
    model, expected = double_network(), double_network()
    loss_fn = LOSSES[loss]()
    batches = ready_batches(double_points())
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in batches:
        optimizer.zero_grad()
        (loss_fn or nn.CrossEntropyLoss())(expected(inputs), targets).backward()
        optimizer.step()
    quiet_trainer(model, lr=0.1, loss_fn=loss_fn, gradient_accumulation_steps=1).fit(
        batches, epochs=1
    )
    assert same_weights(model, expected)


def test_equal_micro_batches_are_bit_for_bit_the_hand_written_accumulation() -> None:
    """Gradients of micro-batches of one size are summed and divided by their number."""
    model, expected = plain_network(), plain_network()
    batches = ready_batches(points(16))
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for window in (batches[:2], batches[2:]):
        optimizer.zero_grad()
        for inputs, targets in window:
            loss = nn.functional.cross_entropy(expected(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in expected.parameters():
            assert parameter.grad is not None
            parameter.grad /= 2
        optimizer.step()
    quiet_trainer(model, lr=0.1, gradient_accumulation_steps=2).fit(batches, epochs=1)
    assert same_weights(model, expected)


def test_weight_of_a_task_determines_the_weight_of_its_micro_batch() -> None:
    """A task that averages over tokens returns their number."""

    class TokenMean(Task):
        """Averages over the counted tokens of a batch."""

        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            inputs, targets, counted = batch
            errors = (model(inputs).squeeze(1) - targets).square()
            loss = (errors * counted).sum() / counted.sum()
            return StepOutput(loss, None, None, weight=counted.sum())

    inputs, _ = double_points(12)
    counted = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0]).double()
    batches = list(zip(*(cut(t, 4) for t in (inputs, inputs.sum(1), counted)), strict=True))
    small, large = nn.Linear(6, 1).double(), nn.Linear(6, 1).double()
    large.load_state_dict(small.state_dict())
    quiet_trainer(small, lr=0.1, task=TokenMean(), gradient_accumulation_steps=3).fit(
        batches, epochs=1
    )
    quiet_trainer(large, lr=0.1, task=TokenMean()).fit([(inputs, inputs.sum(1), counted)], epochs=1)
    assert close(weights_of(small), weights_of(large))


def test_gradients_are_clipped_after_they_are_averaged() -> None:
    """The norm that is clipped is that of the large batch."""
    small, large = double_network(), double_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(model, lr=0.1, max_grad_norm=0.05, gradient_accumulation_steps=steps).fit(
            ready_batches(double_points(), size), epochs=2
        )
    assert close(weights_of(small), weights_of(large))


def test_step_is_one_update_and_not_one_micro_batch() -> None:
    """Six batches in windows of four are two steps."""
    history = quiet_trainer(plain_network(), gradient_accumulation_steps=4).fit(points(), epochs=2)
    assert history["step"] == [2, 4]


def test_window_does_not_reach_into_the_next_epoch() -> None:
    """The rest of an epoch is an update, and the next epoch starts a new window."""
    gradients = Gradients()
    data = double_points()
    trainer = quiet_trainer(
        double_network(), lr=0.0, gradient_accumulation_steps=4, callbacks=[gradients]
    )
    trainer.fit(ready_batches(data), epochs=2)
    assert close(gradients.steps[0], gradients.steps[2])
    assert close(gradients.steps[1], gradients.steps[3])


def test_window_larger_than_the_data_is_one_update_of_all() -> None:
    """A window that is never filled contains all of the data."""
    one, other = Gradients(), Gradients()
    data = double_points()
    quiet_trainer(double_network(), gradient_accumulation_steps=99, callbacks=[one]).fit(
        ready_batches(data), epochs=1
    )
    quiet_trainer(double_network(), callbacks=[other]).fit([data], epochs=1)
    assert len(one.steps) == 1
    assert close(one.steps[0], other.steps[0])


def test_max_steps_counts_updates() -> None:
    """A limit of steps counts updates, each of a complete window."""
    trainer = quiet_trainer(plain_network(), gradient_accumulation_steps=2)
    assert trainer.fit(points(), max_steps=2)["step"] == [2]


def test_metrics_see_every_micro_batch() -> None:
    """Accuracy counts all samples of an epoch, not only the last micro-batches."""
    data = points()
    model = plain_network()
    hits = int((model(data[0]).argmax(1) == data[1]).sum())
    trainer = quiet_trainer(model, lr=0.0, gradient_accumulation_steps=4)
    assert trainer.fit(data, epochs=1)["train_accuracy"] == [hits / 22]
