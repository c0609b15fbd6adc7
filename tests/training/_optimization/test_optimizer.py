"""The optimizer, built from the user's argument, and clipping."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib import freeze_and_replace_head
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from training.tiny import (
    Untouched,
    batches_of,
    network,
    plain_network,
    points,
    quiet_trainer,
    same_bits,
    same_weights,
    weights_of,
)


def train_by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float | None = None
) -> None:
    """Train two epochs with a hand-written loop."""
    for epoch in range(2):
        for inputs, targets in batches_of(points(), epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()


# Arguments


def test_default_optimizer_is_sgd_with_momentum() -> None:
    """Without arguments it is SGD with a learning rate of 0.01 and a momentum of 0.9."""
    model, expected = plain_network(), plain_network()
    train_by_hand(expected, torch.optim.SGD(expected.parameters(), lr=0.01, momentum=0.9))
    quiet_trainer(model).fit(points(), epochs=2)
    assert same_weights(model, expected)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam"])
def test_class_of_an_optimizer_is_called_with_the_rate_alone(name: str) -> None:
    """A class gives the weights of the hand-written loop with its own defaults."""
    make = getattr(torch.optim, name)
    model, expected = plain_network(), plain_network()
    train_by_hand(expected, make(expected.parameters(), lr=0.02))
    trainer = quiet_trainer(model, optimizer=make, lr=0.02)
    trainer.fit(points(), epochs=2)
    assert type(trainer.optimizer) is make
    assert same_weights(model, expected)


def make_with_default(groups: list[dict[str, Any]], lr: float = 0.05) -> torch.optim.Optimizer:
    """Return an optimizer with a default rate of its own."""
    return torch.optim.SGD(groups, lr=lr)


def make_with_rate(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Return an optimizer for a rate that must be passed."""
    return torch.optim.SGD(groups, lr=lr)


