"""A loss that is not finite stops a run before its weights are lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.callbacks import EarlyStopping, ModelCheckpoint
from finetunelib.errors import FinetuneLibError, NonFiniteError
from finetunelib.training import Callback, StepOutput, Task, TrainContext
from finetunelib.training._optimization.guard import Guard
from finetunelib.training._optimization.precision import FullPrecision
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.supervised import SupervisedTask
from training.tiny import (
    CLASSES,
    WIDTH,
    network,
    plain_network,
    points,
    quiet_trainer,
    ready_batches,
    same_bits,
    same_weights,
    weights_of,
)

GOOD = ready_batches(points())


def spoiled(number: int, value: float = math.nan) -> list[tuple[Tensor, Tensor]]:
    """Return batches of which one, counted from 1, has a bad value in its second sample."""
    batches = [(inputs.clone(), targets) for inputs, targets in GOOD]
    batches[number - 1][0][1, 2] = value
    return batches


def stopped(trainer: Any, batches: Any, **options: Any) -> NonFiniteError:
    """Return the error that ends a run."""
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(batches, **({"epochs": 3} | options))
    return caught.value


def state_of(optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state by parameter and name."""
    assert optimizer is not None
    return {
        f"{index}.{name}": value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


# The state after the error


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
def test_run_stops_in_the_state_of_the_last_finite_step(value: float) -> None:
    """Weights, BatchNorm statistics and momentum are those of a run of two steps, bit for bit."""
    trainer, expected = quiet_trainer(network()), quiet_trainer(network())
    error = stopped(trainer, spoiled(3, value))
    expected.fit(GOOD, max_steps=2)
    assert same_weights(trainer.model, expected.model)
    assert same_bits(state_of(trainer.optimizer), state_of(expected.optimizer))
    assert (trainer.state.epoch, trainer.state.step, trainer.state.batch) == (0, 2, 0)
    assert len(trainer.history) == 0
    assert (error.epoch, error.steps) == (1, (3, 3))
    assert "epoch 1, step 3" in str(error)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_steps_are_counted_over_all_epochs() -> None:
    """The error contains the total number of steps, and finished epochs keep their rows."""
    batches = list(GOOD)

    class Spoil(Callback):
        """Puts a bad batch into the data of the second epoch."""

        def on_epoch_end(self, context: TrainContext) -> None:
            batches[1] = spoiled(2)[1]

    trainer = quiet_trainer(plain_network(), callbacks=[Spoil()])
    error = stopped(trainer, batches)
    assert (error.epoch, error.steps) == (2, (8, 8))
    assert trainer.history["step"] == [6]


def test_micro_batches_before_the_bad_one_are_undone_too() -> None:
    """The weights are not updated, and BatchNorm is restored to its state before the step."""
    trainer = quiet_trainer(network(), gradient_accumulation_steps=2)
    expected = quiet_trainer(network(), gradient_accumulation_steps=2)
    error = stopped(trainer, spoiled(4))
    expected.fit(GOOD, max_steps=1)
    assert error.steps == (2, 2)
    assert same_weights(trainer.model, expected.model)


def test_training_can_continue_after_the_error() -> None:
    """A second `fit` gives bitwise the same result as a run without the bad batch."""
    trainer, expected = quiet_trainer(plain_network()), quiet_trainer(plain_network())
    stopped(trainer, spoiled(1))
    trainer.fit(GOOD, epochs=1)
    expected.fit(GOOD, epochs=1)
    assert same_weights(trainer.model, expected.model)


class Remembers(nn.Module):
    """Replaces a buffer by another tensor in each forward, and counts rows in a second one."""

    hidden: Tensor
    rows: Tensor
    last: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("hidden", torch.zeros(CLASSES))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", None)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs) + self.hidden
        if self.training:  # The check before training is in eval mode.
            self.hidden = outputs.detach().mean(0)
            self.last = outputs.detach()
            self.rows += len(inputs)
        return outputs


def test_buffers_that_a_forward_replaces_are_restored() -> None:
    """This includes buffers that are assigned, were `None`, or are changed in place."""
    models = []
    for batches, steps in ((spoiled(3), None), (GOOD, 2)):
        torch.manual_seed(0)
        trainer = quiet_trainer(Remembers())
        if steps is None:
            stopped(trainer, batches)
        else:
            trainer.fit(batches, max_steps=steps)
        models.append(weights_of(trainer.model))
    assert same_bits(*models)
    torch.manual_seed(0)
    first = quiet_trainer(Remembers())
    stopped(first, spoiled(1))
    assert first.model.last is None


# Where it happened


def test_bad_value_of_a_batch_is_named_with_its_sample() -> None:
    """The message contains the value, the sample, and the first module that receives it."""
    error = stopped(quiet_trainer(plain_network()), spoiled(3))
    assert error.module == "backbone.0"
    for word in ("nan", "sample 1", "backbone.0", "Remove"):
        assert word in str(error)


class Overflows(nn.Module):
    """Returns an infinite value after a number of calls."""

    left: Tensor

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.register_buffer("left", torch.tensor(calls), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:  # The check before training is in eval mode.
            self.left -= 1
        return inputs if self.left >= 0 else inputs / 0.0


def test_first_module_whose_output_is_not_finite_is_named() -> None:
    """It is found although dropout draws other numbers when the step is repeated."""
    model = nn.Sequential(
        nn.Linear(WIDTH, 8), nn.Dropout(0.3), Overflows(2), nn.Sequential(nn.Linear(8, CLASSES))
    )
    hooks = [len(module._forward_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    error = stopped(quiet_trainer(model), GOOD)
    assert error.module == "2"
    assert error.steps == (3, 3)
    assert "Overflows" in str(error)
    assert model.get_buffer("2.left").item() == 0  # as after two calls
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)


def test_loss_that_is_not_finite_for_finite_outputs_is_named() -> None:
    """If all outputs are finite, the message names the loss."""

    def log_of_zero(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * 0).mean().log()

    error = stopped(quiet_trainer(plain_network(), loss_fn=log_of_zero), GOOD)
    assert error.module is None
    assert "log of 0" in str(error)


def test_weights_that_are_not_finite_are_not_reported_as_intact() -> None:
    """An update with a finite loss and infinite gradients is detected one step later."""

    class Root(nn.Module):
        """Has a finite value at 0 and an infinite slope."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 1, bias=False)
            nn.init.zeros_(self.head.weight)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(inputs)
            return (outputs**2).sqrt()

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    error = stopped(quiet_trainer(Root(), loss_fn=distance), GOOD)
    assert error.steps == (2, 2)
    assert "`head.weight` was not finite" in str(error)
    assert "are those after" not in str(error)
    model = Root()
    error = stopped(quiet_trainer(model, loss_fn=distance, max_grad_norm=1.0), GOOD)
    assert error.steps == (1, 1)
    assert "norm" in str(error)
    assert torch.equal(model.head.weight, torch.zeros(1, WIDTH))


def test_custom_task_is_repeated_once_to_find_the_module() -> None:
    """Its `step` is called once more for the bad batch; exceptions of this call are ignored."""

    class Counts(Task):
        """Fails when a batch is repeated."""

        def __init__(self) -> None:
            self.calls = 0

        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            self.calls += 1
            inputs, targets = batch
            outputs = model(inputs)
            if self.calls > 3:
                raise RuntimeError("again")
            loss = nn.functional.cross_entropy(outputs, targets)
            return StepOutput(loss, outputs, targets, weight=len(targets))

    task = Counts()
    error = stopped(quiet_trainer(plain_network(), task=task), spoiled(3))
    assert task.calls == 4
    assert error.module == "backbone.0"


# Values that do not stop a run


def test_mean_over_nothing_is_not_an_error() -> None:
    """The loss of a micro-batch whose targets are all ignored is nan with a weight of 0."""
    inputs, targets = points(8)
    targets = targets.clone()
    targets[:4] = -100
    trainer = quiet_trainer(plain_network(), gradient_accumulation_steps=2)
    trainer.fit(ready_batches((inputs, targets)), epochs=1)
    assert trainer.state.step == 1
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def test_validation_loss_that_is_not_finite_does_not_stop_training() -> None:
    """It is recorded in the history, and it is never the best value."""
    stopping = EarlyStopping("val_loss", patience=9)
    trainer = quiet_trainer(plain_network(), callbacks=[stopping])
    history = trainer.fit(GOOD, spoiled(1), epochs=2)
    assert all(map(math.isnan, history["val_loss"]))
    assert stopping.best_epoch == 0


def test_error_has_both_base_classes() -> None:
    """It can be caught as `FinetuneLibError` or `FloatingPointError`."""
    assert issubclass(NonFiniteError, FinetuneLibError)
    assert issubclass(NonFiniteError, FloatingPointError)


# On an accelerator


class Elsewhere(Tensor):
    """A tensor that says that it is not on the CPU."""

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False


def output_of(loss: float, weight: Tensor | float = 1.0) -> StepOutput:
    """Return the output of a step on an accelerator."""
    return StepOutput(torch.tensor(loss).as_subclass(Elsewhere), None, None, weight)


def guard_elsewhere(state: TrainState) -> Guard:
    """Return the guard of a run on an accelerator."""
    trained = TrainedModules(build_mlp(2, [], 2), SupervisedTask(None))
    return Guard(trained, FullPrecision(), state, torch.device("cuda"))


def test_loss_on_an_accelerator_is_noticed_at_the_next_read() -> None:
    """The error contains the range of steps, and losses without weight do not count."""
    state = TrainState(epoch=1)
    guard = guard_elsewhere(state)
    guard.read()
    for loss, weight in ((1.0, 1.0), (math.nan, torch.tensor(0)), (math.inf, 2.0), (1.0, 1.0)):
        guard.check(output_of(loss, weight), None)
        state.step += 1
    with pytest.raises(NonFiniteError, match=r"epoch 2, step 3.*steps 3 to 4") as caught:
        guard.read()
    assert caught.value.steps == (3, 4)
    guard.read()  # What was read once is not read again.


def test_losses_on_an_accelerator_are_read_before_they_take_much_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The losses of a long epoch are read in several parts."""
    state = TrainState()
    guard = guard_elsewhere(state)
    monkeypatch.setattr(Guard, "_CHUNK", 3)
    for loss in (1.0, math.nan):
        guard.check(output_of(loss), None)
        state.step += 1
    with pytest.raises(NonFiniteError, match="step 2"):
        guard.check(output_of(1.0), None)


def test_no_checkpoint_is_written_if_a_loss_was_not_finite(tmp_path: Path) -> None:
    """The losses are read before a checkpoint replaces older ones."""

    class Task3(SupervisedTask):
        """Pretends that its loss is on an accelerator, and loses it in the third step."""

        steps = 0

        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            output = super().step(model, batch)
            self.steps += 1
            if self.steps == 3:
                output.loss = output.loss * math.nan
            output.loss = output.loss.as_subclass(Elsewhere)
            return output

    class Written(Callback):
        """Stores the steps of the checkpoints."""

        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_checkpoint(self, context: TrainContext) -> None:
            self.steps.append(context.state.step)

    written = Written()
    checkpoint = ModelCheckpoint(tmp_path, every_n_steps=2)
    trainer = quiet_trainer(
        plain_network(), task=Task3(None), callbacks=[checkpoint, written], metrics={}
    )
    error = stopped(trainer, GOOD)
    assert error.steps == (3, 4)
    assert written.steps == [2]
