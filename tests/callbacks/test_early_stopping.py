"""Early stopping, and restoring the best weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.callbacks import EarlyStopping
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training import Callback, History, TrainContext
from training.tiny import (
    Untouched,
    network,
    plain_network,
    points,
    quiet_trainer,
    same_bits,
    weights_of,
)


class Script(Callback):
    """Returns given values of a metric, one per epoch."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        self.epoch = 0

    def on_epoch_start(self, context: TrainContext) -> None:
        self.epoch = context.state.epoch

    @property
    def metrics(self) -> dict[str, Any]:
        """The metric, under the name `score`. A higher value is better."""

        def score(outputs: Tensor, targets: Tensor) -> float:
            return self.values[self.epoch]

        score.higher_is_better = True  # type: ignore[attr-defined]
        return {"score": score}


class Weights(Callback):
    """Stores the weights at the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []

    def on_epoch_end(self, context: TrainContext) -> None:
        self.epochs.append(weights_of(context.model))


def train(
    values: Sequence[float],
    stopping: EarlyStopping,
    *,
    model: nn.Module | None = None,
    others: Sequence[Callback] = (),
) -> History:
    """Train for as many epochs as there are values of the metric `score`."""
    script = Script(values)
    trainer = quiet_trainer(
        plain_network() if model is None else model,
        lr=0.1,
        metrics=script.metrics,
        callbacks=[script, *others, stopping],
    )
    return trainer.fit(points(8), points(8), epochs=len(values))


# Patience


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_stops_after_patience_epochs_without_improvement(patience: int) -> None:
    """The best epoch is the second, and `patience` more follow."""
    stopping = EarlyStopping("val_score", patience=patience)
    assert len(train([1.0, 2.0, *[1.5] * 9], stopping)) == 2 + patience
    assert stopping.best_epoch == 2
    assert stopping.best == 2.0


def test_improvement_resets_the_count() -> None:
    """Epochs without improvement are counted since the last improvement."""
    stopping = EarlyStopping("val_score", patience=2)
    assert len(train([1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 0.0, 9.0], stopping)) == 7
    assert stopping.best_epoch == 5


def test_run_that_improves_is_not_stopped() -> None:
    """A run that keeps improving is not stopped."""
    assert len(train([1.0, 2.0, 3.0, 4.0], EarlyStopping("val_score", patience=1))) == 4


def test_min_delta_is_the_smallest_improvement() -> None:
    """Improvements of 0.1 do not count if `min_delta` is 0.5."""
    stopping = EarlyStopping("val_score", patience=2, min_delta=0.5)
    assert len(train([1.0, 1.1, 1.2, 1.3], stopping)) == 3
    assert stopping.best == 1.0


@pytest.mark.parametrize(("mode", "epochs"), [("min", 4), ("max", 2), (None, 2)])
def test_mode_decides_what_is_better(mode: Any, epochs: int) -> None:
    """A falling score is an improvement only with `mode="min"`."""
    stopping = EarlyStopping("val_score", patience=1, mode=mode)
    assert len(train([4.0, 3.0, 2.0, 1.0], stopping)) == epochs


def test_lower_loss_is_better_by_default() -> None:
    """The default monitor is the validation loss, and lower is better."""
    stopping = EarlyStopping(patience=1, min_delta=1e-9)
    history = quiet_trainer(plain_network(), lr=0.05, callbacks=[stopping]).fit(
        points(), points(), epochs=4
    )
    losses = history["val_loss"]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 4
    assert stopping.best == losses[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=repr)
def test_value_that_is_not_finite_is_never_the_best(bad: float) -> None:
    """It counts as an epoch without improvement, from the first epoch on."""
    stopping = EarlyStopping("val_score", patience=2)
    assert len(train([bad, 1.0, bad, bad, 2.0], stopping)) == 4
    assert stopping.best_epoch == 2
    assert stopping.best == 1.0


def test_values_that_are_never_finite_stop_the_training() -> None:
    """A loss that is nan from the start stops the run after `patience` epochs."""
    stopping = EarlyStopping("val_score", patience=3)
    assert len(train([math.nan] * 9, stopping)) == 3
    assert stopping.best_epoch == 0
    assert math.isnan(stopping.best)


def test_training_loss_can_be_monitored() -> None:
    """Without validation data, a column of training can be monitored."""
    stopping = EarlyStopping("train_loss", patience=1, min_delta=100.0)
    history = quiet_trainer(plain_network(), callbacks=[stopping]).fit(points(), epochs=9)
    assert len(history) == 2


def test_second_fit_counts_from_zero() -> None:
    """The best value is kept, and the epochs without improvement are counted from 0."""
    stopping = EarlyStopping("val_score", patience=2)
    script = Script([3.0, *[1.0] * 9])
    trainer = quiet_trainer(plain_network(), metrics=script.metrics, callbacks=[script, stopping])
    data = points(8)
    assert len(trainer.fit(data, data, epochs=9)) == 3
    assert len(trainer.fit(data, data, epochs=9)) == 5
    assert (stopping.best, stopping.best_epoch) == (3.0, 1)


def test_reason_of_the_stop_names_monitor_and_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    """The report shows why the run was stopped."""
    script = Script([2.0, *[1.0] * 9])
    quiet_trainer(
        plain_network(),
        metrics=script.metrics,
        callbacks=[script, EarlyStopping("val_score", patience=3)],
        progress=True,
    ).fit(points(8), points(8), epochs=9)
    told = capsys.readouterr().err
    assert "stopped: val_score" in told
    assert "3 epochs" in told


# Restoring


def test_best_weights_are_restored_exactly() -> None:
    """Parameters, buffers and counters equal those at the end of the best epoch, bit for bit."""
    weights = Weights()
    model = network()
    stopping = EarlyStopping("val_score", patience=2, restore_best=True)
    train([1.0, 3.0, 2.0, 2.0, 9.0], stopping, model=model, others=[weights])
    assert len(weights.epochs) == 4
    assert same_bits(weights_of(model), weights.epochs[1])
    assert not same_bits(weights_of(model), weights.epochs[3])


def test_best_weights_are_restored_when_the_epochs_run_out() -> None:
    """They are also restored if the run ends without being stopped."""
    weights = Weights()
    model = network()
    stopping = EarlyStopping("val_score", patience=9, restore_best=True)
    train([1.0, 3.0, 2.0], stopping, model=model, others=[weights])
    assert same_bits(weights_of(model), weights.epochs[1])


def test_last_weights_are_kept_unless_asked_otherwise() -> None:
    """Without `restore_best` the model keeps the weights of its last step."""
    weights = Weights()
    model = network()
    train([3.0, 2.0, 1.0], EarlyStopping("val_score", patience=2), model=model, others=[weights])
    assert same_bits(weights_of(model), weights.epochs[-1])


def test_weights_stay_if_no_epoch_was_best() -> None:
    """If no value was finite, no weights are restored."""
    weights = Weights()
    model = network()
    stopping = EarlyStopping("val_score", patience=2, restore_best=True)
    train([math.nan] * 4, stopping, model=model, others=[weights])
    assert same_bits(weights_of(model), weights.epochs[-1])


def test_restored_tensors_are_the_models_own() -> None:
    """Parameters are written in place, so the optimizer still refers to them."""
    model = network()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    train([2.0, 1.0], EarlyStopping("val_score", patience=1, restore_best=True), model=model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_restored_weights_are_evaluated() -> None:
    """An evaluation after `fit` returns the values of the best epoch."""
    stopping = EarlyStopping("val_loss", patience=1, restore_best=True)
    inputs, targets = points()
    opposite = (inputs, (targets + 1) % 3)
    trainer = quiet_trainer(plain_network(), lr=0.1, callbacks=[stopping])
    history = trainer.fit((inputs, targets), opposite, epochs=30)
    assert trainer.evaluate(opposite)["loss"] == min(history["val_loss"]) == stopping.best


# Errors


@pytest.mark.parametrize("patience", [1.5, "2", True], ids=repr)
def test_patience_that_is_not_an_integer_is_an_error_that_shows_it(patience: Any) -> None:
    """Epochs are counted in whole numbers."""
    with pytest.raises(InvalidTypeError, match=f"`patience`.*{patience!r}"):
        EarlyStopping(patience=patience)


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_below_one_is_an_error_that_shows_it(patience: int) -> None:
    """A patience of 0 would stop before the first epoch."""
    with pytest.raises(InvalidArgumentError, match=f"`patience`.*{patience}"):
        EarlyStopping(patience=patience)


@pytest.mark.parametrize(
    "options", [{"mode": "best"}, {"min_delta": -1.0}], ids=["mode", "min_delta"]
)
def test_invalid_option_is_an_error_that_names_it(options: dict[str, Any]) -> None:
    """Invalid options raise an error when the callback is created."""
    ((name, value),) = options.items()
    with pytest.raises(InvalidArgumentError) as caught:
        EarlyStopping(**options)
    assert f"`{name}`" in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("monitor", ["val_los", "loss", "val_f1"])
def test_monitor_that_is_not_measured_is_an_error_before_the_first_step(monitor: str) -> None:
    """The message shows the wrong name and the available ones, and no step is taken."""
    model = network()
    untouched = Untouched(model)
    trainer = quiet_trainer(model, callbacks=[EarlyStopping(monitor)])
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.fit(points(), points(8), epochs=1)
    for value in (repr(monitor), "EarlyStopping", "val_loss", "val_accuracy", "train_loss"):
        assert value in " ".join([str(caught.value), *caught.value.__notes__])
    assert trainer.state.step == 0
    untouched.check()


def test_missing_validation_data_is_an_error_that_asks_for_it() -> None:
    """The default monitor needs validation data."""
    with pytest.raises(InvalidArgumentError, match="validation data"):
        quiet_trainer(network(), callbacks=[EarlyStopping()]).fit(points(), epochs=1)


def test_storing_weights_has_no_numeric_effect() -> None:
    """Copying the best weights has no numeric effect."""
    watched, alone = network(), network()
    stopping = EarlyStopping("train_loss", patience=99)
    quiet_trainer(watched, callbacks=[stopping]).fit(points(), epochs=3)
    quiet_trainer(alone).fit(points(), epochs=3)
    assert all(map(torch.equal, weights_of(watched).values(), weights_of(alone).values()))


def test_second_model_is_compared_only_with_itself() -> None:
    """A second model is neither stopped nor restored by values of the first."""
    stopping = EarlyStopping("train_loss", patience=1, min_delta=100.0, restore_best=True)
    quiet_trainer(plain_network(), lr=0.1, callbacks=[stopping]).fit(points(), epochs=2)
    second = build_mlp(6, [8], 3, seed=1)
    before = weights_of(second)
    history = quiet_trainer(second, lr=0.0, callbacks=[stopping]).fit(points(), epochs=5)
    assert same_bits(weights_of(second), before)
    assert len(history) == 2


def test_extra_state_of_a_module_is_left_alone() -> None:
    """Entries of a state dict that are not tensors are left alone."""

    class WithExtraState(nn.Linear):
        """Has an entry in its state dict that is not a tensor."""

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    class Keep(Callback):
        """Stores the weights of the first epoch."""

        def on_epoch_end(self, context: TrainContext) -> None:
            kept.append(model.weight.detach().clone())

    kept: list[Tensor] = []
    model = WithExtraState(6, 3)
    stopping = EarlyStopping("val_score", patience=9, restore_best=True)
    train([3.0, 2.0], stopping, model=model, others=[Keep()])
    assert torch.equal(model.weight, kept[0])
    assert not torch.equal(model.weight, kept[1])
