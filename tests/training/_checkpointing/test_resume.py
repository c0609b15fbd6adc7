"""A run that was stopped and resumed equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics.classification import MulticlassAUROC

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.data._batches import Data
from finetunelib.errors import CheckpointError
from finetunelib.finetuning import fingerprint
from finetunelib.training import Accuracy, Callback, TrainContext
from training._loop.stopping import StopAfter, Stopped
from training.tiny import cut

EPOCHS = 3
TIMINGS = ("seconds", "samples_per_second")


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from three random generators at every read."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn(4) + random.random()
        return INPUTS[index] + noise, TARGETS[index]


INPUTS = torch.randn(14, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(0, 3, (14,), generator=torch.Generator().manual_seed(1))
PAIRS = TensorDataset(INPUTS, TARGETS)


def shuffled_loader() -> Data:
    return DataLoader(PAIRS, batch_size=4, shuffle=True)


def loader_with_generator() -> Data:
    return DataLoader(PAIRS, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))


def stateful_loader() -> Data:
    loader: DataLoader[Any] = StatefulDataLoader(PAIRS, batch_size=4, shuffle=True)
    return loader


@dataclass
class Case:
    """The setup of a run, built from scratch each time."""

    data: Callable[[], Data] = lambda: (INPUTS, TARGETS)
    options: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    metrics: Callable[[], dict[str, Any]] = lambda: {"accuracy": Accuracy()}

    def trainer(self, *callbacks: Callback) -> Trainer:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )
        return Trainer(
            model,
            batch_size=4,
            metrics=self.metrics(),
            callbacks=[*self.callbacks(), *callbacks],
            device="cpu",
            ignore=["validation-in-training-data"],
            progress=False,
            **self.options,
        )

    def fit(self, trainer: Trainer, **options: Any) -> None:
        trainer.fit(self.data(), (INPUTS[:5], TARGETS[:5]), epochs=EPOCHS, **options)


def linear(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LinearLR(optimizer, 0.1, total_iters=7)


def one_cycle(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, 0.1, total_steps=30)


def plateau(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, patience=0)


def mean_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) - targets).abs().float().mean()


CASES = {
    "tensors": Case(),
    "augmented dataset": Case(data=Augmented),
    "shuffled loader": Case(data=shuffled_loader),
    "loader with a generator": Case(data=loader_with_generator),
    "stateful loader": Case(data=stateful_loader),
    "list of batches": Case(data=lambda: list(zip(cut(INPUTS), cut(TARGETS), strict=True))),
    "AdamW": Case(options={"optimizer": torch.optim.AdamW}),
    "schedule of steps": Case(options={"lr_scheduler": one_cycle, "lr_scheduler_interval": "step"}),
    "schedule of epochs": Case(options={"lr_scheduler": linear}),
    "plateau": Case(options={"lr_scheduler": plateau}),
    "accumulation": Case(options={"gradient_accumulation_steps": 3}),
    "clipping": Case(options={"max_grad_norm": 0.1}),
    "bf16": Case(options={"precision": "bf16-mixed"}),
    "class weights": Case(
        options={"loss_fn": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))}
    ),
    "EMA": Case(callbacks=lambda: [EMA(0.9)]),
    "early stopping": Case(callbacks=lambda: [EarlyStopping(patience=2, restore_best=True)]),
    "mean metric": Case(metrics=lambda: {"error": mean_error}),
    "torchmetrics": Case(metrics=lambda: {"auroc": MulticlassAUROC(3, thresholds=5)}),
    "everything": Case(
        data=Augmented,
        options={
            "optimizer": torch.optim.AdamW,
            "lr_scheduler": one_cycle,
            "lr_scheduler_interval": "step",
            "gradient_accumulation_steps": 3,
            "max_grad_norm": 1.0,
        },
        callbacks=lambda: [EMA(0.9), EarlyStopping(patience=3)],
    ),
}


def bits(trainer: Trainer) -> dict[str, Any]:
    """Return everything that two runs must agree on."""
    assert trainer.optimizer is not None
    rows = [{k: v for k, v in row.items() if k not in TIMINGS} for row in trainer.history.rows]
    return {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "state": trainer.state,
        "history": rows,
        "callbacks": [callback.state_dict() for callback in trainer._options.callbacks],
    }


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Compare nested values bit for bit, and name where they differ."""
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, Mapping):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for position, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{position}]")
    else:
        assert left == right or (left != left and right != right), where


