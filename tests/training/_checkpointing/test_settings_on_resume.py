"""Settings of the optimizer and the schedule that differ when a run resumes are named."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from finetunelib import Trainer
from finetunelib.callbacks import ModelCheckpoint
from training.tiny import plain_network, points, quiet_trainer

DATA = points(8)


def train(folder: Path, epochs: int, **options: Any) -> Trainer:
    """Train to a number of epochs, resuming from the folder."""
    trainer = quiet_trainer(plain_network(), callbacks=[ModelCheckpoint(folder)], **options)
    trainer.fit(DATA, epochs=epochs, resume_from=folder)
    return trainer


def two_groups(groups: list[dict[str, Any]], first: float) -> torch.optim.Optimizer:
    """Return an optimizer with a rate of its own for the first parameter."""
    one, *others = groups[0]["params"]
    return SGD([{"params": [one], "lr": first}, {"params": others}], lr=0.1)


def schedule(kind: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the options of a Trainer with a schedule."""
    return {"lr_scheduler": lambda o: kind(o, *arguments, **options), "lr": 0.1}


def warm_up(o: Any, length: int) -> SequentialLR:
    return SequentialLR(o, [LinearLR(o, 0.1, total_iters=2), CosineAnnealingLR(o, length)], [2])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"lr": 0.1}, {"lr": 0.2}, ["`lr` 0.1", "0.2 here"]),
        (
            {"optimizer": partial(SGD, lr=0.1, momentum=0.9)},
            {"optimizer": partial(SGD, lr=0.1, momentum=0.5, nesterov=True)},
            ["`momentum` 0.9", "0.5 here", "`nesterov`"],
        ),
        (
            {"optimizer": partial(AdamW, weight_decay=0.1)},
            {"optimizer": partial(AdamW, weight_decay=0.2, betas=(0.8, 0.999))},
            ["`weight_decay` 0.1", "`betas[0]` 0.9"],
        ),
        (
            {"optimizer": partial(two_groups, first=0.3)},
            {"optimizer": partial(two_groups, first=0.4)},
            ["`lr` of parameter group 0 0.3"],
        ),
        (schedule(CosineAnnealingLR, 9), schedule(CosineAnnealingLR, 12), ["`T_max` 9"]),
        (schedule(StepLR, 2), schedule(StepLR, 5, 0.5), ["`step_size` 2", "`gamma` 0.1"]),
        (schedule(MultiStepLR, [4]), schedule(MultiStepLR, [5]), ["milestones"]),
        (
            schedule(OneCycleLR, 0.1, total_steps=30),
            schedule(OneCycleLR, 0.2, total_steps=30, pct_start=0.5),
            ["`lr`", "max_lr", "phases"],
        ),
        (
            schedule(ReduceLROnPlateau, patience=3),
            schedule(ReduceLROnPlateau, patience=1),
            ["`patience` 3"],
        ),
        (schedule(warm_up, 9), schedule(warm_up, 12), ["T_max` 9"]),
    ],
)
def test_each_setting_that_differs_is_named_with_both_values(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], words: list[str]
) -> None:
    """One warning contains them all and says that those of the checkpoint are used."""
    saved = train(tmp_path, 1, **first)
    with pytest.warns(UserWarning, match="other settings") as caught:
        resumed = train(tmp_path, 2, **second)
    (message,) = [str(w.message) for w in caught if "other settings" in str(w.message)]
    for word in [*words, "those of the checkpoint"]:
        assert word in message
    assert saved.optimizer is not None
    assert resumed.optimizer is not None
    for there, here in zip(
        saved.optimizer.param_groups, resumed.optimizer.param_groups, strict=True
    ):
        for name in ("weight_decay", "nesterov", "initial_lr", "max_lr"):
            assert there.get(name) == here.get(name)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"optimizer": AdamW},
        {"optimizer": partial(two_groups, first=0.3)},
        schedule(OneCycleLR, 0.1, total_steps=30),
        schedule(warm_up, 9),
        schedule(ReduceLROnPlateau, patience=0, threshold=10.0),
        schedule(LambdaLR, lambda epoch: 0.9**epoch),
        schedule(CosineAnnealingLR, 9),
    ],
)
def test_same_settings_are_silent(tmp_path: Path, options: dict[str, Any]) -> None:
    """What a schedule has changed since is no difference."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epochs in (2, 3, 4):
            train(tmp_path, epochs, **options)


def test_settings_that_are_used_are_named_at_the_next_resume_too(tmp_path: Path) -> None:
    """The second script's checkpoints contain the first one's settings, which it went on with."""
    train(tmp_path, 1, optimizer=partial(SGD, momentum=0.9))
    for epochs in (2, 3):
        with pytest.warns(UserWarning, match=r"`momentum` 0\.9 in the checkpoint and 0\.5 here"):
            train(tmp_path, epochs, optimizer=partial(SGD, momentum=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, 4, optimizer=partial(SGD, momentum=0.9))
