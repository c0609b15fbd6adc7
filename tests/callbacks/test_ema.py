"""An exponential moving average of weights: its values, and when the model has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import freeze_and_replace_head
from finetunelib.callbacks import EMA
from finetunelib.errors import CallbackError, InvalidArgumentError
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
    """Return the averages that a model is lent."""
    with ema.applied(model):
        return weights_of(model)


def expected_averages(series: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the averages over a series of weights, by the formula and in double precision."""
    averages = {name: tensor.double() for name, tensor in series[0].items()}
    for weights in series[1:]:
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                averages[name] = DECAY * averages[name] + (1 - DECAY) * tensor.double()
            else:
                averages[name] = tensor.double()
    return averages


def assert_averages(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert equality but for the rounding of a few updates in float32."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


class Series(Callback):
    """Keeps the weights from the start of a training, after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_fit_start(self, context: TrainContext) -> None:
        self.weights.append(weights_of(context.model))

    def on_step_end(self, context: TrainContext) -> None:
        self.weights.append(weights_of(context.model))


# Outside of a Trainer


def test_average_follows_its_formula() -> None:
    """From the weights at hand, each update takes in a share of the new ones."""
    model, ema = network(), EMA(DECAY)
    series = []
    for step in range(5):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(step)
        series.append(weights_of(model))
        ema.update(model)
    assert_averages(averages_of(ema, model), expected_averages(series))


def test_average_starts_at_the_weights_at_hand() -> None:
    """The first update takes them as they are, without a bias towards zero."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    assert same_bits(averages_of(ema, model), weights_of(model))


def test_decay_of_zero_is_the_last_weights() -> None:
    """Nothing of the past stays."""
    model, ema = plain_network(), EMA(0.0)
    ema.update(model)
    with torch.no_grad():
        model.head.get_parameter("bias").fill_(3.0)
    ema.update(model)
    assert same_bits(averages_of(ema, model), weights_of(model))


def test_buffers_of_whole_numbers_are_taken_as_they_are() -> None:
    """BatchNorm's count of batches is the last one, and its statistics are averaged."""
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
    """A mask of attention, zero and minus infinity, is its own average."""
    model, ema = nn.Linear(2, 2), EMA(DECAY)
    mask = torch.triu(torch.full((4, 4), value), 1)
    model.register_buffer("mask", mask.clone())
    for _ in range(3):
        ema.update(model)
    assert torch.equal(averages_of(ema, model)["mask"], mask)


def test_update_does_not_hold_on_to_the_models_tensors() -> None:
    """What changes in the model later changes nothing of the average."""
    model, ema = plain_network(), EMA(DECAY)
    ema.update(model)
    before = averages_of(ema, model)
    with torch.no_grad():
        model.head.get_parameter("bias").fill_(9.0)
    assert same_bits(averages_of(ema, model), before)


def test_applied_gives_the_models_own_weights_back() -> None:
    """After the block the model is bit for bit as before, its parameters the same objects."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    own, identities = weights_of(model), [id(p) for p in model.parameters()]
    with ema.applied(model):
        assert not same_bits(weights_of(model), own)
    assert same_bits(weights_of(model), own)
    assert [id(parameter) for parameter in model.parameters()] == identities


def test_applied_gives_the_weights_back_after_an_error() -> None:
    """What fails in the block changes nothing of that."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    own = weights_of(model)
    with pytest.raises(KeyError), ema.applied(model):
        raise KeyError("in the block")
    assert same_bits(weights_of(model), own)


def test_applied_before_the_first_update_is_an_error() -> None:
    """There is no average of nothing."""
    with pytest.raises(InvalidArgumentError, match="update"), EMA().applied(network()):
        pass


def test_averages_can_be_saved() -> None:
    """Within the block a state dict is that of the averages."""
    model, ema = network(), EMA(DECAY)
    ema.update(model)
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    copy = network()
    with ema.applied(model):
        copy.load_state_dict(model.state_dict())
    assert same_bits(weights_of(copy), averages_of(ema, model))


# In a training


def test_average_of_a_training_follows_its_formula() -> None:
    """It starts at the weights before the first step and takes in those after each."""
    model, ema, series = network(), EMA(DECAY), Series()
    quiet_trainer(model, lr=0.1, callbacks=[series, ema]).fit(points(), points(8), epochs=2)
    assert len(series.weights) == 13
    assert_averages(averages_of(ema, model), expected_averages(series.weights))


def test_average_of_a_training_is_the_hand_written_one_bit_for_bit() -> None:
    """A loop that calls `update` after each of its steps has the same average."""
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


def test_training_never_sees_the_averages() -> None:
    """Weights are those of a training without the callback, validation or not."""
    averaged, plain = network(), network()
    quiet_trainer(averaged, lr=0.1, callbacks=[EMA(DECAY)]).fit(points(), points(8), epochs=3)
    quiet_trainer(plain, lr=0.1).fit(points(), points(8), epochs=3)
    assert same_weights(averaged, plain)


def test_validation_measures_the_averages() -> None:
    """`val_loss` is the loss of the averages, and that of the own weights is another one."""
    model, ema = network(), EMA(DECAY)
    trainer = quiet_trainer(model, lr=0.1, callbacks=[ema])
    history = trainer.fit(points(), points(8), epochs=1)
    own = trainer.evaluate(points(8))["loss"]
    with ema.applied(model):
        averaged = trainer.evaluate(points(8))["loss"]
    assert history["val_loss"] == [averaged]
    assert own != averaged


def test_callbacks_at_an_epochs_end_see_the_own_weights() -> None:
    """The averages are lent for validation alone."""
    seen: list[dict[str, Tensor]] = []

    class Keep(Callback):
        """Keeps the weights at an epoch's end."""

        def on_epoch_end(self, context: TrainContext) -> None:
            seen.append(weights_of(context.model))

    series = Series()
    quiet_trainer(network(), lr=0.1, callbacks=[EMA(DECAY), series, Keep()]).fit(
        points(8), points(8), epochs=2
    )
    assert same_bits(seen[0], series.weights[2])
    assert same_bits(seen[1], series.weights[4])


class FailsInValidation(nn.Module):
    """A network whose evaluation fails once it has been trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.trained = False

    def forward(self, inputs: Tensor) -> Any:
        self.trained = self.trained or self.training
        if self.trained and not self.training:
            raise KeyError("validation")
        return self.inner(inputs)


def test_own_weights_are_back_when_validation_fails() -> None:
    """An error in the middle of a validation does not leave the averages in the model."""
    model, series = FailsInValidation(), Series()
    with pytest.raises(KeyError, match="validation"):
        quiet_trainer(model, lr=0.1, callbacks=[EMA(DECAY), series]).fit(
            points(8), points(8), epochs=1
        )
    assert same_bits(weights_of(model), series.weights[-1])


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_own_weights_are_back_when_another_callback_fails(hook: str, place: str) -> None:
    """Whatever fails around a validation, the model does not keep the averages."""

    def fail(self: Callback, context: TrainContext) -> None:
        raise KeyError(hook)

    failing = type("Failing", (Callback,), {hook: fail})()
    model, series, ema = network(), Series(), EMA(DECAY)
    callbacks = [series, failing, ema] if place == "before" else [series, ema, failing]
    with pytest.raises(CallbackError, match=hook):
        quiet_trainer(model, lr=0.1, callbacks=callbacks).fit(points(8), points(8), epochs=1)
    assert same_bits(weights_of(model), series.weights[-1])


def test_frozen_tensors_keep_their_bits() -> None:
    """The average of what never moves is what it was, to the last bit."""
    model = freeze_and_replace_head(network(), num_classes=3)
    ema = EMA(0.9)
    before = weights_of(model.get_submodule("backbone"))
    quiet_trainer(model, lr=0.1, callbacks=[ema]).fit(points(), points(8), epochs=3)
    with ema.applied(model):
        assert same_bits(weights_of(model.get_submodule("backbone")), before)


def test_average_goes_on_in_a_second_fit() -> None:
    """Two trainings of one epoch have the average of one of two."""
    parts, whole = network(), network()
    ema, other = EMA(DECAY), EMA(DECAY)
    trainer = quiet_trainer(parts, lr=0.1, callbacks=[ema])
    trainer.fit(points(), points(8), epochs=1)
    trainer.fit(points(), points(8), epochs=1)
    quiet_trainer(whole, lr=0.1, callbacks=[other]).fit(points(), points(8), epochs=2)
    assert same_bits(averages_of(ema, parts), averages_of(other, whole))


def test_accumulated_gradients_make_one_update_of_the_average() -> None:
    """The average follows updates, and not micro-batches."""
    model, ema, series = network(), EMA(DECAY), Series()
    quiet_trainer(model, lr=0.1, gradient_accumulation_steps=3, callbacks=[series, ema]).fit(
        points(), epochs=1
    )
    assert len(series.weights) == 3
    assert_averages(averages_of(ema, model), expected_averages(series.weights))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan], ids=repr)
def test_decay_outside_its_range_is_an_error_that_shows_it(decay: float) -> None:
    """At one the average would never move."""
    with pytest.raises(InvalidArgumentError) as caught:
        EMA(decay)
    assert "`decay`" in str(caught.value)
    assert str(decay) in str(caught.value)


def test_decay_can_be_read_back() -> None:
    """The default is one thousandth a step."""
    assert EMA().decay == 0.999
    assert EMA(0.5).decay == 0.5


class WithExtraState(nn.Module):
    """Has something in its state dict that is no tensor, as torch allows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_network()

    def forward(self, inputs: Tensor) -> Any:
        return self.inner(inputs)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None: ...


def test_extra_state_of_a_module_is_no_obstacle() -> None:
    """What is no tensor has no average, and the tensors beside it have theirs."""
    model, plain = WithExtraState(), plain_network()
    ema, other = EMA(DECAY), EMA(DECAY)
    quiet_trainer(model, lr=0.1, callbacks=[ema]).fit(points(), points(8), epochs=1)
    quiet_trainer(plain, lr=0.1, callbacks=[other]).fit(points(), points(8), epochs=1)
    with ema.applied(model), other.applied(plain):
        assert same_weights(model.inner, plain)


def test_average_of_another_model_is_begun_anew() -> None:
    """A callback that is used for a second model does not mix it with the first."""
    ema = EMA(DECAY)
    quiet_trainer(plain_network(), lr=0.1, callbacks=[ema]).fit(points(), epochs=1)
    second = nn.Sequential(nn.Linear(6, 3))
    quiet_trainer(second, lr=0.0, callbacks=[ema]).fit(points(), epochs=1)
    assert same_bits(averages_of(ema, second), weights_of(second))
