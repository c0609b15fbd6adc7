"""Checkpoints of a model with a frozen base: digests of the base in place of its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.errors import CheckpointError, WeightsMismatchError
from finetunelib.finetuning import fingerprint, freeze, load_weights, unfreeze
from finetunelib.finetuning._digests import digest as digest_of
from finetunelib.finetuning._freezing import known_digests
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    Untouched,
    network,
    points,
    quiet_trainer,
    same_bits,
    same_weights,
    weights_of,
)

DATA = points()
HEAD = {"head.weight", "head.bias"}


class KillAt(Callback):
    """Ends a run in the middle of an epoch, after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == self.step:
            raise RuntimeError("killed")


class UnfreezeAt(Callback):
    """Unfreezes a layer at the start of an epoch, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_start(self, context: TrainContext) -> None:
        if context.state.epoch == self.epoch:
            unfreeze(context.model, "backbone.5")


def adapted() -> nn.Module:
    """Return a network of which only the head is trained."""
    model = network()
    freeze(model, except_="head")
    return model


def values_in(checkpoint: Path) -> set[str]:
    """Return the names of the tensors whose values a checkpoint contains."""
    return set(safetensors.torch.load_file(checkpoint / "model.safetensors"))


def averaging(model: nn.Module, folder: Path, *more: Callback, blocking: bool = True) -> Trainer:
    """Return a Trainer whose callbacks keep averages and the best weights."""
    checkpoint = ModelCheckpoint(
        folder, every_n_steps=1, monitor="val_loss", keep=50, blocking=blocking
    )
    best = EarlyStopping("val_loss", patience=9, restore_best=True)
    return quiet_trainer(
        model,
        lr=0.1,
        optimizer=lambda groups, lr: torch.optim.SGD(network_order(model), lr=lr, momentum=0.9),
        callbacks=[EMA(0.5), best, checkpoint, *more],
    )


def network_order(model: nn.Module) -> list[nn.Parameter]:
    """Return all parameters, so that a layer can be unfrozen later."""
    return list(model.parameters())


@pytest.mark.parametrize("blocking", [True, False])
def test_a_resumed_run_ends_with_the_same_bits_and_never_stores_the_base(
    tmp_path: Path, blocking: bool
) -> None:
    """In the middle of an epoch, with averages, the best weights and its best checkpoint."""
    whole, part, resumed = adapted(), adapted(), adapted()
    averaging(whole, tmp_path / "whole").fit(DATA, DATA, epochs=2)
    folder = tmp_path / "part"
    with pytest.raises(RuntimeError, match="killed"):
        averaging(part, folder, KillAt(8), blocking=blocking).fit(DATA, DATA, epochs=2)
    trainer = averaging(resumed, folder, blocking=blocking)
    history = trainer.fit(DATA, DATA, epochs=2, resume_from=folder)
    assert same_weights(whole, resumed)
    assert history.certificate is not None
    assert set(history.certificate.digests) == set(fingerprint(resumed))
    for checkpoint in folder.glob("epoch-*"):
        assert values_in(checkpoint) == HEAD
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        assert set(state["callbacks"]["EMA"]["averages"]) == HEAD
        assert set(state.get("weights", HEAD)) == HEAD
        assert set(state["callbacks"]["EarlyStopping"]["best_weights"]) <= HEAD


@pytest.mark.parametrize("kill_at", [4, 8])
def test_a_layer_that_is_unfrozen_on_the_way_is_stored_from_then_on(
    tmp_path: Path, kill_at: int
) -> None:
    """Resumed before and after it, the run ends with the same bits."""
    whole, part, resumed = adapted(), adapted(), adapted()
    averaging(whole, tmp_path / "whole", UnfreezeAt(1)).fit(DATA, DATA, epochs=2)
    folder = tmp_path / "part"
    with pytest.raises(RuntimeError, match="killed"):
        averaging(part, folder, UnfreezeAt(1), KillAt(kill_at)).fit(DATA, DATA, epochs=2)
    stored = values_in(max(folder.glob("epoch-*")))
    assert ("backbone.5.weight" in stored) == (kill_at > 7)
    averaging(resumed, folder, UnfreezeAt(1)).fit(DATA, DATA, epochs=2, resume_from=folder)
    assert same_weights(whole, resumed)


def test_another_base_is_refused_with_its_first_tensor(tmp_path: Path) -> None:
    """Before the run changes, in any way of loading it."""
    trainer = quiet_trainer(adapted())
    trainer.fit(DATA, epochs=1)
    path = trainer.save_checkpoint(tmp_path / "a")
    model = adapted()
    with torch.no_grad():
        model.get_buffer("backbone.6.running_var")[0] += 1.0
    other = quiet_trainer(model)
    other.fit(DATA, epochs=1)
    untouched, optimizer = Untouched(model), other.optimizer
    for load in (
        lambda: other.load_checkpoint(path),
        lambda: other.fit(DATA, epochs=3, resume_from=path),
        lambda: load_weights(model, path),
    ):
        with pytest.raises((CheckpointError, WeightsMismatchError), match=r"`backbone\.6\.run"):
            load()
        untouched.check()
    assert other.optimizer is optimizer
    assert len(other.history) == 1


def test_weights_of_a_checkpoint_are_loaded_onto_the_same_base(tmp_path: Path) -> None:
    """`load_weights` needs no argument for it, whether the model is frozen or not."""
    model = adapted()
    trainer = quiet_trainer(model)
    trainer.fit(DATA, epochs=1)
    path = trainer.save_checkpoint(tmp_path / "a")
    for other in (adapted(), network()):
        report = load_weights(other, path)
        assert same_weights(other, model)
        assert set(report.loaded) == HEAD
        assert report.match == 1.0


def trained_before(trainer: Trainer) -> None:
    """Train a layer in a first call of `fit`, then freeze it."""
    unfreeze(trainer.model, "backbone.5")
    trainer.fit(DATA, epochs=1)
    freeze(trainer.model, "backbone.5")


def written_before(trainer: Trainer) -> None:
    """Write to a frozen layer between two calls of `fit`."""
    trainer.fit(DATA, epochs=1)
    nn.init.ones_(trainer.model.get_parameter("backbone.5.weight"))


@pytest.mark.parametrize("before", [trained_before, written_before])
def test_a_tensor_that_could_be_lost_is_stored(
    tmp_path: Path, before: Callable[[Trainer], None]
) -> None:
    """It was trained by an earlier call, or is not what it was at the start."""
    model, other = adapted(), adapted()
    trainer = quiet_trainer(
        model, optimizer=lambda _: torch.optim.SGD(network_order(model), lr=0.1)
    )
    before(trainer)
    trainer.fit(DATA, epochs=1)
    path = trainer.save_checkpoint(tmp_path / "a")
    assert "backbone.5.weight" in values_in(path)
    assert "backbone.1.weight" not in values_in(path)
    load_weights(other, path)
    assert same_weights(other, model)


class Teacher(Callback):
    """Moves a parameter that needs no gradient after each step, past PyTorch's counters."""

    def on_step_end(self, context: TrainContext) -> None:
        context.model.get_parameter("backbone.5.weight").data.mul_(0.9)


