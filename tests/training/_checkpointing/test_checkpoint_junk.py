"""A checkpoint with correct digests and invalid values is refused before anything is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from finetunelib import Trainer
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.errors import CheckpointError
from finetunelib.finetuning import freeze, is_frozen
from finetunelib.training._checkpointing.contents import Contents
from finetunelib.training._checkpointing.manifest import HISTORY, MANIFEST, STATE, WEIGHTS
from finetunelib.training._checkpointing.optimizer_state import check_optimizer
from training._checkpointing.checkpoint_files import DATA, forge, trainer
from training._loop.stopping import SaveAt

#: A value that is invalid everywhere in a state.
JUNK: Any = [1, "x"]


def watched(folder: Path, *more: Any) -> Trainer:
    """Return a Trainer in which every part of a checkpoint has a state."""
    callbacks = [
        EMA(0.5),
        EarlyStopping("train_loss", restore_best=True),
        ModelCheckpoint(folder / "run", monitor="train_loss"),
        *more,
    ]
    schedule = partial(StepLR, step_size=2)
    return trainer(callbacks=callbacks, optimizer=torch.optim.AdamW, lr_scheduler=schedule)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint between two epochs and one inside an epoch."""
    folder = tmp_path_factory.mktemp("junk")
    watched(folder, SaveAt(4, folder / "between"), SaveAt(6, folder / "inside")).fit(DATA, epochs=2)
    trained = watched(folder / "other")
    trained.fit(DATA, epochs=1)
    shutil.rmtree(folder / "between")
    trained.save_checkpoint(folder / "between")
    return folder


def everything(there: Trainer) -> str:
    """Return what loading a checkpoint changes, as text."""
    assert there.optimizer is not None
    states = [callback.state_dict() for callback in there._options.callbacks]
    return repr((there.model.state_dict(), there.optimizer.state_dict(), states, there.state))


def assert_refused(there: Trainer, path: Path, named: str) -> None:
    """Check that loading raises an error that names a part, and changes nothing."""
    there._prepared_run()
    before = everything(there)
    for action in (
        lambda: there.load_checkpoint(path),
        lambda: there.fit(DATA, epochs=3, resume_from=path),
    ):
        with pytest.raises(CheckpointError) as caught:
            action()
        assert named in str(caught.value), (named, str(caught.value))
        assert everything(there) == before, named


