"""Freezing is part of a run: a checkpoint contains it, and resuming restores it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from finetunelib import Trainer, build_mlp
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.errors import CheckpointError
from finetunelib.finetuning import freeze, is_frozen, unfreeze
from finetunelib.finetuning._freezing.frozen_state import FrozenState
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    CLASSES,
    WIDTH,
    network,
    points,
    quiet_trainer,
    same_bits,
    same_weights,
    weights_of,
)

DATA = points()


class KillAt(Callback):
    """Ends a run in the middle of an epoch, after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == self.step:
            raise RuntimeError("killed")


def frozen_network() -> nn.Module:
    """Return a network whose first layer and BatchNorm are frozen."""
    model = network()
    freeze(model, ["backbone.1", "backbone.2"])
    return model


def other_part() -> nn.Module:
    """Return a network with another layer frozen."""
    model = network()
    freeze(model, "backbone.5")
    return model


def trainer_for(model: nn.Module, folder: Path, kill_at: int = 0) -> Trainer:
    """Return a Trainer with checkpoints after each step, which may be killed."""
    callbacks = [ModelCheckpoint(folder, every_n_steps=1), KillAt(kill_at)]
    return quiet_trainer(model, lr=0.1, callbacks=callbacks)


@pytest.mark.parametrize("steps", [3, 6])
@pytest.mark.parametrize("model", [network, other_part], ids=["forgot", "other part"])
def test_a_script_that_freezes_something_else_ends_with_the_same_bits(
    tmp_path: Path, steps: int, model: Callable[[], nn.Module]
) -> None:
    """Resumed in an epoch and at its end, with no part frozen or another one."""
    whole, part, resumed = frozen_network(), frozen_network(), model()
    quiet_trainer(whole, lr=0.1).fit(DATA, epochs=3)
    with pytest.raises(RuntimeError, match="killed"):
        trainer_for(part, tmp_path, steps).fit(DATA, epochs=3)
    history = trainer_for(resumed, tmp_path).fit(DATA, epochs=3, resume_from=tmp_path)
    assert same_weights(whole, resumed)
    assert is_frozen(resumed, "backbone.1")
    assert history.certificate is not None


def test_a_part_that_was_unfrozen_later_is_trained(tmp_path: Path) -> None:
    """A script that freezes at its top resumes the phase in which everything was trained."""

    class Unfreeze(Callback):
        def on_epoch_start(self, context: TrainContext) -> None:
            if context.state.epoch == 1:
                unfreeze(context.model)

    def run(model: nn.Module, epochs: int, folder: Path) -> None:
        callbacks = [Unfreeze(), ModelCheckpoint(folder)]
        quiet_trainer(model, lr=0.1, callbacks=callbacks).fit(
            DATA, epochs=epochs, resume_from=folder
        )

    whole, part, resumed = frozen_network(), frozen_network(), frozen_network()
    run(whole, 4, tmp_path / "whole")
    run(part, 2, tmp_path / "part")
    run(resumed, 4, tmp_path / "part")
    assert same_weights(whole, resumed)
    assert not is_frozen(resumed, "backbone.1")


@pytest.mark.parametrize("shared_trainer", [True, False])
@pytest.mark.parametrize("kill_at", [4, 12, 13, 17])
def test_a_script_of_two_phases_survives_a_kill_in_either(
    tmp_path: Path, kill_at: int, shared_trainer: bool
) -> None:
    """Frozen for two epochs, then unfrozen for two: the same bits after a restart."""

    def script(folder: Path, kill_at: int = 0) -> nn.Module:
        model = frozen_network()
        trainer = trainer_for(model, folder, kill_at)
        trainer.fit(DATA, epochs=2, resume_from=folder)
        unfreeze(model)
        if not shared_trainer:
            trainer = trainer_for(model, folder, kill_at)
        trainer.fit(DATA, epochs=4, resume_from=folder)
        return model

    whole = script(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        script(tmp_path / "part", kill_at)
    assert same_weights(whole, script(tmp_path / "part"))


def test_phases_in_separate_folders_survive_a_kill_in_either(tmp_path: Path) -> None:
    """Each phase has its own Trainer and folder, as the documentation shows."""

    def script(folder: Path, kill_at: int = 0) -> nn.Module:
        model = frozen_network()
        for phase in ("frozen", "unfrozen"):
            if phase == "unfrozen":
                unfreeze(model)
            trainer = trainer_for(model, folder / phase, kill_at if phase == "unfrozen" else 0)
            trainer.fit(DATA, epochs=2, resume_from=folder / phase)
        return model

    whole = script(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        script(tmp_path / "part", 4)
    assert same_weights(whole, script(tmp_path / "part"))


def test_one_line_reports_what_is_frozen_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading a checkpoint into a model that is frozen differently is reported once."""
    trainer = quiet_trainer(frozen_network())
    path = trainer.save_checkpoint(tmp_path / "saved")
    capsys.readouterr()
    quiet_trainer(network(), progress=True).load_checkpoint(path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "backbone.1.weight" in lines[0]
    quiet_trainer(frozen_network(), progress=True).load_checkpoint(path)
    assert capsys.readouterr().err == ""


def test_a_damaged_list_of_frozen_parts_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that the model does not have is refused before weights or freezing change."""
    with monkeypatch.context() as patch:
        wrong = {"held": ["nowhere"], "untrainable": [], "fixed": []}
        patch.setattr(FrozenState, "to_dict", lambda _: wrong)
        saved = quiet_trainer(frozen_network()).save_checkpoint(tmp_path / "saved")
    model = network()
    nn.init.ones_(model.get_parameter("head.weight"))
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="nowhere"):
        quiet_trainer(model).load_checkpoint(saved)
    assert same_bits(weights_of(model), before)
    assert not is_frozen(model, "backbone.1")


def test_weights_that_do_not_fit_leave_the_freezing_unchanged(tmp_path: Path) -> None:
    """A checkpoint of a wider model, with the same frozen names, is refused."""
    wide = build_mlp(WIDTH, [9], CLASSES, seed=0)
    freeze(wide, "backbone")
    saved = quiet_trainer(wide).save_checkpoint(tmp_path / "saved")
    model = build_mlp(WIDTH, [8], CLASSES, seed=0)
    with pytest.raises(CheckpointError):
        quiet_trainer(model).load_checkpoint(saved)
    assert not is_frozen(model, "backbone")
    assert all(parameter.requires_grad for parameter in model.parameters())
