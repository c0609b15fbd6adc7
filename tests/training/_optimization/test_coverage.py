"""The optimizer contains the parameters of model, loss and task, or the user is told."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.errors import CheckpointError, InvalidArgumentError
from finetunelib.finetuning import freeze, unfreeze
from finetunelib.training import StepOutput, Task
from training.tiny import (
    Untouched,
    batches_of,
    plain_network,
    points,
    quiet_trainer,
    same_weights,
    weights_of,
)


class Scaled(nn.Module):
    """Cross-entropy of scaled logits, with a scale that is learned and one that is not."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        outputs = outputs * self.scale.exp() * self.fixed
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=smoothing)

    def compare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, as a method with another name."""
        return self.forward(outputs, targets)


class WithProjection(Task):
    """Trains its own projection after the model, and compares it with a frozen teacher."""

    def __init__(self) -> None:
        self.projections = [nn.Linear(3, 3)]
        self.bias = nn.Parameter(torch.zeros(3))
        self.teacher = nn.Linear(3, 3).requires_grad_(False)
        self.name = "projection"

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        inputs, targets = batch
        hidden = model(inputs)
        outputs = self.projections[0](hidden) + self.bias
        loss = nn.functional.cross_entropy(outputs, targets)
        loss = loss + (outputs - self.teacher(hidden)).square().mean()
        return StepOutput(loss, outputs, targets, weight=len(targets))


# The Trainer's own optimizer


def test_new_head_between_two_fits_is_an_error_that_names_it() -> None:
    """Nothing changes, and a new Trainer for the same model trains the head."""
    model = plain_network()
    trainer = quiet_trainer(model, lr=0.3)
    trainer.fit(points(8), epochs=1)
    freeze_and_replace_head(model, num_classes=3)
    untouched = Untouched(model)
    with pytest.raises(InvalidArgumentError, match=r"`head\.weight`.*new Trainer"):
        trainer.fit(points(8), epochs=1)
    untouched.check()
    assert (trainer.state.epoch, trainer.state.step) == (1, 2)
    before = weights_of(model.head)
    quiet_trainer(trainer.model, lr=0.3).fit(points(8), epochs=1)
    assert not torch.equal(model.get_parameter("head.weight"), before["weight"])


@pytest.mark.parametrize("change", ["layer", "parameter"])
def test_module_that_was_added_is_an_error(change: str) -> None:
    """A new layer and a new parameter of an old layer are both found."""
    model = plain_network()
    trainer = quiet_trainer(model)
    trainer.fit(points(8), epochs=1)
    if change == "layer":
        model.add_module("extra", nn.Linear(2, 2))
    else:
        model.head.weight = nn.Parameter(torch.zeros(3, 8))
    with pytest.raises(InvalidArgumentError, match=r"extra\.weight|head\.weight"):
        trainer.fit(points(8), epochs=1)


def test_layer_that_was_removed_is_an_error() -> None:
    """The optimizer would keep updating parameters that no longer exist."""
    model = plain_network()
    trainer = quiet_trainer(model)
    trainer.fit(points(8), epochs=1)
    model.head = nn.Identity()
    with pytest.raises(InvalidArgumentError, match="does not have"):
        trainer.fit((points(8)[0], points(8)[1] % 2), epochs=1)


def test_freezing_and_unfreezing_between_fits_is_silent() -> None:
    """The optimizer of a class contains frozen parameters, so it still covers the model."""
    model = plain_network()
    freeze(model.backbone)
    trainer = quiet_trainer(model, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(points(8), epochs=1)
        unfreeze(model.backbone)
        before = weights_of(model.backbone)
        trainer.fit(points(8), epochs=1)
    assert not any(map(torch.equal, before.values(), weights_of(model.backbone).values()))


def test_function_over_the_trainable_part_refuses_what_is_unfrozen_later() -> None:
    """A function that left out the frozen backbone would never train it."""
    model = plain_network()
    freeze(model.backbone)

    def trainable(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in groups[0]["params"] if p.requires_grad], lr=0.1)

    trainer = quiet_trainer(model, optimizer=trainable)
    trainer.fit(points(8), epochs=1)
    unfreeze(model.backbone)
    with pytest.raises(InvalidArgumentError, match=r"`backbone\.1\.weight`"):
        trainer.fit(points(8), epochs=1)


# A ready optimizer


def test_part_that_a_function_or_a_ready_optimizer_leaves_out_is_named_at_each_fit() -> None:
    """It is a warning and not an error, because the user chose the parameters."""
    for make in ("function", "ready"):
        model = plain_network()
        head = torch.optim.SGD(model.head.parameters(), lr=0.1)
        optimizer: Any = head if make == "ready" else lambda groups, head=head: head
        trainer = quiet_trainer(model, optimizer=optimizer)
        for _ in range(2):
            with pytest.warns(UserWarning, match="2 trainable parameters.*`backbone.1.weight`"):
                trainer.fit(points(8), epochs=1)
        freeze(model.backbone)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.fit(points(8), epochs=1)


def test_new_head_with_a_ready_optimizer_is_an_error() -> None:
    """The optimizer has the parameters of the old head."""
    model = plain_network()
    trainer = quiet_trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.3))
    trainer.fit(points(8), epochs=1)
    freeze_and_replace_head(model, num_classes=3)
    with pytest.raises(InvalidArgumentError, match="optimizer"):
        trainer.fit(points(8), epochs=1)


# The loss and the task


@pytest.mark.parametrize("kind", ["module", "partial", "method", "ready"])
def test_parameter_of_a_loss_is_trained_as_in_a_hand_written_loop(kind: str) -> None:
    """Its optimizer follows the model's parameters, whichever form the loss has."""
    model, expected = plain_network(), plain_network()
    loss, by_hand = Scaled(), Scaled()
    form: Any = {"partial": partial(loss, smoothing=0.0), "method": loss.compare}.get(kind, loss)
    parameters = [*model.parameters(), loss.scale]
    optimizer: Any = torch.optim.SGD(parameters, lr=0.1) if kind == "ready" else torch.optim.SGD
    trainer = quiet_trainer(
        model, loss_fn=form, optimizer=optimizer, lr=None if kind == "ready" else 0.1, metrics={}
    )
    trainer.fit(points(), epochs=1)
    sgd = torch.optim.SGD([*expected.parameters(), by_hand.scale], lr=0.1)
    for inputs, targets in batches_of(points()):
        sgd.zero_grad()
        by_hand(expected(inputs), targets).backward()
        sgd.step()
    assert same_weights(model, expected)
    assert torch.equal(loss.scale, by_hand.scale)
    assert loss.scale.item() != 0.5
    assert loss.scale.grad is None
    assert loss.fixed.item() == 1.0


