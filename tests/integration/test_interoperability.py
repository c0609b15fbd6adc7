"""Other libraries with a Trainer: as on the page about interoperability, and bit for bit."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)

from finetunelib import Trainer, build_mlp
from finetunelib._preserve import derive_seed, reseed
from finetunelib.errors import InvalidTargetError
from finetunelib.training import Callback, TrainContext
from integration.programs import EPOCHS, Program, numbers, same_state
from support_pages import DOCS, blocks_of

INPUTS = numbers(120, 4)
TARGETS = INPUTS[:, :3].argmax(1)
TRAIN, VAL = (INPUTS[:90], TARGETS[:90]), (INPUTS[90:], TARGETS[90:])
CROSS_ENTROPY = nn.CrossEntropyLoss()


def network() -> nn.Module:
    return build_mlp(4, [8], 3, dropout=0.2, seed=0)


def quiet(**options: Any) -> Trainer:
    """Return a Trainer of a new network."""
    return Trainer(network(), **{"lr": 0.1, "batch_size": 16, "progress": False, **options})


def block(package: str) -> str:
    """Return the block of the page that imports a package."""
    page = (DOCS / "how-to" / "interoperability.md").read_text(encoding="utf-8")
    (text,) = [found.text for found in blocks_of(page) if f"import {package}\n" in found.text]
    return text


def run_block(package: str) -> dict[str, Any]:
    """Run a block of the page after its first one, and return the names that it defines."""
    names: dict[str, Any] = {
        "torch": torch,
        "Trainer": Trainer,
        "build_mlp": build_mlp,
        "Callback": Callback,
        "TrainContext": TrainContext,
        "train": TRAIN,
        "val": VAL,
    }
    exec(block(package), names)
    return names


class SaveInside(Callback):
    """Writes a checkpoint after a step within the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == 9:
            context.request_checkpoint(self.path)


# torchmetrics


def collection() -> MetricCollection:
    """Return metrics of which the first three share their counts."""
    return MetricCollection(
        {
            "f1": MulticlassF1Score(3),
            "recall": MulticlassRecall(3),
            "top_1": MulticlassAccuracy(3),
            "top_2": MulticlassAccuracy(3, top_k=2, average="micro"),
        }
    )


def test_collection_of_torchmetrics_has_the_columns_of_its_metrics() -> None:
    """Each value is that of the metric alone, in training and in validation."""
    together = quiet(metrics={"m": collection()}).fit(TRAIN, VAL, epochs=2)
    alone = quiet(metrics=dict(collection().items())).fit(TRAIN, VAL, epochs=2)
    assert "val_m_top_2" in together.names
    for name in collection():
        for part in ("train", "val"):
            assert together[f"{part}_m_{name}"] == alone[f"{part}_{name}"]


def test_collection_of_torchmetrics_resumes_inside_an_epoch(tmp_path: Path) -> None:
    """All metrics have their counts, also those that share them."""
    options = {"metrics": {"m": collection()}}
    whole = quiet(callbacks=[SaveInside(tmp_path / "at 9")], **options).fit(TRAIN, VAL, epochs=3)
    resumed = quiet(metrics={"m": collection()}).fit(
        TRAIN, VAL, epochs=3, resume_from=tmp_path / "at 9"
    )
    for name in [name for name in whole.names if "_m_" in name]:
        assert resumed[name] == whole[name]


def test_matrix_in_a_collection_is_refused() -> None:
    """A value with two dimensions is not a column."""
    metrics = {"m": MetricCollection({"matrix": MulticlassConfusionMatrix(3)})}
    with pytest.raises(TypeError, match="m"):
        quiet(metrics=metrics).fit(TRAIN, epochs=1)


# Schedulers


def rates_by_hand(make: Callable[[Any], Any], step: Callable[[Any, int], None]) -> list[float]:
    """Return the rate of each of 18 steps of a hand-written loop."""
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    schedule, rates = make(optimizer), []
    for number in range(1, 19):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        step(schedule, number)
    return rates


