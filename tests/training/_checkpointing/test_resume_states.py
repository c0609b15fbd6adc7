"""Other states of a resumed run: generators, callbacks, optimizers, metrics and buffers."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.errors import CheckpointError, InvalidArgumentError, TrainingInterrupted
from finetunelib.training import Callback, TrainContext
from training._loop.stopping import SaveAt
from training.tiny import points, quiet_trainer, same_weights, weights_of

DATA = points(22)
VAL = points(9, seed=1)
PAIRS = TensorDataset(*DATA)


def network() -> nn.Module:
    return build_mlp(6, [8], 3, dropout=0.3, normalization=nn.BatchNorm1d, seed=0)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return quiet_trainer(network(), callbacks=list(callbacks), device="cpu", **options)


def check_exact(
    tmp_path: Path, data: Callable[[], Any], val: Callable[[], Any], steps: range, **options: Any
) -> None:
    """Check that resuming from each of these steps leads to the same bits."""
    whole = trainer(*[SaveAt(step, tmp_path / str(step)) for step in steps], **options)
    whole.fit(data(), val(), epochs=3)
    for step in steps:
        torch.manual_seed(step)
        resumed = trainer(**options)
        resumed.fit(data(), val(), epochs=3, resume_from=tmp_path / str(step))
        assert same_weights(resumed.model, whole.model), step
        assert resumed.history["train_loss"] == whole.history["train_loss"], step
        assert resumed.history["val_loss"] == whole.history["val_loss"], step


def test_a_generator_of_two_loaders_is_restored_once(tmp_path: Path) -> None:
    """Training and validation loaders that share a generator resume from the right state."""
    shared: list[torch.Generator] = []

    def train() -> Any:
        shared[:] = [torch.Generator().manual_seed(4)]
        return DataLoader(PAIRS, batch_size=4, shuffle=True, generator=shared[0])

    def val() -> Any:
        return DataLoader(TensorDataset(*VAL), batch_size=4, shuffle=True, generator=shared[0])

    check_exact(tmp_path, train, val, range(4, 9))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_stateful_loader_with_a_generator_restores_both(tmp_path: Path) -> None:
    """Its state is its position in the epoch, and its generator determines the next one."""

    def train() -> Any:
        generator = torch.Generator().manual_seed(4)
        return StatefulDataLoader(PAIRS, batch_size=4, shuffle=True, generator=generator)

    check_exact(tmp_path, train, lambda: VAL, range(3, 9))


class Counting:
    """Batches whose order depends on how often they were read."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        for start in range(0, 20, 4):
            inputs, targets = DATA
            yield inputs[start : start + 4] * self.epoch, targets[start : start + 4]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch = state["epoch"]


def test_a_source_with_a_state_keeps_it_between_epochs(tmp_path: Path) -> None:
    """A source that counts its epochs continues to count."""
    whole = trainer(ModelCheckpoint(tmp_path, every_n_epochs=2))
    whole.fit(Counting(), epochs=3)
    resumed = trainer(ModelCheckpoint(tmp_path, every_n_epochs=2))
    resumed.fit(Counting(), epochs=3, resume_from=tmp_path)
    assert same_weights(resumed.model, whole.model)


class Ordered(RandomSampler):
    """A sampler whose order depends only on the epoch that was set."""

    def __init__(self) -> None:
        super().__init__(range(22))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        yield from torch.randperm(22, generator=generator).tolist()


def test_set_epoch_of_a_sampler_is_called(tmp_path: Path) -> None:
    """The user does not have to call it, and a resumed run reads the same order."""
    check_exact(
        tmp_path,
        lambda: DataLoader(PAIRS, batch_size=4, sampler=Ordered()),
        lambda: VAL,
        range(1, 14, 3),
    )


class Drawing(Callback):
    """Draws random numbers in its hooks."""

    def on_epoch_start(self, context: TrainContext) -> None:
        torch.rand(3)

    def on_checkpoint(self, context: TrainContext) -> None:
        torch.rand(3)


def test_hooks_that_draw_numbers_do_not_affect_a_resume(tmp_path: Path) -> None:
    """Neither at the start of an epoch nor after a checkpoint."""
    for step in (3, 6, 9):
        folder = tmp_path / str(step)
        whole = trainer(Drawing(), SaveAt(step, folder))
        whole.fit(DATA, epochs=3)
        resumed = trainer(Drawing(), SaveAt(-1, folder))
        resumed.fit(DATA, epochs=3, resume_from=folder)
        assert same_weights(resumed.model, whole.model)


