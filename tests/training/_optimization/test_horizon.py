"""A schedule that does not have the length of the run is found before it starts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from finetunelib.errors import InvalidArgumentError
from training.tiny import plain_network, points, quiet_trainer

DATA = points(22)  # 6 batches of 4: 18 steps in 3 epochs


def fit(make: Any, interval: str, **options: Any) -> list[float]:
    """Train three epochs with a schedule, and return the learning rates."""
    fit_options = {"epochs": options.pop("epochs", 3), "max_steps": options.pop("max_steps", None)}
    trainer = quiet_trainer(
        plain_network(), lr=0.1, lr_scheduler=make, lr_scheduler_interval=interval, **options
    )
    return list(trainer.fit(DATA, **fit_options)["lr"])


def after_warm_up(second: Any) -> Any:
    """Return a schedule of 4 steps of warm-up and another schedule."""
    return lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=4), second(o)], [4])


def one_cycle(total: int) -> Any:
    return lambda o: OneCycleLR(o, 0.1, total_steps=total)


def cosine(length: int) -> Any:
    return lambda o: CosineAnnealingLR(o, length)


def polynomial(length: int) -> Any:
    return lambda o: PolynomialLR(o, length)


@pytest.mark.parametrize(
    ("make", "interval", "options"),
    [
        (one_cycle(17), "step", {}),
        (one_cycle(2), "epoch", {}),
        (after_warm_up(one_cycle(13)), "step", {}),
        (one_cycle(8), "step", {"gradient_accumulation_steps": 2}),
        (one_cycle(9), "step", {"max_steps": 10}),
    ],
    ids=["steps", "epochs", "sequence", "accumulation", "max_steps"],
)
def test_schedule_that_would_fail_is_an_error_before_the_first_step(
    make: Any, interval: str, options: dict[str, Any]
) -> None:
    """The message names the argument and the length that it needs."""
    with pytest.raises(InvalidArgumentError, match="total_steps"):
        fit(make, interval, **options)


@pytest.mark.parametrize(
    ("make", "interval", "options", "words"),
    [
        (one_cycle(18), "epoch", {}, "interval"),
        (cosine(18), "epoch", {}, "interval"),
        (cosine(15), "epoch", {}, "interval"),
        (lambda o: LinearLR(o, 0.1, total_iters=18), "epoch", {}, "interval"),
        (lambda o: MultiStepLR(o, [9, 18]), "epoch", {}, "interval"),
        (cosine(18), "epoch", {"gradient_accumulation_steps": 2}, "interval"),
        (cosine(3), "step", {}, "interval"),
        (cosine(18), "step", {"gradient_accumulation_steps": 2}, "T_max=9"),
        (cosine(10), "step", {}, "T_max=18"),
        (cosine(1), "epoch", {}, "T_max=3"),
        (polynomial(10), "step", {}, "total_iters=18"),
        (after_warm_up(polynomial(5)), "step", {}, "trains with 0"),
        (lambda o: ChainedScheduler([cosine(5)(o), ExponentialLR(o, 0.9)]), "step", {}, "T_max"),
    ],
)
def test_schedule_of_another_length_is_named_in_a_warning(
    make: Any, interval: str, options: dict[str, Any], words: str
) -> None:
    """It advances in another unit than its length, or ends before the run."""
    with pytest.warns(UserWarning, match=words):
        fit(make, interval, **options)


@pytest.mark.parametrize(
    ("make", "interval", "options"),
    [
        (one_cycle(18), "step", {}),
        (one_cycle(3), "epoch", {}),
        (after_warm_up(cosine(14)), "step", {}),
        (after_warm_up(one_cycle(14)), "step", {}),
        (cosine(3), "epoch", {}),
        (cosine(40), "epoch", {}),
        (cosine(6), "epoch", {"epochs": 1}),
        (cosine(10), "epoch", {"epochs": 5}),
        (lambda o: LinearLR(o, 0.1, total_iters=5), "step", {}),
        (lambda o: StepLR(o, 1), "epoch", {}),
        (lambda o: StepLR(o, 18), "epoch", {}),
        (lambda o: MultiStepLR(o, [2]), "epoch", {}),
        (lambda o: MultiStepLR(o, []), "epoch", {}),
        (lambda o: LambdaLR(o, lambda step: 0.5), "step", {}),
        (one_cycle(9), "step", {"gradient_accumulation_steps": 2}),
        (one_cycle(10), "step", {"max_steps": 10}),
    ],
)
def test_schedule_of_the_right_length_is_silent(
    make: Any, interval: str, options: dict[str, Any]
) -> None:
    """A schedule may also be longer than one `fit`, which can be continued."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fit(make, interval, **options)) > 0


def test_second_fit_counts_from_the_position_of_the_schedule() -> None:
    """A schedule that was long enough for the first `fit` is too short for two."""
    trainer = quiet_trainer(
        plain_network(), lr_scheduler=one_cycle(20), lr_scheduler_interval="step"
    )
    trainer.fit(DATA, epochs=3)
    with pytest.raises(InvalidArgumentError, match="24"):
        trainer.fit(DATA, epochs=1)
    assert trainer.state.step == 18
    trainer.fit(DATA, max_steps=2)


def test_data_of_unknown_length_is_not_compared() -> None:
    """The number of steps is not known; the number of epochs is."""

    class Stream:
        """Yields batches without a length."""

        def __iter__(self) -> Any:
            return iter([(DATA[0][:4], DATA[1][:4])] * 3)

    trainer = quiet_trainer(
        plain_network(), lr_scheduler=one_cycle(9), lr_scheduler_interval="step"
    )
    trainer.fit(Stream(), epochs=3)
    with pytest.raises(InvalidArgumentError, match="total_steps"):
        quiet_trainer(plain_network(), lr_scheduler=one_cycle(2)).fit(Stream(), epochs=3)
