"""Gradual unfreezing: the order of the blocks, the bits of the run, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.callbacks import GradualUnfreezing, ModelCheckpoint
from finetunelib.errors import CheckpointError, FreezeError, InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import freeze, parameter_groups, unfreeze
from finetunelib.training import Callback, TrainContext
from training.tiny import same_bits


class Net(nn.Module):
    """Three blocks, two of which have state that depends on the mode, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.second = nn.Linear(6, 6, bias=False)  # A bias before a norm has no gradient.
        self.third = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.third(self.second(self.first(x))).relu())
        return out


BLOCKS = [["third"], ["second"], ["first.1", "first.2"], ["first.0"]]


def model() -> Net:
    """Return a model whose head alone is trainable."""
    torch.manual_seed(0)
    return freeze_and_replace_head(Net(), 3)


def data() -> tuple[Tensor, Tensor]:
    """Return 24 samples of three classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 4, generator=generator), torch.arange(24) % 3


def trainer(net: nn.Module, *callbacks: Callback, **options: Any) -> Trainer:
    """Return a Trainer with small batches."""
    return Trainer(net, batch_size=8, callbacks=callbacks, progress=False, **options)


class Trainable(Callback):
    """Records the names of the trainable parameters in each epoch."""

    def __init__(self) -> None:
        self.epochs: list[set[str]] = []

    def on_epoch_end(self, context: TrainContext) -> None:
        named = context.model.named_parameters()
        self.epochs.append({name.rpartition(".")[0] for name, p in named if p.requires_grad})


def test_blocks_are_unfrozen_from_the_head_down() -> None:
    """One more block is trained after each epoch, and the last ones stay frozen."""
    seen, unfreezing = Trainable(), GradualUnfreezing()
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    history = trainer(net, unfreezing, seen).fit(data(), epochs=3)
    assert seen.epochs == [{"head"}, {"head", "third"}, {"head", "third", "second"}]
    assert unfreezing.unfrozen == BLOCKS[:2]
    certificate = history.certificate
    assert certificate is not None
    assert all(name.startswith("first.") for name in certificate.digests)
    after = net.state_dict()
    stayed = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert stayed == {name for name in before if name.startswith("first.")}


def test_run_equals_fits_with_an_unfreeze_between_them() -> None:
    """The callback only calls `unfreeze`: the weights have the bits of three single epochs."""
    net, by_hand = model(), model()
    trainer(net, GradualUnfreezing(), max_grad_norm=1.0).fit(data(), epochs=3)
    loop = trainer(by_hand, max_grad_norm=1.0)
    for block in [[], *BLOCKS[:2]]:
        if block:
            unfreeze(by_hand, block)
        for name in ("third", "second"):
            by_hand.get_submodule(name).train(name in block or by_hand.get_submodule(name).training)
        by_hand.train()
        loop.fit(data(), epochs=1)
    assert same_bits(net.state_dict(), by_hand.state_dict())


def test_two_fits_equal_one() -> None:
    """An unfrozen BatchNorm is trained in a second `fit` too."""
    once, twice = model(), model()
    trainer(once, GradualUnfreezing()).fit(data(), epochs=4)
    continued = trainer(twice, GradualUnfreezing())
    continued.fit(data(), epochs=2)
    continued.fit(data(), epochs=2)
    assert same_bits(once.state_dict(), twice.state_dict())


@pytest.mark.parametrize("every_n_steps", [3, 2])
def test_resumed_run_has_the_same_bits(tmp_path: Path, every_n_steps: int) -> None:
    """Resumed at the end of an epoch or inside one, with a schedule and groups by depth."""

    def run(folder: Path, epochs: int, *, resume: bool) -> nn.Module:
        net = model()
        groups = parameter_groups(net, 0.1, decay=0.5)
        options: dict[str, Any] = {
            "optimizer": torch.optim.SGD(groups, momentum=0.9),
            "lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        }
        saving = ModelCheckpoint(folder, every_n_steps=every_n_steps, keep=9)
        trained = trainer(net, GradualUnfreezing(), saving, **options)
        trained.fit(data(), epochs=epochs, resume_from=folder if resume else None)
        return net

    whole = run(tmp_path / "a", 4, resume=False)
    run(tmp_path / "b", 2, resume=False)
    assert same_bits(whole.state_dict(), run(tmp_path / "b", 4, resume=True).state_dict())


def test_plateau_unfreezes_the_next_block() -> None:
    """A value that cannot improve unfreezes one block after the given number of epochs."""
    seen = Trainable()
    unfreezing = GradualUnfreezing(2, monitor="val_loss", min_delta=100.0)
    history = trainer(model(), unfreezing, seen).fit(data(), _other_data(), epochs=6)
    assert len(history) == 6
    # The first epoch is the best; the next two do not improve on it.
    assert [len(names) for names in seen.epochs] == [1, 1, 1, 2, 2, 3]


def test_improving_value_keeps_the_model_frozen() -> None:
    """A direction in which every value is better unfreezes nothing."""
    unfreezing = GradualUnfreezing(1, monitor="step", mode="max")
    with pytest.raises(InvalidArgumentError, match="step"):
        trainer(model(), unfreezing).fit(data(), epochs=1)
    rising = GradualUnfreezing(1, monitor="train_count", mode="max")
    counter = _Counter()
    trained = trainer(model(), rising, metrics={"count": counter})
    trained.fit(data(), epochs=4)
    assert rising.unfrozen == []


def _other_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(12, 4, generator=generator), torch.arange(12) % 3


class _Counter:
    """A metric that is larger in each epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch."""

    def compute(self) -> float:
        """Return the number of the epoch."""
        self.epochs += 1
        return float(self.epochs)

    def reset(self) -> None:
        """Start an epoch."""


def test_own_parts_and_patterns_are_unfrozen_in_their_order() -> None:
    """Names, several at once, and patterns; a part that is not frozen costs no epoch."""
    seen = Trainable()
    unfreezing = GradualUnfreezing(parts=["head", "first.*", ["second", "third"]])
    trainer(model(), unfreezing, seen).fit(data(), epochs=3)
    assert seen.epochs[1] == {"head", "first.0", "first.1"}
    assert seen.epochs[2] == {"head", "first.0", "first.1", "second", "third"}


def test_number_of_blocks_can_be_limited() -> None:
    """The rest stays frozen."""
    unfreezing = GradualUnfreezing(max_blocks=1)
    trainer(model(), unfreezing).fit(data(), epochs=4)
    assert unfreezing.unfrozen == BLOCKS[:1]


def test_model_without_a_frozen_block_is_refused() -> None:
    """The message says what to call; nothing is trained."""
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(FreezeError, match="except_last=0"):
        trainer(net, GradualUnfreezing()).fit(data(), epochs=1)
    assert same_bits(before, net.state_dict())


def test_model_without_a_known_head_needs_parts() -> None:
    """Blocks are counted from the head."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU())
    freeze(net, "0")
    with pytest.raises(FreezeError, match="parts="):
        trainer(net, GradualUnfreezing()).fit(data(), epochs=1)
    trainer(net, GradualUnfreezing(parts=["0"])).fit(data(), epochs=1)


