"""Tests of training the head of a frozen model on cached features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.data import TensorBatches, in_memory
from finetunelib.errors import InvalidArgumentError, NonFiniteError
from finetunelib.finetuning import freeze, unfreeze
from finetunelib.training import Callback, History, StepOutput, Task, TrainContext

INPUTS = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(50) % 3
DATA = (INPUTS, TARGETS)
VAL = (INPUTS[:17] + 1, TARGETS[:17])


def frozen() -> nn.Module:
    """Return a network of which only the head, with a dropout, is trained."""
    model = build_mlp(8, [16], 10, dropout=0.5, normalization=nn.BatchNorm1d, seed=0)
    torch.manual_seed(1)
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 3))
    return freeze_and_replace_head(model, head=head)


def fitted(cache: Any, *callbacks: Callback, **options: Any) -> tuple[Trainer, History]:
    """Train the head for four epochs."""
    trainer = Trainer(
        frozen(), callbacks=callbacks, batch_size=8, progress=False, cache_features=cache, **options
    )
    return trainer, trainer.fit(DATA, VAL, epochs=4)


def bits(trainer: Trainer) -> list[Tensor]:
    """Return the values of a model."""
    return list(trainer.model.state_dict().values())


def measured(history: History) -> list[dict[str, float]]:
    """Return the rows without timings."""
    timings = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timings} for row in history]


def assert_same(one: tuple[Trainer, History], other: tuple[Trainer, History]) -> None:
    """Assert that two runs have the same bits and measures."""
    assert all(map(torch.equal, bits(one[0]), bits(other[0])))
    assert measured(one[1]) == measured(other[1])
    assert one[1].certificate == other[1].certificate


class Calls:
    """Counts the forward passes of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        forward = module.forward

        def counted(*args: Any) -> Any:
            self.count += 1
            return forward(*args)

        module.forward = counted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"precision": "bf16-mixed"},
        {"optimizer": torch.optim.AdamW, "max_grad_norm": 0.1},
        {"loss_fn": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))},
    ],
    ids=["default", "accumulation", "bf16", "adamw-clipped", "weighted-loss"],
)
def test_cached_training_has_the_same_bits(options: dict[str, Any]) -> None:
    """Weights, measures and the certificate are those of training without a cache."""
    cached = fitted("auto", **options)
    assert cached[1].cached_features
    assert_same(cached, fitted(False, **options))


def test_callbacks_see_the_same_run(tmp_path: Path) -> None:
    """Early stopping, averages and checkpoints work as without a cache."""

    def callbacks(name: str) -> list[Callback]:
        checkpoint = ModelCheckpoint(tmp_path / name, every_n_steps=3)
        return [EMA(0.5), EarlyStopping(patience=1, restore_best=True), checkpoint]

    assert_same(fitted(True, *callbacks("one")), fitted(False, *callbacks("two")))


@pytest.mark.parametrize("cache", [True, False])
def test_a_checkpoint_inside_an_epoch_resumes_with_or_without_a_cache(
    tmp_path: Path, cache: bool
) -> None:
    """A run that stopped in the middle of an epoch continues with the same bits."""
    data: Any = {"batch_size": 8, "progress": False}
    checkpoint = ModelCheckpoint(tmp_path / "run", every_n_steps=5)
    Trainer(frozen(), callbacks=[checkpoint], cache_features=True, **data).fit(
        DATA, VAL, max_steps=10
    )
    resumed = Trainer(
        frozen(), callbacks=[ModelCheckpoint(tmp_path / "run")], cache_features=cache, **data
    )
    history = resumed.fit(DATA, VAL, epochs=4, resume_from=tmp_path / "run")
    assert_same((resumed, history), fitted(False))


def test_the_backbone_runs_over_the_data_once() -> None:
    """Besides the check of the first batch: more epochs run it no more often."""

    def calls_in(epochs: int) -> int:
        model = frozen()
        backbone = next(part for part in model.modules() if isinstance(part, nn.BatchNorm1d))
        calls = Calls(backbone)
        trainer = Trainer(model, batch_size=25, progress=False, cache_features=True)
        trainer.fit(DATA, epochs=epochs)
        return calls.count

    assert calls_in(100) == calls_in(2) < 100


class Unfreezes(Callback):
    """Trains the first layer from an epoch or a step on."""

    def __init__(self, *, epoch: int | None = None, step: int | None = None) -> None:
        self.epoch, self.step = epoch, step

    def on_epoch_start(self, context: TrainContext) -> None:
        if context.state.epoch == self.epoch:
            unfreeze(context.model, "backbone")

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == self.step:
            unfreeze(context.model, "backbone")


@pytest.mark.parametrize("when", [{"epoch": 2}, {"step": 9}], ids=["epoch", "step"])
def test_a_callback_that_unfreezes_ends_the_cache(when: dict[str, int]) -> None:
    """From the next batch on, the whole model is trained."""
    cached, plain = fitted("auto", Unfreezes(**when)), fitted(False, Unfreezes(**when))
    assert cached[1].cached_features
    assert_same(cached, plain)


class Doubles(Callback):
    """Doubles a weight of the frozen part after a step."""

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == 9:
            with torch.no_grad():
                next(context.model.parameters()).mul_(2)


