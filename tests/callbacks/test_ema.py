"""An exponential moving average of the weights: its values, and when the model has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import freeze_and_replace_head
from finetunelib.callbacks import EMA
from finetunelib.errors import InvalidArgumentError
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    batches_of,
    network,
    plain_network,
    points,
    quiet_trainer,
    same_bits,
    same_weights,
    weights_of,
)

DECAY = 0.8


def averages_of(ema: EMA, model: nn.Module) -> dict[str, Tensor]:
    """Return the averages, as the model has them inside `applied`."""
    with ema.applied(model):
        return weights_of(model)


def expected_averages(series: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the averages over a series of weights, by the formula in double precision."""
    averages = {name: tensor.double() for name, tensor in series[0].items()}
    for weights in series[1:]:
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                averages[name] = DECAY * averages[name] + (1 - DECAY) * tensor.double()
            else:
                averages[name] = tensor.double()
    return averages


def assert_averages(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert equality up to the rounding of a few updates in float32."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


class Series(Callback):
    """Stores the weights before training and after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_fit_start(self, context: TrainContext) -> None:
        self.weights.append(weights_of(context.model))

    def on_step_end(self, context: TrainContext) -> None:
        self.weights.append(weights_of(context.model))


# Without a Trainer


def test_average_follows_its_formula() -> None:
    """Each update adds a fraction of the new weights."""
    model, ema = network(), EMA(DECAY)
    series = []
    for step in range(5):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(step)
        series.append(weights_of(model))
        ema.update(model)
    assert_averages(averages_of(ema, model), expected_averages(series))


def test_average_starts_at_the_current_weights() -> None:
    """The first update copies them, without a bias towards zero."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    assert same_bits(averages_of(ema, model), weights_of(model))


def test_decay_of_zero_is_the_last_weights() -> None:
    """With a decay of 0 the average is the current weights."""
    model, ema = plain_network(), EMA(0.0)
    ema.update(model)
    with torch.no_grad():
        model.head.get_parameter("bias").fill_(3.0)
    ema.update(model)
    assert same_bits(averages_of(ema, model), weights_of(model))


def test_integer_buffers_are_copied() -> None:
    """BatchNorm's batch counter is copied, and its statistics are averaged."""
    model, ema = nn.BatchNorm1d(2), EMA(DECAY)
    ema.update(model)
    model(torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert model.running_mean is not None
    model.running_mean.fill_(1.0)
    ema.update(model)
    averages = averages_of(ema, model)
    assert int(averages["num_batches_tracked"]) == 1
    # 0.8 * 0 + 0.2 * 1 in float32.
    assert averages["running_mean"].tolist() == pytest.approx([0.2, 0.2], rel=1e-6)


@pytest.mark.parametrize("value", [-math.inf, math.inf], ids=repr)
def test_infinite_values_of_a_constant_buffer_stay(value: float) -> None:
    """The average of an attention mask of zeros and minus infinities is the mask."""
    model, ema = nn.Linear(2, 2), EMA(DECAY)
    mask = torch.triu(torch.full((4, 4), value), 1)
    model.register_buffer("mask", mask.clone())
    for _ in range(3):
        ema.update(model)
    assert torch.equal(averages_of(ema, model)["mask"], mask)


def test_update_copies_the_models_tensors() -> None:
    """Later changes of the model do not change the average."""
    model, ema = plain_network(), EMA(DECAY)
    ema.update(model)
    before = averages_of(ema, model)
    with torch.no_grad():
        model.head.get_parameter("bias").fill_(9.0)
    assert same_bits(averages_of(ema, model), before)


def test_applied_restores_the_models_weights() -> None:
    """After the block the model is bitwise unchanged, and its parameters are the same objects."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    own, identities = weights_of(model), [id(p) for p in model.parameters()]
    with ema.applied(model):
        assert not same_bits(weights_of(model), own)
    assert same_bits(weights_of(model), own)
    assert [id(parameter) for parameter in model.parameters()] == identities


def test_applied_restores_the_weights_after_an_error() -> None:
    """The weights are also restored if the block raises."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    own = weights_of(model)
    with pytest.raises(KeyError), ema.applied(model):
        raise KeyError("in the block")
    assert same_bits(weights_of(model), own)


def test_applied_before_the_first_update_is_an_error() -> None:
    """Without an update there is no average."""
    with pytest.raises(InvalidArgumentError, match="update"), EMA().applied(network()):
        pass


def test_averages_can_be_saved() -> None:
    """Inside the block, the state dict contains the averages."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    copy = network()
    with ema.applied(model):
        copy.load_state_dict(model.state_dict())
    assert same_bits(weights_of(copy), averages_of(ema, model))


# With a Trainer


def test_average_in_fit_follows_its_formula() -> None:
    """It starts at the weights before the first step, and is updated after each step."""
    model, ema, series = network(), EMA(DECAY), Series()
    quiet_trainer(model, lr=0.1, callbacks=[series, ema]).fit(points(), points(8), epochs=2)
    assert len(series.weights) == 13
    assert_averages(averages_of(ema, model), expected_averages(series.weights))


def test_average_in_fit_equals_the_hand_written_one() -> None:
    """A hand-written loop that calls `update` after each step has the same average."""
    model, ema = plain_network(), EMA(DECAY)
    quiet_trainer(model, lr=0.1, callbacks=[ema]).fit(points(), epochs=2)
    by_hand, hand_ema = plain_network(), EMA(DECAY)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    hand_ema.update(by_hand)
    for epoch in range(2):
        for inputs, targets in batches_of(points(), epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(by_hand(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            hand_ema.update(by_hand)
    assert same_bits(averages_of(ema, model), averages_of(hand_ema, by_hand))


def test_training_never_uses_the_averages() -> None:
    """The weights equal those of a run without the callback, with or without validation."""
    averaged, plain = network(), network()
    quiet_trainer(averaged, lr=0.1, callbacks=[EMA(DECAY)]).fit(points(), points(8), epochs=3)
    quiet_trainer(plain, lr=0.1).fit(points(), points(8), epochs=3)
    assert same_weights(averaged, plain)


def test_validation_measures_the_averages() -> None:
    """`val_loss` is the loss of the averages, which differs from that of the weights."""
    model, ema = network(), EMA(DECAY)
    trainer = quiet_trainer(model, lr=0.1, callbacks=[ema])
    history = trainer.fit(points(), points(8), epochs=1)
    own = trainer.evaluate(points(8))["loss"]
    with ema.applied(model):
        averaged = trainer.evaluate(points(8))["loss"]
    assert history["val_loss"] == [averaged]
    assert own != averaged


def test_callbacks_at_an_epochs_end_see_the_models_weights() -> None:
    """The model has the averages during validation only."""
    seen: list[dict[str, Tensor]] = []

    class Keep(Callback):
        """Stores the weights at the end of an epoch."""

        def on_epoch_end(self, context: TrainContext) -> None:
            seen.append(weights_of(context.model))

    series = Series()
    quiet_trainer(network(), lr=0.1, callbacks=[EMA(DECAY), series, Keep()]).fit(
        points(8), points(8), epochs=2
    )
    assert same_bits(seen[0], series.weights[2])
    assert same_bits(seen[1], series.weights[4])


class FailsInValidation(nn.Module):
    """A network whose evaluation fails after it has been trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.trained = False

    def forward(self, inputs: Tensor) -> Any:
        self.trained = self.trained or self.training
        if self.trained and not self.training:
            raise KeyError("validation")
        return self.inner(inputs)


def test_weights_are_restored_if_validation_fails() -> None:
    """After an error in validation the model has its own weights."""
    model, series = FailsInValidation(), Series()
    with pytest.raises(KeyError, match="validation"):
        quiet_trainer(model, lr=0.1, callbacks=[EMA(DECAY), series]).fit(
            points(8), points(8), epochs=1
        )
    assert same_bits(weights_of(model), series.weights[-1])


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_weights_are_restored_if_another_callback_fails(hook: str, place: str) -> None:
    """After an error of another callback the model has its own weights."""

    def fail(self: Callback, context: TrainContext) -> None:
        raise KeyError(hook)

    failing = type("Failing", (Callback,), {hook: fail})()
    model, series, ema = network(), Series(), EMA(DECAY)
    callbacks = [series, failing, ema] if place == "before" else [series, ema, failing]
    with pytest.raises(KeyError, match=hook):
        quiet_trainer(model, lr=0.1, callbacks=callbacks).fit(points(8), points(8), epochs=1)
    assert same_bits(weights_of(model), series.weights[-1])


def test_frozen_tensors_stay_bitwise_unchanged() -> None:
    """The average of a frozen tensor is bitwise equal to it."""
    model = freeze_and_replace_head(network(), num_classes=3)
    ema = EMA(0.9)
    before = weights_of(model.get_submodule("backbone"))
    quiet_trainer(model, lr=0.1, callbacks=[ema]).fit(points(), points(8), epochs=3)
    with ema.applied(model):
        assert same_bits(weights_of(model.get_submodule("backbone")), before)


def test_average_continues_in_a_second_fit() -> None:
    """Two runs of one epoch give the same average as one run of two."""
    parts, whole = network(), network()
    ema, other = EMA(DECAY), EMA(DECAY)
    trainer = quiet_trainer(parts, lr=0.1, callbacks=[ema])
    trainer.fit(points(), points(8), epochs=1)
    trainer.fit(points(), points(8), epochs=1)
    quiet_trainer(whole, lr=0.1, callbacks=[other]).fit(points(), points(8), epochs=2)
    assert same_bits(averages_of(ema, parts), averages_of(other, whole))


def test_accumulated_gradients_are_one_update_of_the_average() -> None:
    """The average is updated once per step, not per micro-batch."""
    model, ema, series = network(), EMA(DECAY), Series()
    quiet_trainer(model, lr=0.1, gradient_accumulation_steps=3, callbacks=[series, ema]).fit(
        points(), epochs=1
    )
    assert len(series.weights) == 3
    assert_averages(averages_of(ema, model), expected_averages(series.weights))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan], ids=repr)