def changed(path: Path, change: Callable[[dict[str, Any]], object], copy: Path) -> Path:
    """Return a copy of a checkpoint with another state and correct digests."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy)
    state = torch.load(copy / STATE, weights_only=True)
    change(state)
    torch.save(state, copy / STATE)
    forge(copy)
    return copy


#: The positions of invalid values, and what the error names. The first part is the checkpoint.
PLACES: list[tuple[str, tuple[Any, ...], Any]] = [
    *(
        ("between", (name,), JUNK)
        for name in ("optimizer", "schedule", "precision", "callbacks", "buffers", "frozen")
    ),
    ("between", ("inside",), JUNK),
    ("between", ("freezing",), JUNK),
    ("between", ("freezing", "held"), [3]),
    ("between", ("frozen", "first"), JUNK),
    ("between", ("frozen", "last"), {"weight": "abc"}),
    ("between", ("buffers", "model.x"), "no tensor"),
    ("between", ("optimizer", "state"), JUNK),
    ("between", ("optimizer", "state", 7), {}),
    ("between", ("optimizer", "state", 0), JUNK),
    ("between", ("optimizer", "state", 0), {"step": torch.tensor(1.0)}),
    ("between", ("optimizer", "state", 0, "exp_avg"), torch.zeros(7)),
    ("between", ("optimizer", "state", 0, "exp_avg_sq"), None),
    ("between", ("optimizer", "state", 1, "exp_avg"), torch.zeros(3, dtype=torch.int64)),
    ("between", ("optimizer", "state", 1, "step"), torch.tensor(-2.0)),
    ("between", ("optimizer", "state", 1, "step"), float("nan")),
    ("between", ("optimizer", "param_groups"), {}),
    ("between", ("optimizer", "param_groups", 0), 5),
    ("between", ("optimizer", "param_groups", 0, "params"), [0, 0]),
    ("between", ("optimizer", "param_groups", 0, "lr"), "0.1"),
    ("between", ("optimizer", "param_groups", 0, "lr"), float("inf")),
    ("between", ("optimizer", "param_groups", 0, "betas"), (0.9,)),
    ("between", ("optimizer", "param_groups", 0, "betas"), (0.9, 1.5)),
    ("between", ("optimizer", "param_groups", 0, "amsgrad"), "yes"),
    ("between", ("schedule", "more"), 1),
    ("between", ("schedule", "scheduler"), JUNK),
    ("between", ("schedule", "scheduler", "last_epoch"), None),
    ("between", ("schedule", "scheduler", "_last_lr"), []),
    ("between", ("schedule", "scheduler", "base_lrs"), ["x"]),
    ("between", ("callbacks", "EMA"), JUNK),
    ("between", ("callbacks", "EMA"), {}),
    ("between", ("callbacks", "EMA", "averages"), JUNK),
    ("between", ("callbacks", "EMA", "averages", "weight"), torch.zeros(3, 5)),
    ("between", ("callbacks", "EMA", "averages", "other"), torch.zeros(3)),
    ("between", ("callbacks", "EarlyStopping", "waited"), -1),
    ("between", ("callbacks", "EarlyStopping", "best_epoch"), "2"),
    ("between", ("callbacks", "EarlyStopping", "best_weights", "bias"), 3),
    ("between", ("callbacks", "EarlyStopping", "improvement", "best"), "low"),
    ("between", ("callbacks", "ModelCheckpoint", "improvement"), {"monitor": "train_loss"}),
    ("between", ("callbacks", "ModelCheckpoint", "best"), 5),
    ("between", ("inside", "measured"), {"loss": {"sum": 1.0, "weight": 1.0}, "metrics": {}}),
    ("inside", ("inside",), {}),
    ("inside", ("inside", "measured"), {}),
    ("inside", ("inside", "measured", "loss", "sum"), "3"),
    ("inside", ("inside", "measured", "metrics", "accuracy"), 3),
    ("inside", ("inside", "measured", "metrics", "other"), {}),
    ("inside", ("inside", "random"), JUNK),
    ("inside", ("inside", "random", "torch"), torch.zeros(3, dtype=torch.uint8)),
    ("inside", ("inside", "random", "numpy"), ["MT19937"]),
    ("inside", ("inside", "random", "python"), [3, torch.zeros(3), None]),
    ("inside", ("inside", "random", "cuda"), ["x"]),
    ("inside", ("inside", "reading"), {"samples": 8}),
    ("inside", ("inside", "reading", "batches"), 1),
    ("inside", ("inside", "reading", "metrics"), "accuracy"),
    ("inside", ("inside", "train"), JUNK),
    ("inside", ("inside", "train", "generators"), [torch.zeros(20, dtype=torch.uint8)]),
]


def test_values_that_no_run_has_are_refused(written: Path, tmp_path: Path) -> None:
    """Each part of a state is checked, and the error names it."""
    there = watched(tmp_path)
    for kind, place, value in PLACES:

        def put(state: dict[str, Any], place: tuple[Any, ...] = place, value: Any = value) -> None:
            part: Any = state
            for key in place[:-1]:
                part = part[key]
            part[place[-1]] = value

        names = [str(part) for part in place if isinstance(part, str)]
        named = "frozen state" if names[0] == "freezing" else names[0]
        named = named if names[0] not in ("callbacks", "inside") or len(names) == 1 else names[1]
        named = "position" if value == {} and names == ["inside"] else named
        named = "batch" if names[-1] == "batches" else named
        assert_refused(there, changed(written / kind, put, tmp_path / "copy"), named)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"epoch": 1, "step": 4}, {"epoch": 2, "step": 8}],
        [{"epoch": 2, "step": 4}],
        [{"epoch": 1, "step": 5}],
    ],
    ids=["too few", "too many", "another epoch", "too many steps"],
)
def test_history_that_disagrees_with_the_counters_is_refused(
    written: Path, tmp_path: Path, rows: list[dict[str, float]]
) -> None:
    """A run of one epoch with four steps has one row, with at most four steps."""
    path = shutil.copytree(written / "between", tmp_path / "copy")
    (path / HISTORY).write_text(json.dumps(rows))
    forge(path)
    assert_refused(watched(tmp_path), path, HISTORY)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 3},
        {"epoch": 2},
        {"step": 3},
        {"epoch": True},
        {"step": 10**30},
        {"created_ns": True},
        {"lr": "fast"},
        {"run": "../x"},
    ],
    ids=str,
)
def test_counters_that_disagree_with_the_state_are_refused(
    written: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A batch in an epoch requires sums, and there are as many rows as epochs."""
    path = shutil.copytree(written / "between", tmp_path / "copy")
    forge(path, **changes)
    agree = {"batch": "measured", "epoch": HISTORY, "step": HISTORY}
    name, value = next(iter(changes.items()))
    expected = agree.get(name, MANIFEST) if type(value) is int and value < 10**30 else MANIFEST
    assert_refused(watched(tmp_path), path, expected)


@pytest.mark.parametrize(
    "kind", ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RMSprop"]
)
def test_states_of_the_optimizers_of_pytorch_are_accepted(tmp_path: Path, kind: str) -> None:
    """The state of each optimizer is accepted, and a tensor of another shape is refused."""
    there = trainer(optimizer=getattr(torch.optim, kind))
    there.fit(DATA, epochs=1)
    optimizer = there.optimizer
    assert optimizer is not None
    saved = optimizer.state_dict()
    check_optimizer(Contents(tmp_path, {}), saved, optimizer)
    values = saved["state"][0]
    name = next(n for n, v in values.items() if isinstance(v, torch.Tensor) and v.ndim)
    values[name] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=name):
        check_optimizer(Contents(tmp_path, {}), saved, optimizer)


@pytest.mark.parametrize("state", [{}, {"hits": "x", "samples": 2}, {"hits": 1}], ids=str)
def test_sums_that_a_metric_cannot_have_are_refused(
    written: Path, tmp_path: Path, state: dict[str, Any]
) -> None:
    """They are loaded into copies of the metrics before anything is changed."""

    def put(saved: dict[str, Any]) -> None:
        saved["inside"]["measured"]["metrics"]["accuracy"] = state

    path = changed(written / "inside", put, tmp_path / "copy")
    assert_refused(watched(tmp_path), path, "sums of metrics")


def test_ctrl_c_while_loading_leaves_the_run_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen parts, the optimizer and the callbacks are restored."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    trained = trainer(model=network(), callbacks=[EMA(0.5)])
    trained.fit(DATA, epochs=1)
    path = trained.save_checkpoint(tmp_path / "one")
    there = trainer(model=network(), callbacks=[EMA(0.5)])
    freeze(there.model, "0")
    there.fit(DATA, epochs=1)
    before = everything(there)
    monkeypatch.setattr("finetunelib.finetuning._weights.load.write_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        there.load_checkpoint(path)
    assert everything(there) == before
    assert is_frozen(there.model[0])  # type: ignore[index]
    assert (path / WEIGHTS).is_file()
