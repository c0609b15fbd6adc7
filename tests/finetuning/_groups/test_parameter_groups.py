"""Parameter groups: each parameter once, the depth of its layer, rates and weight decay."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.errors import (
    HeadNotFoundError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.finetuning import ParameterGroups, parameter_groups
from training.tiny import same_bits


class Backwards(nn.Module):
    """Registers its layers in another order than the forward pass uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.late = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.token = nn.Parameter(torch.zeros(1, 5))
        self.scale = nn.Parameter(torch.ones(1))
        self.early = nn.Linear(5, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(x).relu() + self.token
        out: Tensor = self.head(self.norm(self.late(x)).relu()) * self.scale
        return out


class Tied(nn.Module):
    """The output layer has the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.positions = nn.Embedding(8, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x).relu()
        out: Tensor = self.out(x)
        return out


def rates(model: nn.Module, groups: ParameterGroups) -> dict[str, float]:
    """Return the learning rate of each parameter by name, each of which is in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group["lr"]
    assert found.keys() == set(names.values())
    assert [sorted(names[id(p)] for p in group["params"]) for group in groups] == [
        sorted(own) for own in groups.names
    ]
    return found


def test_depth_follows_the_order_of_execution() -> None:
    """Not the order of registration. Norms, tokens and unused layers have a place too."""
    model = Backwards()
    found = rates(model, parameter_groups(model, 1.0, decay=0.5))
    assert found["head.weight"] == found["head.bias"] == found["scale"] == 1.0
    assert found["late.weight"] == found["late.bias"] == found["norm.weight"] == 0.5
    assert found["early.weight"] == found["token"] == 0.25
    assert found["unused.weight"] == 0.25


def test_head_has_its_own_rate() -> None:
    """The other layers count from `lr`."""
    model = build_mlp(4, [8, 8], 3)
    found = rates(model, parameter_groups(model, 0.1, decay=0.5, head_lr=3.0))
    assert found["head.weight"] == 3.0
    assert found["backbone.3.weight"] == 0.1 * 0.5
    assert found["backbone.1.bias"] == 0.1 * 0.5**2


def test_biases_and_norms_have_no_weight_decay() -> None:
    """Unless the caller names other parts, or none; the rest has the given decay."""
    model = Backwards()

    def undecayed(**arguments: Any) -> set[str]:
        groups = parameter_groups(model, 1.0, weight_decay=0.1, **arguments)
        decays = [group["weight_decay"] for group in groups]
        assert set(decays) <= {0.0, 0.1}
        return {
            name
            for names, decay in zip(groups.names, decays, strict=True)
            for name in names
            if decay == 0.0
        }

    small = {name for name, parameter in model.named_parameters() if parameter.dim() <= 1}
    assert undecayed() == small
    assert undecayed(no_weight_decay=["token", "norm"]) == {"token", "norm.weight", "norm.bias"}
    assert undecayed(no_weight_decay="*.bias") == {n for n in small if n.endswith("bias")}
    assert undecayed(no_weight_decay=[]) == set()
    model.no_weight_decay = lambda: {"token"}  # type: ignore[assignment]  # timm's convention
    assert undecayed() == small | {"token"}


def test_decay_of_the_optimizer_is_left_alone() -> None:
    """Without `weight_decay`, only the groups without decay have the key."""
    groups = parameter_groups(build_mlp(4, [8], 3), 1.0)
    assert [group.get("weight_decay") for group in groups] == [None, 0.0, None, 0.0]


def test_tied_weight_is_in_the_layer_that_uses_it_first() -> None:
    """Each parameter is in one group; embeddings in a row are one layer."""
    model = Tied()
    tokens = torch.zeros(2, 8, dtype=torch.long)
    found = rates(model, parameter_groups(model, 1.0, decay=0.5, head="out", example_input=tokens))
    assert found["layers.1.weight"] == 0.5
    assert found["layers.0.weight"] == 0.25
    assert found["embedding.weight"] == found["positions.weight"] == 0.125
    with pytest.raises(InvalidArgumentError, match="shares all"):
        parameter_groups(model, 1.0, head_lr=2.0, head="out", example_input=tokens)


def test_recurrent_and_attention_layers_are_placed() -> None:
    """Their weights are used by functions, and not by modules that are called."""
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    lstm = nn.Sequential(OrderedDict(a=attention, b=nn.Flatten(), c=nn.Linear(40, 3)))
    found = rates(lstm, parameter_groups(lstm, 1.0, decay=0.5, example_input=torch.zeros(2, 5, 8)))
    assert {found[name] for name in found if name.startswith("a.")} <= {0.5, 0.25, 0.125, 0.0625}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 3)
            self.cell = nn.LSTM(2, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.cell(x)[0][:, -1])
            return out

    model = Recurrent()
    found = rates(
        model, parameter_groups(model, 1.0, decay=0.5, example_input=torch.zeros(2, 3, 2))
    )
    assert {rate for name, rate in found.items() if name.startswith("cell")} == {0.5}