class Rates(Callback):
    """Keeps the learning rate of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step_end(self, context: TrainContext) -> None:
        self.found.append(context.lr)


@pytest.mark.slow
def test_schedule_of_transformers() -> None:
    """The rates of the steps are those of a hand-written loop."""
    optimization = pytest.importorskip("transformers.optimization")

    def linear(optimizer: Any) -> Any:
        return optimization.get_linear_schedule_with_warmup(optimizer, 4, 18)

    rates = Rates()
    quiet(lr_scheduler=linear, lr_scheduler_interval="step", callbacks=[rates]).fit(TRAIN, epochs=3)
    assert rates.found == rates_by_hand(linear, lambda schedule, _: schedule.step())


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_schedule_of_timm(interval: Any, tmp_path: Path) -> None:
    """The class of the page has the rates of a hand-written loop, also after it was resumed."""
    pytest.importorskip("timm")
    page = block("CosineLRScheduler").partition("\n\ntrainer =")[0]
    names: dict[str, Any] = {}
    exec(page, names)
    by_step = interval == "step"

    def cosine(optimizer: Any) -> Any:
        return names["CosineLRScheduler"](
            optimizer, t_initial=18 if by_step else 3, warmup_t=1, t_in_epochs=not by_step
        )

    def after(schedule: Any, step: int) -> None:
        if by_step:
            schedule.step_update(step)
        elif step % 6 == 0:
            schedule.step(step // 6)

    def fit(*callbacks: Callback, **options: Any) -> Trainer:
        trainer = quiet(
            lr_scheduler=lambda optimizer: names["OfTimm"](optimizer, cosine),
            lr_scheduler_interval=interval,
            callbacks=callbacks,
        )
        trainer.fit(TRAIN, epochs=3, **options)
        return trainer

    rates, resumed = Rates(), Rates()
    expected = rates_by_hand(cosine, after)
    trained = fit(rates, SaveInside(tmp_path / "at 9"))
    assert rates.found == expected
    again = fit(resumed, SaveInside(tmp_path / "new"), resume_from=tmp_path / "at 9")
    assert resumed.found == expected[9:]
    assert same_state(again.model, trained.model)


# Loaders


def test_loader_of_torchdata_resumes_inside_an_epoch_without_reading_again(tmp_path: Path) -> None:
    """The weights are those of the run that was not stopped, and no sample is read twice."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    reads: list[int] = []

    class Counted(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(TRAIN[0])

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            reads.append(index)
            return TRAIN[0][index], TRAIN[1][index]

    def loader() -> StatefulDataLoader[Any]:
        return StatefulDataLoader(Counted(), batch_size=16, shuffle=True)

    whole = quiet(callbacks=[SaveInside(tmp_path / "at 9")])
    whole.fit(loader(), epochs=3)
    reads.clear()
    resumed = quiet()
    resumed.fit(loader(), epochs=3, resume_from=tmp_path / "at 9")
    assert same_state(resumed.model, whole.model)
    assert resumed.history["train_loss"] == whole.history["train_loss"]
    # The rest of the second epoch, the third one, and the batches of the checks before training.
    assert len(reads) <= 42 + 90 + 2 * 16


# Experiments


def test_optuna_prunes_a_trial_and_keeps_the_best() -> None:
    """`TrialPruned` leaves `fit` as it was raised; the code of the page finds parameters."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = run_block("optuna")
    states = {trial.state.name for trial in names["study"].trials}
    assert states <= {"COMPLETE", "PRUNED"}
    assert names["study"].best_params.keys() == {"lr", "width"}

    class Always(optuna.pruners.BasePruner):  # type: ignore[misc, name-defined]
        def prune(self, study: object, trial: object) -> bool:
            return True

    study = optuna.create_study(pruner=Always())
    trial = study.ask()
    with pytest.raises(optuna.TrialPruned, match="pruned after epoch 1"):
        quiet(callbacks=[names["Pruning"](trial)]).fit(TRAIN, VAL, epochs=3)
    assert trial.study.trials[0].intermediate_values.keys() == {1}


class Calls:
    """Records the calls of its methods, as a fake of a tracking service."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Calls]:
        def call(*args: Any, **options: Any) -> Calls:
            self.made.append((name, args, options))
            return self

        return call


def fake(monkeypatch: pytest.MonkeyPatch, package: str) -> Calls:
    """Replace a package by a fake."""
    module, calls = types.ModuleType(package), Calls()
    module.__getattr__ = calls.__getattr__  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, package, module)
    return calls


