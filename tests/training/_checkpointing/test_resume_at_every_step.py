"""A run of sixty steps that is stopped after each of them, and once more in the same epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

from finetunelib import Trainer, build_mlp
from finetunelib.callbacks import EMA
from finetunelib.finetuning._digests import digest
from finetunelib.training import Callback, TrainContext
from training._loop.stopping import Stopped

EPOCHS, STEPS = 4, 15
INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(60) % 3
VAL = (INPUTS[:9], TARGETS[:9])


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Samples with random noise at every read."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return INPUTS[index] + 0.1 * torch.randn(4), TARGETS[index]


class Trajectory(Callback):
    """Records the batches, weights, optimizer and losses of each step."""

    def __init__(self, stop_after: int | None = None, path: Path | None = None) -> None:
        self.batches: list[str] = []
        self.states: list[str] = []
        self.stop_after = stop_after
        self.path = path

    def on_step_end(self, context: TrainContext) -> None:
        tensors = [*context.model.state_dict().values()]
        for state in context.optimizer.state_dict()["state"].values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        self.states.append(" ".join(map(digest, tensors)))
        if context.state.step == self.stop_after and self.path is not None:
            context.request_checkpoint(self.path)

    def on_checkpoint(self, context: TrainContext) -> None:
        raise Stopped


def made(stop_after: int | None = None, path: Path | None = None) -> tuple[Trainer, Trajectory]:
    """Return a Trainer in which everything depends on random states, and its recorder."""
    model = build_mlp(4, [8], 3, dropout=0.2, normalization=nn.BatchNorm1d, seed=0)
    trajectory = Trajectory(stop_after, path)

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            trajectory.batches.append(digest(args[0]))

    model.register_forward_pre_hook(note)
    trainer = Trainer(
        model,
        optimizer=torch.optim.AdamW,
        lr=0.01,
        lr_scheduler=lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=EPOCHS * STEPS),
        lr_scheduler_interval="step",
        callbacks=[EMA(0.9), trajectory],
        batch_size=4,
        device="cpu",
        progress=False,
    )
    return trainer, trajectory


def run(
    stop_after: int | None = None, path: Path | None = None, **options: Any
) -> tuple[Trainer, Trajectory]:
    """Train until the end, or until a step after which a checkpoint is written."""
    trainer, trajectory = made(stop_after, path)
    try:
        trainer.fit(Augmented(), VAL, epochs=EPOCHS, **options)
    except Stopped:
        assert stop_after is not None
    return trainer, trajectory


def losses(trainer: Trainer) -> list[dict[str, float]]:
    timings = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timings} for row in trainer.history]


def differences(
    whole: tuple[Trainer, Trajectory], resumed: tuple[Trainer, Trajectory], step: int
) -> Iterator[dict[str, Any]]:
    """Yield where a resumed run differs: in states first, then batches, then losses."""
    pairs: dict[str, Callable[[tuple[Trainer, Trajectory]], list[Any]]] = {
        "states": lambda side: side[1].states[-(EPOCHS * STEPS - step) :],
        "batches": lambda side: side[1].batches[-(EPOCHS * STEPS - step) :],
        "losses": lambda side: losses(side[0]),
    }
    for what, of in pairs.items():
        there, here = of(whole), of(resumed)
        if step == EPOCHS * STEPS and what != "losses":
            there, here = [], resumed[1].states  # Nothing is left to be done.
        for position, (left, right) in enumerate(zip(there, here, strict=True)):
            if left != right:
                yield {"cut": step, "what": what, "first_difference": position}
                break


@pytest.mark.slow
def test_a_run_of_sixty_steps_is_the_same_wherever_it_is_stopped(tmp_path: Path) -> None:
    """Stopped after any step, and again after the next one, it resumes bit for bit."""
    whole = run()
    assert len(whole[1].states) == len(whole[1].batches) == EPOCHS * STEPS
    report: list[dict[str, Any]] = []
    for step in range(1, EPOCHS * STEPS + 1):
        path = tmp_path / str(step)
        run(step, path)
        report += differences(whole, run(resume_from=path), step)
        if step % STEPS:  # Once more in the same epoch, where a step of it is left.
            again = tmp_path / f"{step}-again"
            run(step + 1, again, resume_from=path)
            report += differences(whole, run(resume_from=again), step + 1)
    (tmp_path / "report.json").write_text(json.dumps(report, indent=1))
    assert report == [], f"see {tmp_path / 'report.json'}"


@pytest.mark.slow
def test_checkpoints_right_after_a_resume_and_between_epochs_resume(tmp_path: Path) -> None:
    """Saved before any step after a resume, and at the end of an epoch."""
    whole = run()
    for step in (7, STEPS, 2 * STEPS):
        run(step, tmp_path / str(step))
        trainer, _ = made()
        trainer.load_checkpoint(tmp_path / str(step))
        trainer.save_checkpoint(tmp_path / f"{step}-again")
        resumed = run(resume_from=tmp_path / f"{step}-again")
        assert list(differences(whole, resumed, step)) == []
