"""Mixed precision is PyTorch's autocast and gradient scaler, called at the right places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finetunelib.errors import InvalidArgumentError
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    BATCH,
    batches_of,
    plain_network,
    points,
    quiet_trainer,
    same_weights,
    weights_of,
)


def train_bfloat16(model: nn.Module, max_norm: float | None = None) -> None:
    """Train two epochs in bfloat16 with a hand-written loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for inputs, targets in batches_of(points(), epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()


def train_float16(model: nn.Module, max_norm: float | None = None) -> None:
    """Train two epochs in float16 with a scaled loss in a hand-written loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    for epoch in range(2):
        for inputs, targets in batches_of(points(), epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            scaler.step(optimizer)
            scaler.update()


@pytest.mark.parametrize("max_norm", [None, 0.1], ids=["no clipping", "clipping"])
@pytest.mark.parametrize(
    ("precision", "by_hand"), [("bf16-mixed", train_bfloat16), ("fp16-mixed", train_float16)]
)
def test_mixed_precision_is_the_hand_written_loop_bit_for_bit(
    precision: str, by_hand: Any, max_norm: float | None
) -> None:
    """Forward and loss run under autocast, and unscaled gradients are clipped."""
    expected, model, full = plain_network(), plain_network(), plain_network()
    by_hand(expected, max_norm)
    options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": max_norm}
    quiet_trainer(model, precision=precision, **options).fit(points(), epochs=2)
    quiet_trainer(full, **options).fit(points(), epochs=2)
    assert same_weights(model, expected)
    assert not same_weights(model, full)


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
def test_weights_and_gradients_stay_float32(precision: str) -> None:
    """Only the computation in between uses half precision."""
    dtypes = set()

    class Dtypes(Callback):
        """Records the dtypes of weights and gradients."""

        def on_step_end(self, context: TrainContext) -> None:
            for parameter in context.model.parameters():
                assert parameter.grad is not None
                dtypes.update({parameter.dtype, parameter.grad.dtype})

    trainer = quiet_trainer(plain_network(), precision=precision, callbacks=[Dtypes()])
    trainer.fit(points(), epochs=1)
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("fp16-mixed", torch.float16)]
)
def test_predictions_are_computed_in_the_precision_of_training(
    precision: str, dtype: torch.dtype
) -> None:
    """`predict` returns what the model returns under autocast, as float32."""
    model = plain_network()
    inputs, _ = points()
    predicted = quiet_trainer(model, precision=precision, batch_size=22).predict(inputs)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected = model(inputs)
    assert expected.dtype == dtype
    assert predicted.dtype == torch.float32
    assert torch.equal(predicted, expected.float())


def test_evaluation_is_computed_in_the_precision_of_training() -> None:
    """`evaluate` returns the loss of the model under autocast."""
    model = plain_network()
    data = points(BATCH)
    measured = quiet_trainer(model, precision="bf16-mixed").evaluate(data)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.cross_entropy(model(data[0]), data[1])
    assert measured["loss"] == float(expected)


def test_training_in_float16_learns() -> None:
    """The loss falls and stays finite."""
    history = quiet_trainer(plain_network(), lr=0.1, precision="fp16-mixed").fit(
        points(), epochs=10
    )
    assert all(loss < 10.0 for loss in history["train_loss"])
    assert history["train_loss"][-1] < 0.8 * history["train_loss"][0]


def test_update_that_overflows_float16_is_skipped() -> None:
    """Gradients that are infinite after scaling never reach the weights."""
    model = plain_network()
    before = weights_of(model)
    inputs, targets = points(BATCH)
    # With inputs of 1e4, the first scale, 65,536, lifts gradients over the maximum of float16.
    trainer = quiet_trainer(model, precision="fp16-mixed", ignore=["inputs-far-from-unit-scale"])
    trainer.fit((inputs * 1e4, targets), epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


def test_schedule_per_step_gives_no_warning_if_an_update_is_skipped() -> None:
    """The first update in float16 is often skipped, which is not a mistake of the user."""
    inputs, targets = points(BATCH)
    trainer = quiet_trainer(
        plain_network(),
        precision="fp16-mixed",
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        lr_scheduler_interval="step",
        ignore=["inputs-far-from-unit-scale"],
    )
    assert trainer.fit((inputs * 1e4, targets), epochs=1)["step"] == [1]


def test_accumulated_float16_gradients_are_those_of_a_large_batch() -> None:
    """Scaling and averaging can be combined."""
    small, large = plain_network(), plain_network()
    for model, size, steps in ((small, 4, 3), (large, 12, 1)):
        quiet_trainer(
            model,
            lr=0.1,
            precision="fp16-mixed",
            batch_size=size,
            gradient_accumulation_steps=steps,
        ).fit(points(24), epochs=1)
    reference = plain_network()
    for (name, one), other in zip(
        weights_of(small).items(), weights_of(large).values(), strict=True
    ):
        moved = float((other - reference.state_dict()[name]).abs().max())
        # float16 has eleven bits: gradients agree to about 1e-3 of their size.
        assert torch.allclose(one, other, rtol=0, atol=1e-2 * moved)


@pytest.mark.parametrize("precision", ["fp16", "16", "bf16", "", None])
def test_unknown_precision_is_an_error_that_names_it(precision: Any) -> None:
    """A misspelled name is refused, and the valid ones are listed."""
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(plain_network(), precision=precision)
    assert "`precision`" in str(caught.value)
    assert repr(precision) in str(caught.value)
    assert '"bf16-mixed"' in str(caught.value)