def make_without_rate(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return an optimizer with a fixed rate."""
    return torch.optim.SGD(groups, lr=0.07)


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (torch.optim.AdamW, 1e-3),
        (partial(torch.optim.AdamW, lr=3e-4), 3e-4),
        (partial(partial(torch.optim.SGD, lr=0.2), momentum=0.5), 0.2),
        (partial(make_with_rate, lr=0.4), 0.4),
        (make_with_default, 0.05),
        (make_without_rate, 0.07),
        (lambda groups: torch.optim.SGD(groups, lr=0.3), 0.3),
    ],
)
def test_without_lr_the_optimizer_keeps_its_own_rate(optimizer: Any, rate: float) -> None:
    """The learning rate is that of the partial, the function or the class."""
    trainer = quiet_trainer(plain_network(), optimizer=optimizer)
    history = trainer.fit(points(8), epochs=1)
    assert trainer.optimizer is not None
    assert trainer.optimizer.param_groups[0]["lr"] == rate == history["lr"][0]


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (partial(torch.optim.AdamW, lr=3e-4), 0.1),
        (partial(partial(torch.optim.SGD, lr=0.2), momentum=0.5), 0.1),
        (make_without_rate, 0.1),
        (make_with_rate, None),
        (partial(make_with_rate), None),
    ],
    ids=["partial", "nested partial", "no parameter", "no rate", "no rate in a partial"],
)
def test_rate_that_is_given_twice_or_never_is_an_error(optimizer: Any, lr: float | None) -> None:
    """It is raised when the Trainer is created, and the message names `lr`."""
    with pytest.raises(InvalidArgumentError, match=r"`lr`|learning rate"):
        quiet_trainer(plain_network(), optimizer=optimizer, lr=lr)


@pytest.mark.parametrize(
    ("name", "right"),
    [("adam", "Adam"), ("AdamW", "AdamW"), ("sgd", "SGD"), ("rms_prop", "RMSprop")],
)
def test_name_of_an_optimizer_is_answered_with_its_class(name: str, right: str) -> None:
    """Following the hint gives a Trainer that trains."""
    with pytest.raises(InvalidTypeError, match=rf"optimizer=torch\.optim\.{right}\.") as caught:
        quiet_trainer(plain_network(), optimizer=name)
    assert repr(name) in str(caught.value)
    quiet_trainer(plain_network(), optimizer=getattr(torch.optim, right)).fit(points(8), epochs=1)


def test_partial_of_a_class_keeps_its_arguments() -> None:
    """`functools.partial` gives the weights of the hand-written loop."""
    options: dict[str, Any] = {"weight_decay": 0.3, "betas": (0.8, 0.9)}
    model, expected = plain_network(), plain_network()
    train_by_hand(expected, torch.optim.AdamW(expected.parameters(), lr=0.02, **options))
    quiet_trainer(model, optimizer=partial(torch.optim.AdamW, **options), lr=0.02).fit(
        points(), epochs=2
    )
    assert same_weights(model, expected)


def test_factory_may_define_parameter_groups() -> None:
    """A function gets the parameter groups and the learning rate, and may change both."""

    def make(groups: list[dict[str, Any]], *, lr: float) -> torch.optim.Optimizer:
        first, *others = groups[0]["params"]
        return torch.optim.SGD([{"params": [first], "lr": 2 * lr}, {"params": others}], lr=lr)

    model, expected = plain_network(), plain_network()
    train_by_hand(expected, make([{"params": list(expected.parameters())}], lr=0.1))
    quiet_trainer(model, optimizer=make, lr=0.1).fit(points(), epochs=2)
    assert same_weights(model, expected)


def test_optimizer_object_is_used() -> None:
    """An object gives the weights of the hand-written loop, and is `trainer.optimizer`."""
    model, expected = plain_network(), plain_network()
    train_by_hand(expected, torch.optim.Adam(expected.parameters(), lr=0.03))
    ready = torch.optim.Adam(model.parameters(), lr=0.03)
    trainer = quiet_trainer(model, optimizer=ready)
    trainer.fit(points(), epochs=2)
    assert trainer.optimizer is ready
    assert same_weights(model, expected)


def test_optimizer_object_of_some_parameters_trains_only_those() -> None:
    """An optimizer over the head leaves the backbone bitwise unchanged."""
    model = plain_network()
    before = weights_of(model)
    trainer = quiet_trainer(model, optimizer=torch.optim.SGD(model.head.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match=r"`backbone\.1\.weight`, `backbone\.1\.bias`"):
        trainer.fit(points(), epochs=1)
    changed = {name for name, t in weights_of(model).items() if not torch.equal(t, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_optimizer_is_built_at_the_first_fit() -> None:
    """It is not built earlier, so the head may be replaced after the Trainer is created."""
    model = plain_network()
    trainer = quiet_trainer(model)
    before = trainer.optimizer
    model.head = nn.Linear(8, 5)
    trainer.fit(points(), epochs=1)
    optimizer = trainer.optimizer
    assert before is None
    assert optimizer is not None
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_optimizer_has_frozen_parameters_too() -> None:
    """The groups contain every parameter, so unfreezing later changes no group."""
    model = freeze_and_replace_head(plain_network(), num_classes=3)
    trainer = quiet_trainer(model)
    trainer.fit(points(), epochs=1)
    assert trainer.optimizer is not None
    assert len(trainer.optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.AdamW, weight_decay=0.5),
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.5),
    ],
    ids=["AdamW", "SGD"],
)
def test_frozen_backbone_keeps_its_bits(optimizer: Any) -> None:
    """Weight decay, momentum and BatchNorm statistics do not change frozen tensors."""
    model = network()
    quiet_trainer(model, lr=0.1).fit(points(), epochs=1)
    tuned = freeze_and_replace_head(model, num_classes=3)
    frozen, head = weights_of(model.backbone), weights_of(model.head)
    quiet_trainer(tuned, optimizer=optimizer, lr=0.1).fit(points(), points(8), epochs=2)
    assert same_bits(weights_of(model.backbone), frozen)
    assert not same_bits(weights_of(model.head), head)


def test_parameter_frozen_between_two_fits_keeps_its_bits() -> None:
    """Momentum of an earlier `fit` does not change a parameter that was frozen afterwards."""
    model = plain_network()
    trainer = quiet_trainer(model, lr=0.1)
    trainer.fit(points(), epochs=1)
    model.backbone.requires_grad_(False)
    before = weights_of(model.backbone)
    trainer.fit(points(), epochs=1)
    assert same_bits(weights_of(model.backbone), before)


# Clipping


@pytest.mark.parametrize("max_norm", [0.05, 0.5, 1e6])
def test_clipping_is_the_hand_written_loop_bit_for_bit(max_norm: float) -> None:
    """Gradients are clipped by PyTorch's function between backward and step."""
    model, expected = plain_network(), plain_network()
    train_by_hand(expected, torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9), max_norm)
    quiet_trainer(model, lr=0.1, max_grad_norm=max_norm).fit(points(), epochs=2)
    assert same_weights(model, expected)


