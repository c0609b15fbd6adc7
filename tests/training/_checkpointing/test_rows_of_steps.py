"""Checkpoints of a run whose rows follow steps: what they contain, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetunelib.errors import CheckpointError
from finetunelib.training import Callback, TrainContext
from finetunelib.training._checkpointing.manifest import HISTORY, MANIFEST, STATE
from training._checkpointing.checkpoint_files import DATA, forge, trainer

ROWS = [{"epoch": 1, "step": 3, "train_loss": 1.0}]


class SaveAtEnd(Callback):
    """Writes a checkpoint at the end of the first epoch, in the middle of an interval."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch_end(self, context: TrainContext) -> None:
        if context.state.epoch == 1:
            context.request_checkpoint(self.path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint after four steps, one of which belongs to the second row."""
    path = tmp_path_factory.mktemp("rows") / "written"
    trainer(callbacks=[SaveAtEnd(path)]).fit(DATA, DATA, epochs=2, validate_every_n_steps=3)
    return path


def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def check_refused(path: Path, named: str) -> None:
    """Assert that loading raises an error that names a part, and changes nothing."""
    there = trainer()
    for action in (
        lambda: there.load_checkpoint(path),
        lambda: there.fit(DATA, DATA, epochs=2, validate_every_n_steps=3, resume_from=path),
    ):
        with pytest.raises(CheckpointError, match=named):
            action()
    assert there.state.step == 0
    assert all(bool((p == p.flatten()[0]).all()) for p in there.model.parameters())


def test_a_checkpoint_between_epochs_contains_the_sums_of_its_interval(
    written: Path, tmp_path: Path
) -> None:
    """The manifest says that rows follow steps, and the position has their number."""
    assert json.loads((written / MANIFEST).read_text())["rows"] == "steps"
    inside = torch.load(written / STATE, weights_only=True)["inside"]
    assert inside["reading"]["validate_every_n_steps"] == 3
    assert inside["measured"]["loss"]["weight"] == 2  # The samples of one step.
    path = copied(written, tmp_path)
    (path / HISTORY).write_text(json.dumps(ROWS))
    forge(path)
    trainer().load_checkpoint(path)  # What the rows contain besides their counters is not known.


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([*ROWS, *ROWS], "row 2 has 3 of 4 steps"),
        ([{"epoch": 1, "step": 5}], "row 1 has 5 of 4 steps"),
        ([{"epoch": 1, "step": 0}], "row 1 has 0 of 4 steps"),
        ([{"epoch": 2, "step": 3}], "row 1 is that of epoch 2 of 1"),
        ([{"epoch": 0, "step": 3}], "row 1 is that of epoch 0 of 1"),
        ([{"epoch": 1}], "row 1 has no epoch or no step"),
    ],
)
def test_rows_that_disagree_with_the_counters_are_refused(
    written: Path, tmp_path: Path, rows: list[dict[str, float]], wrong: str
) -> None:
    """Their steps increase up to that of the checkpoint, and their epochs never decrease."""
    path = copied(written, tmp_path)
    (path / HISTORY).write_text(json.dumps(rows))
    forge(path)
    check_refused(path, wrong)


def test_another_word_for_what_rows_follow_is_refused(written: Path, tmp_path: Path) -> None:
    """It is a later format, or damage."""
    path = copied(written, tmp_path)
    forge(path, rows="epochs")
    check_refused(path, "damaged")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda inside: inside.update(measured=[1]), "inside.measured"),
        (lambda inside: inside["measured"].pop("metrics"), "inside.measured"),
        (lambda inside: inside["measured"]["loss"].update(sum="x"), "inside.measured.loss"),
        (lambda inside: inside["reading"].update(validate_every_n_steps="3"), "inside.reading"),
        (lambda inside: inside["reading"].update(another=3), "inside.reading"),
        (lambda inside: inside["reading"].pop("validate_every_n_steps"), "inside.measured"),
    ],
    ids=["list", "no metrics", "text", "text for n", "unknown key", "no n"],
)
def test_sums_that_no_run_has_are_refused(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    """Between two epochs, only a run whose rows follow steps has sums."""
    path = copied(written, tmp_path)
    state = torch.load(path / STATE, weights_only=True)
    change(state["inside"])
    torch.save(state, path / STATE)
    forge(path)
    check_refused(path, named)
