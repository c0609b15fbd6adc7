"""Tests of `cache_features`: what it proves before it computes features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning import cache_features, freeze
from finetunelib.finetuning._features import storage

INPUTS = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(30) % 3
DATA = (INPUTS, TARGETS)


def frozen() -> nn.Module:
    """Return a network of which only the head is trained."""
    model = build_mlp(8, [16], 10, dropout=0.5, normalization=nn.BatchNorm1d, seed=0)
    torch.manual_seed(1)
    return freeze_and_replace_head(model, num_classes=3)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules have the same values."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_features_are_what_the_head_receives() -> None:
    """They are those of the model in eval mode, and the head is the one in the model."""
    model = frozen()
    (features, targets), head = cache_features(model, DATA, progress=False)
    assert torch.equal(targets, TARGETS)
    assert head is model.get_submodule("head")
    assert torch.equal(head(features), model.eval()(INPUTS))


def test_inputs_alone_give_features_alone() -> None:
    """Without targets, the result has none."""
    features, _ = cache_features(frozen(), INPUTS, progress=False)
    assert isinstance(features, Tensor)
    assert features.shape == (30, 16)


def test_a_data_loader_in_order_is_accepted() -> None:
    """Its targets are collected."""
    loader = DataLoader(TensorDataset(*DATA), batch_size=10)
    (features, targets), _ = cache_features(frozen(), loader, progress=False)
    (expected, _), _ = cache_features(frozen(), DATA, batch_size=10, progress=False)
    assert torch.equal(features, expected)
    assert torch.equal(targets, TARGETS)


def test_training_the_head_on_features_equals_training_the_model() -> None:
    """The weights have the same bits."""
    one, other = frozen(), frozen()
    features, head = cache_features(one, DATA, batch_size=10, progress=False)
    Trainer(head, batch_size=10, progress=False).fit(features, epochs=3)
    Trainer(other, batch_size=10, progress=False, cache_features=False).fit(DATA, epochs=3)
    assert same(one, other)


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    """Modes, values, hooks and random states."""
    model = frozen()
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    cache_features(model, DATA, progress=False)
    assert same(model, before)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


class Wrapped(nn.Module):
    """A backbone and a head, with something else around them."""

    def __init__(self, *, wrap: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 16)
        self.drop: nn.Module = nn.Dropout(0.0)
        self.head = nn.Linear(16, 3)
        self.wrap = wrap
        self.register_buffer("calls", torch.zeros(1))
        freeze(self, "backbone")

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.head(self.drop(self.backbone(inputs)))
        return outputs if self.wrap is None else self.wrap(outputs)


class Counting(Wrapped):
    """Counts its calls in a buffer."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return super().forward(inputs)


class Centered(Wrapped):
    """Subtracts the mean over the batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs - inputs.mean(0))


class Twice(Wrapped):
    """Calls its head twice."""

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.backbone(inputs)
        outputs: Tensor = self.head(features) + self.head(features)
        return outputs


class Tied(nn.Module):
    """Multiplies with the weight of its head first, under another name or none."""

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8)
        self.first = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 8, bias=False)
        if registered:
            self.first.weight = self.head.weight
        self.registered = registered
        freeze(self, "frozen")
        self.first.requires_grad_(requires_grad=registered)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.first.weight if self.registered else self.head.weight
        outputs: Tensor = self.head(self.frozen(inputs @ weight))
        return outputs


def all_frozen() -> nn.Module:
    """Return a model without a trainable parameter."""
    model = build_mlp(8, [16], 3, seed=0)
    freeze(model)
    return model


def _doubled(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return output * 2


def hooked() -> nn.Module:
    """Return a model whose backbone has a hook."""
    model = Wrapped()
    model.backbone.register_forward_hook(_doubled)
    return model


def with_dropout() -> nn.Module:
    """Return a model with an active dropout before its head."""
    model = Wrapped()
    model.drop = nn.Dropout()
    return model


class _Draws(nn.Identity):
    """Draws a random number for nothing."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        torch.rand(1)
        return input


def drawing() -> nn.Module:
    """Return a model that draws random numbers which do not matter."""
    model = Wrapped()
    model.drop = _Draws()
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: build_mlp(8, [16], 3, seed=0), "not all in one module"),
        (all_frozen, "no parameter is trained"),
        (lambda: Wrapped(wrap=torch.sigmoid), "changes the outputs of `head`"),
        (lambda: Tied(registered=True), "depends on a parameter that is trained"),
        (lambda: Tied(registered=False), "depends on a parameter that is trained"),
        (Counting, "the buffer `calls`"),
        (Centered, "other samples in its batch"),
        (Twice, "not called once"),
        (hooked, "a hook of a Linear"),
        (with_dropout, "random numbers are drawn"),
        (drawing, "random numbers are drawn before `head`"),
    ],
    ids=[
        "nothing-frozen",
        "all-frozen",
        "sigmoid-after-head",
        "tied",
        "used-before",
        "buffer",
        "batch-mean",
        "head-twice",
        "hook",
        "dropout",
        "draws",
    ],
)
def test_a_model_whose_features_may_differ_is_refused(
    build: Callable[[], nn.Module], reason: str
) -> None:
    """The error names the reason, and the model is as it was."""
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidArgumentError, match=reason):
        cache_features(model, DATA, progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_dropout_that_belongs_to_the_head_is_accepted() -> None:
    """The module around the dropout and the last layer is the head then."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.Dropout(), nn.Linear(16, 3)))
    freeze(model, "0")
    _, head = cache_features(model, DATA, progress=False)
    assert head is model[1]


def test_the_head_is_not_run_over_the_data() -> None:
    """Its BatchNorm would count the batches, and its dropout would draw random numbers."""
    head = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3))
    model = nn.Sequential(nn.Linear(8, 16), head)
    freeze(model, "0")
    cache_features(model, DATA, batch_size=4, progress=False)
    assert head.get_buffer("0.num_batches_tracked").item() == 0


def test_large_features_are_mapped_to_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have the same values, and the file is gone."""
    (expected, _), _ = cache_features(frozen(), DATA, progress=False)
    monkeypatch.setattr(storage, "available_memory", lambda: 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (features, _), _ = cache_features(frozen(), DATA, progress=False)
    assert torch.equal(features, expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 8, 33])
@pytest.mark.parametrize("hidden", [[4], [8, 8], [33]])
def test_small_products_are_cached_only_if_no_position_in_a_batch_changes_a_bit(
    hidden: list[int], batch_size: int
) -> None:
    """The kernels of small matrix products can treat the last rows of a batch in another way."""
    for width in (3, 6, 17):
        inputs = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
        data = (inputs, torch.arange(40) % 3)

        def fitted(cached: Literal["auto", False], data: tuple[Tensor, Tensor] = data) -> nn.Module:
            layers = build_mlp(data[0].shape[1], hidden, 3, normalization=nn.BatchNorm1d, seed=0)
            freeze(layers, except_last=0)
            options: dict[str, Any] = {"batch_size": batch_size, "progress": False}
            Trainer(layers, lr=0.1, cache_features=cached, **options).fit(data, epochs=3)
            return layers

        assert same(fitted("auto"), fitted(False))


def test_features_without_values_to_compare_are_refused() -> None:
    """Zeros have the same bits in any order."""
    model = build_mlp(4, [8], 3, seed=0)
    freeze(model, except_last=0)
    with torch.no_grad():
        model.get_parameter("backbone.1.bias").fill_(-100.0)
    with pytest.raises(InvalidArgumentError, match="zero"):
        cache_features(model, (torch.randn(20, 4), torch.arange(20) % 3))