@pytest.mark.filterwarnings("ignore:.*frozen tensors changed during training")
def test_a_parameter_that_other_code_moves_is_stored(tmp_path: Path) -> None:
    """As a momentum encoder is moved; a resumed run has the same bits."""

    def run(model: nn.Module, folder: Path, *more: Callback) -> None:
        callbacks = [Teacher(), ModelCheckpoint(folder, every_n_steps=1), *more]
        quiet_trainer(model, callbacks=callbacks, lr=0.1).fit(DATA, epochs=2, resume_from=folder)

    whole, part, resumed = adapted(), adapted(), adapted()
    for model in (whole, part, resumed):
        unfreeze(model)
        model.requires_grad_(False)
        model.get_submodule("head").requires_grad_(True)
    run(whole, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(part, tmp_path / "part", KillAt(8))
    assert "backbone.5.weight" in values_in(max((tmp_path / "part").glob("epoch-*")))
    run(resumed, tmp_path / "part")
    assert same_weights(whole, resumed)


def test_digests_are_computed_once_for_each_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end, however many checkpoints there are and whatever validation measured."""
    model = adapted()
    trainer = averaging(model, tmp_path)
    computed: list[torch.Tensor] = []

    def counted(tensor: torch.Tensor) -> str:
        if not tensor.requires_grad:
            computed.append(tensor)
        return digest_of(tensor)

    monkeypatch.setattr(known_digests, "digest", counted)
    trainer.fit(DATA, DATA, epochs=2)
    assert len(list(tmp_path.glob("epoch-*"))) > 10
    at_the_end = len(computed)
    assert at_the_end == len(fingerprint(model))


def test_a_checkpoint_before_training_leaves_the_base_out(tmp_path: Path) -> None:
    """It is small, and `fit` continues from it."""
    path = quiet_trainer(adapted()).save_checkpoint(tmp_path / "a")
    assert values_in(path) == HEAD
    one, other = adapted(), adapted()
    quiet_trainer(one).fit(DATA, epochs=1)
    quiet_trainer(other).fit(DATA, epochs=1, resume_from=path)
    assert same_weights(one, other)


@pytest.mark.parametrize(
    "places",
    [
        5,
        [5],
        [[["callbacks"], 5]],
        [[[], ["head.weight"]]],
        [[["optimizer"], ["head.weight"]]],
        [[["callbacks", "nobody"], ["backbone.1.weight"]]],
        [[["callbacks", "EMA", "averages"], ["head.weight"]]],
        [[["callbacks", "EMA", "averages"], [["backbone.1.weight"]]]],
        [[["callbacks", ["EMA"]], ["backbone.1.weight"]]],
    ],
)
def test_a_damaged_list_of_copies_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: object
) -> None:
    """Every place is a dict in the state, and every name that of a tensor that is left out."""
    module = "finetunelib.training._checkpointing.content"
    monkeypatch.setattr(f"{module}.without_copies", lambda state, _: {**state, "left_out": places})
    path = quiet_trainer(adapted(), callbacks=[EMA()]).save_checkpoint(tmp_path / "a")
    model = adapted()
    nn.init.ones_(model.get_parameter("head.weight"))
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="left_out"):
        quiet_trainer(model, callbacks=[EMA()]).load_checkpoint(path)
    assert same_bits(weights_of(model), before)


def test_a_new_head_on_a_frozen_backbone_is_all_that_is_stored(tmp_path: Path) -> None:
    """The usual way of fine-tuning, with the best checkpoint loaded afterwards."""
    model = freeze_and_replace_head(network(), num_classes=3)
    best = ModelCheckpoint(tmp_path, monitor="train_loss")
    quiet_trainer(model, callbacks=[best]).fit(DATA, epochs=2)
    assert best.best_path is not None
    assert values_in(best.best_path) == HEAD
    assert set(load_weights(model, best.best_path).loaded) == HEAD