def test_callback_for_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens a run with the id of the training run, logs each epoch, and closes it."""
    calls = fake(monkeypatch, "wandb")
    logger = run_block("wandb")["WandbLogger"](project="digits")
    history = quiet(callbacks=[logger]).fit(TRAIN, VAL, epochs=2)
    assert [name for name, _, _ in calls.made] == ["init", "log", "log", "finish"]
    assert calls.made[0][2].keys() == {"id", "resume", "project"}
    assert isinstance(calls.made[0][2]["id"], str)
    assert calls.made[2][1:] == ((history.rows[1],), {"step": 12})


@pytest.mark.parametrize(("stop", "status"), [(False, "FINISHED"), (True, "KILLED")])
def test_callback_for_mlflow(stop: bool, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It logs the parameters and each epoch, and says how the run ended."""

    class Stop(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            if stop and context.state.step == 12:
                context.request_stop("enough")

    calls = fake(monkeypatch, "mlflow")
    logger = run_block("mlflow")["MLflowLogger"](width=8)
    history = quiet(callbacks=[logger, Stop()]).fit(TRAIN, VAL, epochs=2)
    assert [(name, args) for name, args, _ in calls.made] == [
        ("start_run", ()),
        ("log_params", ({"width": 8},)),
        ("log_metrics", (history.rows[0],)),
        ("log_metrics", (history.rows[1],)),
        ("end_run", (status,)),
    ]


# Programs, bit for bit


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return CROSS_ENTROPY(model(batch[0]), batch[1])  # type: ignore[no-any-return]


def test_k_fold() -> None:
    """The model of each fold is that of its hand-written loop; a fold is not trained on."""
    folds = StratifiedKFold(3, shuffle=True, random_state=0).split(INPUTS, TARGETS)
    counted = 0
    for train_rows, val_rows in folds:
        train, val = ((INPUTS[rows], TARGETS[rows]) for rows in (train_rows, val_rows))
        trainer = Program(network, loss_of, train).trained(val)
        with torch.no_grad():
            right = (trainer.model.eval()(val[0]).argmax(1) == val[1]).sum().item()
        assert trainer.history["val_accuracy"][-1] == right / len(val_rows)
        counted += len(val_rows)
    assert counted == len(INPUTS)


def test_mixup() -> None:
    """A collate function draws the mixture; the metric reads labels and mixtures of labels."""

    def mixup(samples: list[Any]) -> tuple[Tensor, Tensor]:
        images, labels = default_collate(samples)
        labels = one_hot(labels, 3).float()
        part, order = torch.distributions.Beta(0.2, 0.2).sample(), torch.randperm(len(images))
        mixed = (part * both + (1 - part) * both[order] for both in (images, labels))
        return next(mixed), next(mixed)

    def label_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        soft = one_hot(targets, 3).float() if targets.dim() == 1 else targets
        return soft.gather(1, outputs.argmax(1, keepdim=True)).mean()

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(*TRAIN), batch_size=16, shuffle=True, collate_fn=mixup)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hits = 0.0
    for epoch in range(EPOCHS):
        reseed(derive_seed(0, epoch))
        hits = 0.0
        for batch in loader():
            outputs = model(batch[0])
            hits += label_accuracy(outputs.detach(), batch[1]).item() * len(batch[0])
            optimizer.zero_grad()
            CROSS_ENTROPY(outputs, batch[1]).backward()
            optimizer.step()
    metrics = {"label_accuracy": label_accuracy}
    trainer = quiet(loss_fn=CROSS_ENTROPY, metrics=metrics, optimizer=torch.optim.SGD)
    with pytest.raises(InvalidTargetError, match="CrossEntropyLoss"):
        quiet().fit(loader(), epochs=1)
    history = trainer.fit(loader(), VAL, epochs=EPOCHS)
    assert same_state(trainer.model, model)
    assert history["train_label_accuracy"][-1] == pytest.approx(hits / 90)
    right = (trainer.predict(VAL[0]).argmax(1) == VAL[1]).float().mean().item()
    assert history["val_label_accuracy"][-1] == pytest.approx(right)