def test_tight_clipping_changes_the_training() -> None:
    """A small norm has an effect."""
    clipped, free = plain_network(), plain_network()
    quiet_trainer(clipped, max_grad_norm=0.05).fit(points(), epochs=1)
    quiet_trainer(free).fit(points(), epochs=1)
    assert not same_weights(clipped, free)


def test_clipping_ignores_frozen_parameters() -> None:
    """Parameters without a gradient do not count in the norm, and cause no error."""
    model = plain_network()
    model.backbone.requires_grad_(False)
    before = weights_of(model.head)
    quiet_trainer(model, max_grad_norm=0.1).fit(points(), epochs=1)
    assert not same_bits(weights_of(model.head), before)


@pytest.mark.parametrize("norm", [0, 0.0, -1.0, float("nan")], ids=repr)
def test_norm_that_is_not_positive_is_an_error_that_shows_it(norm: float) -> None:
    """A norm of zero would silently stop training."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(plain_network(), max_grad_norm=norm)
    assert "`max_grad_norm`" in str(caught.value)
    assert str(norm) in str(caught.value)


# Errors


@pytest.mark.parametrize("rate", [-0.1, -1, float("nan")], ids=repr)
def test_rate_below_zero_is_an_error_that_shows_it(rate: float) -> None:
    """A negative learning rate would increase the loss, and nan would destroy the weights."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(plain_network(), lr=rate)
    assert "`lr`" in str(caught.value)
    assert str(rate) in str(caught.value)


def test_rate_together_with_an_optimizer_object_is_an_error_that_shows_it() -> None:
    """The optimizer has its own learning rates, so one of the two would be ignored."""
    model = plain_network()
    ready = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidArgumentError, match=r"`lr` is 0\.25"):
        quiet_trainer(model, optimizer=ready, lr=0.25)


@pytest.mark.parametrize("optimizer", ["adam", 0.1, {}], ids=repr)
def test_argument_that_is_not_an_optimizer_is_an_error_that_names_its_type(optimizer: Any) -> None:
    """A name or a number is not an optimizer."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), optimizer=optimizer)
    assert "`optimizer`" in str(caught.value)
    assert type(optimizer).__name__ in str(caught.value)


@pytest.mark.parametrize("made", [None, "sgd"], ids=repr)
def test_factory_that_returns_no_optimizer_is_an_error_that_shows_it(made: Any) -> None:
    """A missing `return` is found before the first step."""
    model = plain_network()
    untouched = Untouched(model)
    trainer = quiet_trainer(model, optimizer=lambda groups: made)
    with pytest.raises(InvalidTypeError, match="`optimizer`") as caught:
        trainer.fit(points(), epochs=1)
    assert repr(made) in str(caught.value)
    untouched.check()


def test_optimizer_built_before_the_head_was_replaced_is_an_error() -> None:
    """It would train a head that no longer exists; the message has the shape."""
    model = plain_network()
    ready = torch.optim.SGD(model.parameters(), lr=0.1)
    freeze_and_replace_head(model, num_classes=5)
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(model, optimizer=ready)
    assert "`optimizer`" in str(caught.value)
    assert "(3, 8)" in str(caught.value)


def test_head_replaced_after_the_trainer_was_created_is_found_at_fit() -> None:
    """An optimizer object is checked again before the first step."""
    model = plain_network()
    trainer = quiet_trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    freeze_and_replace_head(model, num_classes=3)
    untouched = Untouched(model)
    with pytest.raises(InvalidArgumentError, match="`optimizer`"):
        trainer.fit(points(), epochs=1)
    untouched.check()


def test_model_of_frozen_parameters_is_an_error() -> None:
    """There is nothing to train, and nothing is changed."""
    model = plain_network()
    model.requires_grad_(False)
    untouched = Untouched(model)
    with pytest.raises(InvalidArgumentError, match="frozen"):
        quiet_trainer(model).fit(points(), epochs=1)
    untouched.check()


def test_model_without_parameters_is_an_error() -> None:
    """A model without parameters cannot be trained."""
    with pytest.raises(InvalidArgumentError, match="no parameter"):
        quiet_trainer(nn.Flatten()).fit(points(), epochs=1)