def test_unknown_part_is_named() -> None:
    """Before the first step."""
    with pytest.raises(InvalidArgumentError, match="fourth"):
        trainer(model(), GradualUnfreezing(parts=["fourth"])).fit(data(), epochs=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"every": 0}, InvalidArgumentError),
        ({"every": 1.5}, InvalidTypeError),
        ({"max_blocks": 0}, InvalidArgumentError),
        ({"mode": "min"}, InvalidArgumentError),
        ({"monitor": "val_loss", "mode": "down"}, InvalidArgumentError),
        ({"parts": []}, InvalidArgumentError),
        ({"parts": [[]]}, InvalidArgumentError),
        ({"parts": "head"}, InvalidTypeError),
        ({"parts": [3]}, (InvalidTypeError, TypeError)),
    ],
)
def test_wrong_arguments_are_errors(
    arguments: dict[str, Any], error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """When the callback is created."""
    with pytest.raises(error):
        GradualUnfreezing(**arguments)


@pytest.mark.parametrize(
    "change", [{"count": -1}, {"waited": "2"}, {"improvement": {"monitor": "a", "best": 1.0}}]
)
def test_damaged_state_is_refused(change: dict[str, Any]) -> None:
    """Before anything is loaded."""
    unfreezing = GradualUnfreezing()
    with pytest.raises(CheckpointError):
        unfreezing.check_state_dict(unfreezing.state_dict() | change, model())