@pytest.mark.filterwarnings("ignore:1 frozen tensors changed")
def test_a_callback_that_writes_to_the_backbone_ends_the_cache() -> None:
    """The features that were computed before are not used any more."""
    cached, plain = fitted("auto", Doubles()), fitted(False, Doubles())
    assert cached[1].cached_features
    assert_same(cached, plain)


@pytest.mark.parametrize(
    "data",
    [DataLoader(TensorDataset(*DATA), batch_size=8), [DATA]],
    ids=["loader", "list"],
)
def test_data_that_may_change_is_not_cached(data: Any) -> None:
    """`"auto"` trains the model; `True` is an error that says what to pass."""
    history = Trainer(frozen(), progress=False).fit(data, epochs=2)
    assert not history.cached_features
    with pytest.raises(InvalidArgumentError, match="in_memory"):
        Trainer(frozen(), progress=False, cache_features=True).fit(data, epochs=2)


@pytest.mark.parametrize(
    "data",
    [
        TensorBatches(*DATA, batch_size=8),
        TensorDataset(*DATA),
        in_memory(TensorDataset(*DATA), batch_transform=lambda rows: rows * 2, progress=False),
        ({"inputs": INPUTS}, TARGETS),
        TensorBatches(*DATA, batch_size=8, sample_weight=torch.rand(50)),
    ],
    ids=["batches", "dataset", "in-memory", "by-name", "weighted"],
)
def test_data_in_memory_is_cached(data: Any) -> None:
    """With the same bits."""
    runs = []
    for cache in ("auto", False):
        trainer = Trainer(frozen(), batch_size=8, progress=False, cache_features=cache)
        runs.append((trainer, trainer.fit(data, VAL, epochs=3)))
    assert runs[0][1].cached_features
    assert_same(*runs)


def test_validation_data_that_is_read_anew_is_run_through_the_model() -> None:
    """Only training is cached then."""
    runs = []
    for cache in (True, False):
        trainer = Trainer(frozen(), batch_size=8, progress=False, cache_features=cache)
        runs.append((trainer, trainer.fit(DATA, DataLoader(TensorDataset(*VAL)), epochs=2)))
    assert_same(*runs)


@pytest.mark.parametrize("noisy", [VAL, DataLoader(TensorDataset(*VAL))], ids=["memory", "loader"])
def test_several_sets_of_validation_data_are_measured_as_without_a_cache(noisy: Any) -> None:
    """If one of them may change, all of them are run through the model."""
    runs = []
    for cache in (True, False):
        trainer = Trainer(frozen(), batch_size=8, progress=False, cache_features=cache)
        runs.append((trainer, trainer.fit(DATA, {"clean": VAL, "noisy": noisy}, epochs=2)))
    assert_same(*runs)


class OwnTask(Task):
    """A task that calls the model itself."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        outputs = model(batch[0])
        return StepOutput(
            nn.functional.cross_entropy(outputs, batch[1]), outputs, batch[1], len(batch[1])
        )


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({"task": OwnTask()}, 2), ({}, 1)],
    ids=["own-task", "one-epoch"],
)
def test_auto_does_not_cache_what_it_cannot_or_need_not(
    options: dict[str, Any], epochs: int
) -> None:
    """A task of the user's may need the model; one epoch needs one pass anyway."""
    history = Trainer(frozen(), progress=False, **options).fit(DATA, epochs=epochs)
    assert not history.cached_features


def test_the_history_tells_about_the_last_fit() -> None:
    """A second call of one epoch runs the model."""
    trainer, history = fitted("auto")
    assert history.cached_features
    trainer.fit(DATA, epochs=1)
    assert not history.cached_features


def test_auto_says_why_it_does_not_cache(capsys: pytest.CaptureFixture[str]) -> None:
    """Once, in the lines of progress."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 3))
    freeze(model, "0")
    history = Trainer(model).fit(DATA, epochs=3)
    assert not history.cached_features
    assert capsys.readouterr().err.count("as by a dropout") == 1


def test_true_is_an_error_if_the_features_cannot_be_cached() -> None:
    """It names the reason, and nothing is changed."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 3))
    freeze(model, "0")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidArgumentError, match="as by a dropout"):
        Trainer(model, progress=False, cache_features=True).fit(DATA, epochs=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_value_is_refused() -> None:
    """The error names the argument."""
    with pytest.raises(InvalidArgumentError, match="cache_features"):
        Trainer(frozen(), cache_features="yes")  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_is_explained_with_names_of_the_model() -> None:
    """The module is named as in the model, although only its head runs."""

    class Breaks(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            if context.state.step == 5:
                with torch.no_grad():
                    list(context.model.parameters())[-1].fill_(torch.inf)

    with pytest.raises(NonFiniteError) as caught:
        fitted(True, Breaks())
    assert caught.value.module is not None
    assert frozen().get_submodule(caught.value.module)


def test_a_model_that_is_trained_as_a_whole_is_not_cached() -> None:
    """There is nothing to say about it."""
    history = Trainer(build_mlp(8, [16], 3), progress=False).fit(DATA, epochs=2)
    assert not history.cached_features