def stopped(case: Case, step: int, path: Path, **options: Any) -> None:
    """Train until a step, write a checkpoint there, and end like a killed process."""
    with pytest.raises(Stopped):
        case.fit(case.trainer(StopAfter(step, path)), **options)


def steps_of(case: Case) -> int:
    trainer = case.trainer()
    case.fit(trainer)
    return trainer.state.step


# torchdata calls a deprecated function of PyTorch.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_every_step_can_be_the_last_one_before_a_resume(name: str, tmp_path: Path) -> None:
    """Stopped after any of its steps and resumed, a run ends with the same bits."""
    case = CASES[name]
    whole = case.trainer(StopAfter(-1, tmp_path))
    case.fit(whole)
    for step in range(1, whole.state.step + 1):
        path = tmp_path / str(step)
        stopped(case, step, path)
        resumed = case.trainer(StopAfter(-1, tmp_path))
        case.fit(resumed, resume_from=path)
        assert_same(bits(resumed), bits(whole), f"step {step}")


def test_a_run_can_be_stopped_twice_in_an_epoch(tmp_path: Path) -> None:
    """Saved, resumed, saved again a step later and resumed, it ends with the same bits."""
    case = CASES["everything"]
    whole = case.trainer(StopAfter(-1, tmp_path))
    case.fit(whole)
    last = whole.state.step
    for step in range(1, last):
        stopped(case, step, tmp_path / f"{step}-first")
        stopped(case, step + 1, tmp_path / f"{step}", resume_from=tmp_path / f"{step}-first")
        resumed = case.trainer(StopAfter(-1, tmp_path))
        case.fit(resumed, resume_from=tmp_path / f"{step}")
        assert_same(bits(resumed), bits(whole), f"steps {step} and {step + 1}")


def test_a_finished_run_returns_its_history_immediately(tmp_path: Path) -> None:
    """If the limits have been reached, nothing is trained."""
    case = CASES["tensors"]
    first = case.trainer()
    case.fit(first)
    path = first.save_checkpoint(tmp_path / "done")
    calls: list[str] = []

    class Noted(Callback):
        def on_epoch_start(self, context: TrainContext) -> None:
            calls.append("start")

    resumed = case.trainer(Noted())
    case.fit(resumed, resume_from=path)
    assert calls == []
    assert_same(bits(resumed)["weights"], bits(first)["weights"])
    assert resumed.history == first.history