def test_modules_and_parameters_of_a_task_are_trained_and_its_frozen_teacher_is_not() -> None:
    """Modules in lists and parameters of the task itself are found."""
    torch.manual_seed(0)
    task = WithProjection()
    projection, teacher = weights_of(task.projections[0]), weights_of(task.teacher)
    trainer = quiet_trainer(plain_network(), task=task, lr=0.1)
    trainer.fit(points(), epochs=1)
    assert not torch.equal(task.projections[0].weight, projection["weight"])
    assert task.bias.abs().sum() > 0
    assert torch.equal(task.teacher.weight, teacher["weight"])
    assert trainer.optimizer is not None
    assert len(trainer.optimizer.param_groups[0]["params"]) == 4 + 3


def test_optimizer_that_leaves_out_the_loss_is_named() -> None:
    """A ready optimizer over the model alone does not train the scale."""
    model = plain_network()
    ready = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = quiet_trainer(model, loss_fn=Scaled(), optimizer=ready)
    with pytest.warns(UserWarning, match=r"1 trainable.*`loss\.scale`"):
        trainer.fit(points(8), epochs=1)


def test_frozen_model_and_trainable_loss_can_be_trained() -> None:
    """The parameters of the loss are trained."""
    model, loss = plain_network(), Scaled()
    model.requires_grad_(False)
    quiet_trainer(model, loss_fn=loss, lr=0.1).fit(points(8), epochs=1)
    assert loss.scale.item() != 0.5


# Checkpoints


def resume(folder: Path, epochs: int, *, scale: float = 0.5, **options: Any) -> Scaled:
    """Train with a loss whose scale is stored in the folder's checkpoints."""
    loss = Scaled(scale)
    trainer = quiet_trainer(
        plain_network(), loss_fn=loss, lr=0.1, callbacks=[ModelCheckpoint(folder)], **options
    )
    trainer.fit(points(), epochs=epochs, resume_from=folder)
    return loss


def test_parameters_of_a_loss_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    """The scale of the script is replaced by that of the checkpoint."""
    resume(tmp_path / "stopped", 1)
    resumed = resume(tmp_path / "stopped", 3, scale=7.0)
    assert torch.equal(resumed.scale, resume(tmp_path / "whole", 3).scale)


def test_parameters_of_a_task_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    """Parameters of a module in a list and of the task itself are restored."""

    def train(folder: str, epochs: int, seed: int) -> WithProjection:
        torch.manual_seed(0)
        task = WithProjection()
        torch.manual_seed(seed)
        nn.init.normal_(task.projections[0].weight) if seed else None
        trainer = quiet_trainer(
            plain_network(), task=task, callbacks=[ModelCheckpoint(tmp_path / folder)]
        )
        trainer.fit(points(), epochs=epochs, resume_from=tmp_path / folder)
        return task

    train("stopped", 1, 0)
    resumed, whole = train("stopped", 2, 5), train("whole", 2, 0)
    assert torch.equal(resumed.projections[0].weight, whole.projections[0].weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_checkpoint_of_another_loss_is_refused_before_anything_changes(tmp_path: Path) -> None:
    """A loss without the saved parameter, and one with another shape, are refused."""

    class Wide(Scaled):
        """Has a scale for each class."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(3))

    resume(tmp_path, 1)
    for loss in (nn.CrossEntropyLoss(), Wide()):
        model = plain_network()
        untouched = Untouched(model)
        trainer = quiet_trainer(model, loss_fn=loss, callbacks=[ModelCheckpoint(tmp_path)])
        with pytest.raises(CheckpointError):
            trainer.fit(points(), epochs=2, resume_from=tmp_path)
        untouched.check()
        assert trainer.state.step == 0


def test_model_of_a_trainer_cannot_be_replaced() -> None:
    """The optimizer and the state of `fit` belong to the first model."""
    trainer = quiet_trainer(plain_network())
    with pytest.raises(AttributeError, match="model"):
        trainer.model = plain_network()  # type: ignore[misc]
    assert isinstance(trainer, Trainer)