def test_a_finished_run_has_its_best_weights_when_resumed(tmp_path: Path) -> None:
    """The last checkpoint has the last weights; early stopping restores the best ones."""

    def made() -> Trainer:
        stopping = EarlyStopping(patience=9, restore_best=True)
        return trainer(stopping, ModelCheckpoint(tmp_path), lr=2.0)

    whole = made()
    whole.fit(DATA, VAL, epochs=4)
    again = made()
    again.fit(DATA, VAL, epochs=4, resume_from=tmp_path)
    assert same_weights(again.model, whole.model)
    assert len(again.history) == 4


def test_a_fit_that_is_refused_keeps_the_position_of_a_loaded_checkpoint(tmp_path: Path) -> None:
    """The next one resumes from there, with the states of the callbacks."""
    whole = trainer(EMA(0.5), SaveAt(3, tmp_path / "three"))
    whole.fit(DATA, epochs=2)
    ema = EMA(0.5)
    resumed = trainer(ema)
    resumed.load_checkpoint(tmp_path / "three")
    with pytest.raises(CheckpointError, match="samples"):
        resumed.fit(points(8), epochs=2)
    resumed.fit(DATA, epochs=2)
    assert resumed.state.step == whole.state.step
    assert same_weights(resumed.model, whole.model)


def test_early_stopping_changes_no_weights_in_a_fit_that_it_refused(tmp_path: Path) -> None:
    """If the monitored value does not exist, the loaded weights are kept."""
    first = trainer(EarlyStopping(restore_best=True))
    first.fit(DATA, VAL, epochs=2)
    path = first.save_checkpoint(tmp_path / "two")
    other = trainer(EarlyStopping(restore_best=True))
    other.load_checkpoint(path)
    before = weights_of(other.model)
    with pytest.raises(InvalidArgumentError, match="val_loss"):
        other.fit(DATA, epochs=1)
    assert all(torch.equal(before[n], t) for n, t in other.model.state_dict().items())


def test_a_loaded_checkpoint_can_be_saved_again(tmp_path: Path) -> None:
    """Its position in the middle of an epoch is kept."""
    whole = trainer(SaveAt(3, tmp_path / "three"))
    whole.fit(DATA, epochs=2)
    between = trainer()
    between.load_checkpoint(tmp_path / "three")
    between.save_checkpoint(tmp_path / "again")
    resumed = trainer()
    resumed.fit(DATA, epochs=2, resume_from=tmp_path / "again")
    assert same_weights(resumed.model, whole.model)


def test_a_loaded_checkpoint_without_a_position_is_saved_without_one(tmp_path: Path) -> None:
    """The copy does not contain the position of an earlier run of the same Trainer."""

    def loader() -> Any:
        generator = torch.Generator().manual_seed(4)
        return DataLoader(PAIRS, batch_size=4, shuffle=True, generator=generator)

    used = trainer()
    start = used.save_checkpoint(tmp_path / "start")
    used.fit(loader(), epochs=1)
    used.load_checkpoint(start)
    copy = used.save_checkpoint(tmp_path / "copy")
    from_start, from_copy = trainer(), trainer()
    from_start.fit(loader(), epochs=1, resume_from=start)
    from_copy.fit(loader(), epochs=1, resume_from=copy)
    assert same_weights(from_copy.model, from_start.model)


def test_a_checkpoint_saved_by_hand_keeps_the_generators_of_loaders(tmp_path: Path) -> None:
    """The next fit reads the order that this one would have read."""

    def loader() -> Any:
        generator = torch.Generator().manual_seed(4)
        return DataLoader(PAIRS, batch_size=4, shuffle=True, generator=generator)

    whole, data = trainer(), loader()
    whole.fit(data, epochs=1)
    path = whole.save_checkpoint(tmp_path / "one")
    whole.fit(data, epochs=1)
    resumed = trainer()
    resumed.load_checkpoint(path)
    resumed.fit(loader(), epochs=1)
    assert same_weights(resumed.model, whole.model)


def test_every_callback_gets_the_checkpoint_that_it_requested(tmp_path: Path) -> None:
    """Two requests at the same time are both fulfilled."""
    best, newest = ModelCheckpoint(tmp_path / "a", monitor="train_loss"), tmp_path / "b"
    trainer(best, ModelCheckpoint(newest)).fit(DATA, epochs=2)
    assert best.best_path is not None
    assert best.best_path.is_dir()
    assert len(list(newest.iterdir())) == 2