def test_model_is_left_as_it_was() -> None:
    """Bits, modes, gradients, hooks and the random state."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    parameter_groups(model, 1.0, decay=0.5)
    assert same_bits(before, model.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_equals_a_hand_written_loop() -> None:
    """With groups by depth, and a frozen backbone that is in the groups too."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 4), torch.arange(16) % 3

    def model() -> nn.Module:
        return freeze_and_replace_head(build_mlp(4, [8, 8], 5, seed=0), head=nn.Linear(8, 3))

    torch.manual_seed(1)
    ours = model()
    torch.manual_seed(1)
    by_hand = model()

    def optimizer(of: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(of, 0.1, decay=0.5, weight_decay=0.1))

    trainer = Trainer(ours, optimizer=optimizer(ours), batch_size=16, progress=False)
    trainer.fit((inputs, targets), epochs=3)
    loop = optimizer(by_hand)
    by_hand.train()
    for _ in range(3):
        loop.zero_grad()
        nn.functional.cross_entropy(by_hand(inputs), targets).backward()  # type: ignore[no-untyped-call]
        loop.step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_optimizers_do_not_share_groups() -> None:
    """Each optimizer gets its own dicts, which it may change."""
    groups = parameter_groups(build_mlp(4, [], 3), 0.5)
    first, second = torch.optim.SGD(groups), torch.optim.SGD(groups)
    first.param_groups[0]["lr"] = 9.0
    assert second.param_groups[0]["lr"] == 0.5
    assert groups[0]["lr"] == 0.5
    assert [group["lr"] for group in groups[:2]] == [0.5, 0.5]


def test_table_lists_each_group() -> None:
    """The layers, the number of tensors and values, the rate and the decay."""
    lines = repr(parameter_groups(build_mlp(4, [8], 3), 0.1, decay=0.5)).splitlines()
    assert lines[0].split() == [
        "depth",
        "layers",
        "tensors",
        "values",
        "learning",
        "rate",
        "weight",
        "decay",
    ]
    assert lines[1].split() == ["0", "head", "1", "24", "0.1", "default"]
    assert lines[4].split() == ["1", "backbone.1", "1", "8", "0.05", "0"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"lr": 0}, InvalidArgumentError),
        ({"lr": float("nan")}, InvalidArgumentError),
        ({"lr": float("inf")}, InvalidArgumentError),
        ({"lr": "0.1"}, InvalidTypeError),
        ({"decay": 0}, InvalidArgumentError),
        ({"decay": 1.5}, InvalidArgumentError),
        ({"head_lr": -1.0}, InvalidArgumentError),
        ({"weight_decay": -0.1}, InvalidArgumentError),
        ({"weight_decay": float("inf")}, InvalidArgumentError),
        ({"head": "nothing"}, InvalidArgumentError),
        ({"head": "backbone.*"}, InvalidArgumentError),
        ({"no_weight_decay": "nothing"}, InvalidArgumentError),
        ({"example_input": torch.zeros(2, 3)}, InvalidInputError),
    ],
)
def test_wrong_arguments_are_errors(arguments: dict[str, Any], error: type[Exception]) -> None:
    """The message names the argument."""
    given = {"lr": 0.1, **arguments}
    with pytest.raises(error, match=next(iter(arguments))):
        parameter_groups(build_mlp(4, [8, 8], 3), **given)


def test_head_rate_without_a_head_is_an_error() -> None:
    """The message says how to name it."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU())
    with pytest.raises(HeadNotFoundError, match="head="):
        parameter_groups(model, 0.1, head_lr=1.0)
    found = rates(model, parameter_groups(model, 1.0, decay=0.5))
    assert (found["2.weight"], found["0.weight"]) == (1.0, 0.5)
    found = rates(model, parameter_groups(model, 1.0, decay=0.5, head_lr=2.0, head="2"))
    assert (found["2.weight"], found["0.weight"]) == (2.0, 0.5)


def test_model_without_parameters_is_an_error() -> None:
    """There is nothing to optimize."""
    with pytest.raises(InvalidArgumentError, match="no parameters"):
        parameter_groups(nn.ReLU(), 0.1)