def test_decay_outside_its_range_is_an_error_that_shows_it(decay: float) -> None:
    """With a decay of 1 the average would never change."""
    with pytest.raises(InvalidArgumentError) as caught:
        EMA(decay)
    assert "`decay`" in str(caught.value)
    assert str(decay) in str(caught.value)


def test_decay_can_be_read_back() -> None:
    """The default is 0.999."""
    assert EMA().decay == 0.999
    assert EMA(0.5).decay == 0.5


class WithExtraState(nn.Module):
    """Has an entry in its state dict that is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_network()

    def forward(self, inputs: Tensor) -> Any:
        return self.inner(inputs)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None: ...


def test_extra_state_of_a_module_is_not_averaged() -> None:
    """Only the tensors of the state dict are averaged."""
    model, plain = WithExtraState(), plain_network()
    ema, other = EMA(DECAY), EMA(DECAY)
    quiet_trainer(model, lr=0.1, callbacks=[ema]).fit(points(), points(8), epochs=1)
    quiet_trainer(plain, lr=0.1, callbacks=[other]).fit(points(), points(8), epochs=1)
    with ema.applied(model), other.applied(plain):
        assert same_weights(model.inner, plain)


def test_average_of_another_model_starts_from_its_weights() -> None:
    """A second model starts from its own weights."""
    ema = EMA(DECAY)
    quiet_trainer(plain_network(), lr=0.1, callbacks=[ema]).fit(points(), epochs=1)
    second = nn.Sequential(nn.Linear(6, 3))
    quiet_trainer(second, lr=0.0, callbacks=[ema]).fit(points(), epochs=1)
    assert same_bits(averages_of(ema, second), weights_of(second))