def test_a_checkpoint_that_is_requested_at_the_end_is_written(tmp_path: Path) -> None:
    """A request in `on_fit_end` is fulfilled after all callbacks have been called."""

    class AtTheEnd(Callback):
        def on_fit_end(self, context: TrainContext) -> None:
            context.request_checkpoint(tmp_path / "end")

    trainer(AtTheEnd()).fit(DATA, epochs=1)
    again = trainer()
    again.load_checkpoint(tmp_path / "end")
    assert again.state.epoch == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda: DATA, lambda: DataLoader(PAIRS, 4, generator=torch.Generator())),
        (lambda: DataLoader(PAIRS, 4), lambda: DataLoader(PAIRS, 4, generator=torch.Generator())),
        (lambda: DataLoader(PAIRS, 4, generator=torch.Generator()), lambda: DataLoader(PAIRS, 4)),
        (lambda: DATA, lambda: DataLoader(PAIRS, 4)),
    ],
)
def test_between_epochs_the_type_of_data_may_change(
    before: Callable[[], Any], after: Callable[[], Any], tmp_path: Path
) -> None:
    """If the generators do not match, a warning says so, and their order starts from scratch."""
    trainer(ModelCheckpoint(tmp_path)).fit(before(), epochs=1)
    resumed = trainer(ModelCheckpoint(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The checkpoint contains the states of . random")
        resumed.fit(after(), epochs=2, resume_from=tmp_path)
    assert resumed.state.epoch == 2


def test_other_metrics_inside_an_epoch_are_refused(tmp_path: Path) -> None:
    """They would cover only a part of the epoch."""
    trainer(SaveAt(3, tmp_path / "three")).fit(DATA, epochs=1)
    with pytest.raises(CheckpointError, match="accuracy"):
        trainer(metrics={}).fit(DATA, epochs=1, resume_from=tmp_path / "three")


def two(optimizer: torch.optim.Optimizer) -> LRScheduler:
    parts: list[LRScheduler] = [LinearLR(optimizer), LinearLR(optimizer)]
    return SequentialLR(optimizer, parts, milestones=[1])


def three(optimizer: torch.optim.Optimizer) -> LRScheduler:
    parts: list[LRScheduler] = [LinearLR(optimizer) for _ in range(3)]
    return SequentialLR(optimizer, parts, milestones=[1, 2])


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """If a schedule does not fit, weights and optimizer are unchanged."""
    first = trainer(lr_scheduler=three)
    first.fit(DATA, epochs=1)
    path = first.save_checkpoint(tmp_path / "one")
    other = trainer(lr_scheduler=two, seed=0)
    before = weights_of(other.model)
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load_checkpoint(path)
    assert all(torch.equal(before[n], t) for n, t in other.model.state_dict().items())
    assert other.optimizer is not None
    assert not other.optimizer.state_dict()["state"]


def test_a_best_value_of_another_monitor_is_refused(tmp_path: Path) -> None:
    """Losses and accuracies cannot be compared."""
    first = trainer(EarlyStopping("val_loss"))
    first.fit(DATA, VAL, epochs=1)
    path = first.save_checkpoint(tmp_path / "one")
    with pytest.raises(CheckpointError, match="val_accuracy"):
        trainer(EarlyStopping("val_accuracy")).load_checkpoint(path)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    """Rounded weights are not those that were saved."""
    path = trainer().save_checkpoint(tmp_path / "start")
    with pytest.raises(CheckpointError, match="float64"):
        quiet_trainer(network().double(), device="cpu").load_checkpoint(path)


def test_another_learning_rate_is_reported_as_ignored(tmp_path: Path) -> None:
    """The state of the optimizer determines it."""
    path = trainer(lr=0.1).save_checkpoint(tmp_path / "start")
    with pytest.warns(UserWarning, match=r"`lr` 0\.1 in the checkpoint and 0\.2 here"):
        trainer(lr=0.2).load_checkpoint(path)


class Seen(Callback):
    """A callback whose state is empty at first."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def on_epoch_end(self, context: TrainContext) -> None:
        self.seen[str(context.state.epoch)] = context.state.step

    def state_dict(self) -> dict[str, Any]:
        return dict(self.seen)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = dict(state)


def test_a_state_that_is_empty_at_first_is_a_state(tmp_path: Path) -> None:
    """The class decides whether a callback has a state, not its content."""
    first = trainer(Seen())
    first.fit(DATA, epochs=1)
    path = first.save_checkpoint(tmp_path / "one")
    seen = Seen()
    trainer(seen).load_checkpoint(path)
    assert seen.seen == {"1": 6}


def test_the_weights_of_a_checkpoint_are_not_the_loaded_ones(tmp_path: Path) -> None:
    """The certificate claims the same with and without a resume."""

    def made() -> Trainer:
        model = freeze_and_replace_head(build_mlp(6, [8], 3, seed=0), num_classes=3)
        return quiet_trainer(model, device="cpu")

    first = made()
    path = first.save_checkpoint(tmp_path / "start")
    second = made()
    second.load_checkpoint(path)
    history = second.fit(DATA, epochs=1)
    assert history.certificate is not None
    assert history.certificate.loaded == ()
    assert len(history.certificate.digests) == 2


@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.ASGD])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_optimizers_keep_the_dtypes_of_their_states(
    tmp_path: Path, optimizer: type[torch.optim.Optimizer], dtype: torch.dtype
) -> None:
    """PyTorch casts loaded states to the dtype of the parameter."""
    data = (DATA[0].to(dtype), DATA[1])

    def made(*callbacks: Callback) -> Trainer:
        model = build_mlp(6, [8], 3, seed=0).to(dtype)
        return quiet_trainer(model, device="cpu", optimizer=optimizer, callbacks=list(callbacks))

    whole = made(SaveAt(4, tmp_path / "four"))
    whole.fit(data, epochs=2)
    resumed = made()
    resumed.fit(data, epochs=2, resume_from=tmp_path / "four")
    assert same_weights(resumed.model, whole.model)


def test_a_metric_that_is_a_module_without_its_own_state_is_refused(tmp_path: Path) -> None:
    """The state dict of a module omits what its methods keep in plain attributes."""

    class Summing(nn.Module):
        total = 0.0

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.total += 1.0

        def compute(self) -> float:
            return self.total

        def reset(self) -> None:
            self.total = 0.0

    saving = ModelCheckpoint(tmp_path, every_n_steps=2)
    with pytest.raises(CheckpointError, match="'sum'"):
        trainer(saving, metrics={"sum": Summing()}).fit(DATA, epochs=1)


class Tracking(nn.Module):
    """A model with a non-persistent buffer that its forward changes."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = build_mlp(6, [], 3, seed=0)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += 0.1
        outputs: Tensor = self.layer(inputs) * (1.0 + self.seen)
        return outputs


def test_non_persistent_buffers_are_restored(tmp_path: Path) -> None:
    """Training depends on them like on any other."""
    whole = quiet_trainer(Tracking(), callbacks=[SaveAt(4, tmp_path / "four")])
    whole.fit(DATA, epochs=2)
    resumed = quiet_trainer(Tracking())
    resumed.fit(DATA, epochs=2, resume_from=tmp_path / "four")
    assert same_weights(resumed.model, whole.model)


def test_persistent_workers_are_refused_between_epochs_too(tmp_path: Path) -> None:
    """Their random states continue from epoch to epoch, and a new process cannot restore them."""
    loader = DataLoader(PAIRS, 4, num_workers=1, persistent_workers=True)
    with pytest.raises(CheckpointError, match="persistent_workers"):
        trainer(ModelCheckpoint(tmp_path)).fit(loader, epochs=1)


class Rate:
    """The function of a schedule, with a state that no checkpoint can contain."""

    def __init__(self) -> None:
        self.table = object()

    def __call__(self, epoch: int) -> float:
        return 1.0


def test_a_state_that_cannot_be_saved_is_found_when_fit_starts(tmp_path: Path) -> None:
    """Not after an epoch of training."""
    saving = ModelCheckpoint(tmp_path)
    made = trainer(saving, lr_scheduler=lambda optimizer: LambdaLR(optimizer, Rate()))
    with pytest.raises(CheckpointError, match="table"):
        made.fit(DATA, epochs=1)
    assert made.state.step == 0


def test_no_checkpoint_is_loaded_in_the_middle_of_a_fit(tmp_path: Path) -> None:
    """A running fit cannot continue from another position."""
    path = trainer().save_checkpoint(tmp_path / "start")

    class Loads(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            made.load_checkpoint(path)

    made = trainer(Loads())
    with pytest.raises(CheckpointError, match="while `fit` is running"):
        made.fit(DATA, epochs=1)


def test_a_signal_in_the_last_hook_is_not_lost() -> None:
    """Training has ended, and the script must end too."""

    class Late(Callback):
        def on_fit_end(self, context: TrainContext) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    made = trainer(Late())
    with pytest.raises(TrainingInterrupted):
        made.fit(DATA, epochs=1)
    assert len(made.history) == 1


def test_an_unrelated_manifest_does_not_hide_a_checkpoint(tmp_path: Path) -> None:
    """A file of that name in a folder of checkpoints may belong to another program."""
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=1)
    (tmp_path / "manifest.json").write_text("{}")
    resumed = trainer(ModelCheckpoint(tmp_path))
    with pytest.warns(UserWarning, match=r"manifest\.json"):
        resumed.fit(DATA, epochs=1, resume_from=tmp_path)
    assert resumed.state.epoch == 1


def test_differences_are_reported_before_anything_changes(tmp_path: Path) -> None:
    """If the warning is turned into an error, the run is unchanged."""
    first = trainer(seed=1)
    first.fit(DATA, epochs=1)
    path = first.save_checkpoint(tmp_path / "one")
    other = trainer(seed=2)
    before = weights_of(other.model)
    with pytest.raises(UserWarning, match="seed 1 -> 2"):  # Warnings are errors in these tests.
        other.load_checkpoint(path)
    assert all(torch.equal(before[n], t) for n, t in other.model.state_dict().items())
    assert other.state.epoch == 0