def test_an_empty_folder_starts_from_scratch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command starts and restarts a run, and one line reports a new start."""
    trainer = Trainer(nn.Linear(4, 3), batch_size=4, device="cpu")
    trainer.fit((INPUTS, TARGETS), epochs=2, resume_from=tmp_path / "none")
    assert len(trainer.history) == 2
    first_line = capsys.readouterr().err.splitlines()[0]
    assert str(tmp_path / "none") in first_line
    assert "starting from scratch" in first_line


def test_limits_are_totals_when_resuming(tmp_path: Path) -> None:
    """Two of three epochs are done, so one is left."""
    case = CASES["tensors"]
    first = case.trainer()
    first.fit((INPUTS, TARGETS), epochs=2)
    resumed = case.trainer()
    resumed.fit((INPUTS, TARGETS), epochs=3, resume_from=first.save_checkpoint(tmp_path / "two"))
    assert resumed.history["epoch"] == [1, 2, 3]


def test_the_next_fit_resumes_from_a_loaded_checkpoint(tmp_path: Path) -> None:
    """`load_checkpoint` keeps the position in the epoch, and `epochs` counts from there."""
    case = CASES["everything"]
    whole = case.trainer(StopAfter(-1, tmp_path))
    case.fit(whole)
    stopped(case, 1, tmp_path / "one")
    trainer = case.trainer(StopAfter(-1, tmp_path))
    trainer.load_checkpoint(tmp_path / "one")
    assert (trainer.state.epoch, trainer.state.step, trainer.state.batch) == (0, 1, 3)
    case.fit(trainer)
    assert_same(bits(trainer), bits(whole))


def test_a_resumed_run_takes_only_the_remaining_steps(tmp_path: Path) -> None:
    """A run that started from scratch would end with the same bits, too."""
    case = CASES["tensors"]
    stopped(case, 5, tmp_path / "five")
    seen: list[int] = []

    class Steps(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            seen.append(context.state.step)

    case.fit(case.trainer(Steps()), resume_from=tmp_path / "five")
    assert seen == list(range(6, 13))


class Summing:
    """A metric that cannot resume from the middle of an epoch."""

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> float:
        return 0.0

    def reset(self) -> None: ...


@pytest.mark.parametrize(
    ("case", "named"),
    [
        (Case(metrics=lambda: {"own": Summing()}), "'own'"),
        (
            Case(data=lambda: DataLoader(PAIRS, 4, num_workers=1, persistent_workers=True)),
            "persistent_workers",
        ),
        (Case(data=lambda: iter([(INPUTS, TARGETS)])), "iterator"),
    ],
    ids=["metric without state", "persistent workers", "iterator"],
)
def test_what_cannot_resume_exactly_is_refused_when_fit_starts(
    case: Case, named: str, tmp_path: Path
) -> None:
    """Checkpoints inside an epoch that would not lead to the same bits are refused."""
    trainer = case.trainer(ModelCheckpoint(tmp_path, every_n_steps=1))
    with pytest.raises(CheckpointError, match=named):
        trainer.fit(case.data(), epochs=1)
    assert trainer.state.step == 0


def test_a_metric_without_state_is_accepted_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    """Nothing that it has accumulated is needed there."""
    case = Case(metrics=lambda: {"own": Summing()})
    trainer = case.trainer(ModelCheckpoint(tmp_path))
    case.fit(trainer)
    resumed = case.trainer(ModelCheckpoint(tmp_path))
    case.fit(resumed, resume_from=tmp_path)
    assert resumed.state.step == trainer.state.step


def test_the_trainer_saves_no_checkpoint_in_the_middle_of_a_fit(tmp_path: Path) -> None:
    """The message says what to call instead."""
    case = CASES["tensors"]

    class Saves(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            trainer.save_checkpoint(tmp_path / "inside")

    trainer = case.trainer(Saves())
    with pytest.raises(CheckpointError, match="request_checkpoint"):
        case.fit(trainer)
    assert not (tmp_path / "inside").exists()


def test_the_certificate_covers_a_resumed_run(tmp_path: Path) -> None:
    """It contains what stayed frozen from the start of the first part to the end."""

    def trainer(*callbacks: Callback) -> Trainer:
        model = freeze_and_replace_head(build_mlp(4, [8], 3, seed=0), num_classes=3)
        options: dict[str, Any] = {"batch_size": 4, "device": "cpu", "progress": False}
        return Trainer(model, callbacks=callbacks, **options)

    torch.manual_seed(0)
    with pytest.raises(Stopped):
        trainer(StopAfter(3, tmp_path / "three")).fit((INPUTS, TARGETS), epochs=2)
    torch.manual_seed(0)
    resumed = trainer()
    history = resumed.fit((INPUTS, TARGETS), epochs=2, resume_from=tmp_path / "three")
    assert history.certificate is not None
    assert set(history.certificate.digests) == {"backbone.1.weight", "backbone.1.bias"}
    assert history.certificate.digests == fingerprint(resumed.model)
