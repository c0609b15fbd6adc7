"""Checkpoints that a thread writes while training goes on."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib import Trainer
from finetunelib.callbacks import EMA, ModelCheckpoint
from finetunelib.errors import PathNotWritableError
from finetunelib.training import Callback, History, TrainContext
from finetunelib.training._checkpointing.content import Content, Staging
from finetunelib.training._checkpointing.folder import checkpoints_in, open_checkpoint
from training._checkpointing.checkpoint_files import DATA, bits, trainer


class Steps(Callback):
    """Calls functions after steps, by their number."""

    def __init__(self, **actions: Callable[[TrainContext], object]) -> None:
        self.actions = actions
        self.steps = 0

    def on_step_end(self, context: TrainContext) -> None:
        self.steps = context.state.step
        action = self.actions.get(f"step_{context.state.step}")
        if action is not None:
            action(context)


class Gate:
    """Lets `torch.save` continue when it is opened, in checkpoints of one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.opened = threading.Event()
        real, name = torch.save, f"step-{step:08d}"

        def save(state: object, file: Path) -> None:
            assert name not in str(file) or self.opened.wait(20)
            real(state, file)

        monkeypatch.setattr(torch, "save", save)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let `torch.save` fail in checkpoints of one step."""
    real, name = torch.save, f"step-{step:08d}"

    def save(state: object, file: Path) -> None:
        if name in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", save)


def in_the_background(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, blocking=False, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_background_checkpoints_are_those_of_a_blocking_run(tmp_path: Path) -> None:
    """The same checkpoints are kept, the best one too, and lead to the same end."""
    for blocking in (True, False):
        folder = tmp_path / str(blocking)
        checkpoints = ModelCheckpoint(folder, monitor="train_loss", blocking=blocking)
        trained = trainer(callbacks=[EMA(0.9), checkpoints], optimizer=torch.optim.AdamW)
        trained.fit(DATA, epochs=4)
        assert checkpoints.best_path == folder / "epoch-0004-step-00000016"
    assert names(tmp_path / "True") == names(tmp_path / "False")
    for path in checkpoints_in(tmp_path / "False"):
        expected = tmp_path / "True" / path.name / "model.safetensors"
        assert (path / "model.safetensors").read_bytes() == expected.read_bytes()
    ends = []
    for folder in (tmp_path / "True", tmp_path / "False"):
        checkpoints = ModelCheckpoint(folder, monitor="train_loss")
        resumed = trainer(callbacks=[EMA(0.9), checkpoints], optimizer=torch.optim.AdamW)
        resumed.fit(DATA, epochs=5, resume_from=folder)
        ends.append(bits(resumed))
    assert ends[0] == ends[1]


def test_background_checkpoint_has_the_state_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while it is written, and does not change it."""
    gate, kept = Gate(monkeypatch, 2), {}
    steps = Steps(
        step_2=lambda c: kept.update({n: t.clone() for n, t in c.model.state_dict().items()}),
        step_3=lambda _: gate.opened.set(),
    )
    saving = in_the_background(tmp_path, every_n_steps=2)
    trained = trainer(callbacks=[steps, saving], optimizer=torch.optim.AdamW)
    trained.fit(DATA, epochs=1)
    checkpoint = open_checkpoint(tmp_path / "epoch-0000-step-00000002")
    other = trainer(callbacks=[in_the_background(tmp_path / "other")], optimizer=torch.optim.AdamW)
    other._prepared_run().load(checkpoint)
    assert all(kept[name].equal(tensor) for name, tensor in other.model.state_dict().items())
    assert checkpoint.state["optimizer"]["state"][0]["step"] == 2.0


def test_training_does_not_wait_and_the_older_checkpoint_stays_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are taken while a checkpoint is written; older ones are deleted after it is whole."""
    gate, seen = Gate(monkeypatch, 6), []
    steps = Steps(
        step_7=lambda context: seen.append((context.last_checkpoint, names(tmp_path))),
        step_8=lambda _: gate.opened.set(),
    )
    trainer(callbacks=[steps, in_the_background(tmp_path, every_n_steps=2)]).fit(DATA, epochs=2)
    ((last, found),) = seen
    assert last == tmp_path / "epoch-0000-step-00000004"
    whole = [name for name in found if not name.startswith(".")]
    assert whole == ["epoch-0000-step-00000002", "epoch-0000-step-00000004"]
    assert names(tmp_path) == ["epoch-0001-step-00000006", "epoch-0001-step-00000008"]


@pytest.mark.parametrize("last", [True, False], ids=["after the last step", "at a later step"])
def test_error_of_a_background_checkpoint_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """It is raised at a later step or at the end of `fit`, and the older checkpoint is kept."""
    at = 4 if last else 2
    fill_the_disk(monkeypatch, at)
    steps = Steps()
    saving = in_the_background(tmp_path, every_n_steps=at // 2)
    trained = trainer(callbacks=[steps, saving])
    with pytest.raises(PathNotWritableError, match="disk is full"):
        trained.fit(DATA, epochs=1)
    assert steps.steps <= 4
    assert names(tmp_path) == [f"epoch-0000-step-0000000{at // 2}"]


def test_error_of_a_background_checkpoint_can_be_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, the next checkpoint is written, and the lost one is not the best."""
    fill_the_disk(monkeypatch, 8)
    saving = in_the_background(tmp_path, on_error="warn", monitor="train_loss")
    with pytest.warns(UserWarning, match="disk is full"):
        trainer(callbacks=[saving]).fit(DATA, epochs=3)
    assert names(tmp_path) == ["epoch-0001-step-00000004", "epoch-0003-step-00000012"]
    assert saving.best_path == tmp_path / "epoch-0003-step-00000012"


def test_error_of_training_waits_for_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with its own error, and the checkpoint is whole."""
    gate = Gate(monkeypatch, 1)

    def fail(context: TrainContext) -> None:
        threading.Timer(0.1, gate.opened.set).start()
        raise KeyError("step")

    steps = Steps(step_2=fail)
    saving = in_the_background(tmp_path, every_n_steps=1)
    with pytest.raises(KeyError):
        trainer(callbacks=[saving, steps]).fit(DATA, epochs=1)
    assert names(tmp_path) == ["epoch-0000-step-00000001"]


def test_copies_use_the_same_memory_again() -> None:
    """Values, shapes and types are kept, and a second copy needs no new memory."""
    layer = nn.Linear(3, 2)
    shared = torch.arange(4.0)
    state = {
        "a": [shared, (1, None), {"b": shared}],
        "strided": torch.zeros(4, 6).t(),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "sparse": torch.eye(2).to_sparse(),
    }
    content = Content.of(layer, state, History([{"epoch": 1}]), {"epoch": 1})
    staging = Staging()
    first = staging.copy(content)
    addresses = {name: tensor.data_ptr() for name, tensor in first.weights.items()}
    assert first.weights["weight"].equal(layer.weight)
    assert first.weights["weight"].data_ptr() != layer.weight.data_ptr()
    assert first.state["a"][0] is first.state["a"][2]["b"]
    assert first.state["a"][0] is not shared
    assert first.state["strided"].stride() == state["strided"].stride()  # type: ignore[attr-defined]
    assert first.state["half"].dtype is torch.bfloat16
    assert first.state["sparse"].coalesce().values().equal(torch.ones(2))
    with torch.no_grad():
        layer.weight.zero_()
    content.history.append({"epoch": 2})
    assert first.weights["weight"].abs().sum() > 0
    assert len(first.history) == 1
    second = staging.copy(Content.of(layer, state, History(), {}))
    assert {name: tensor.data_ptr() for name, tensor in second.weights.items()} == addresses
    assert second.weights["weight"].abs().sum() == 0


def test_fit_in_a_background_run_returns_when_all_is_written(tmp_path: Path) -> None:
    """No thread is left, and the folder can be used by the next run."""
    for epochs in (1, 2):
        resumed: Trainer = trainer(callbacks=[in_the_background(tmp_path)])
        resumed.fit(DATA, epochs=epochs, resume_from=tmp_path)
        assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]
    assert len(checkpoints_in(tmp_path)) == 2
