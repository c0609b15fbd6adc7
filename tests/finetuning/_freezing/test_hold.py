"""A frozen model stays bit for bit and in eval mode, in any loop."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

from finetunelib import build_mlp, freeze_and_replace_head
from finetunelib.finetuning._freezing.hold import held_in_eval_mode
from finetunelib.finetuning._frozen_hook import keep_in_eval_mode

INPUTS = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
TARGETS = torch.arange(8) % 3


class Block(nn.Module):
    """A submodule with dropout in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 64)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(self.layer(inputs), 0.5, training=self.training)


class Net(nn.Module):
    """A model with everything that depends on train mode: BatchNorm, and dropout in three forms."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.norm = nn.BatchNorm1d(64)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.drop(self.norm(self.block(inputs)))
        features = functional.dropout(features, 0.5, training=self.training)
        outputs: Tensor = self.head(features)
        return outputs


def net() -> Net:
    """Return a model whose BatchNorm no longer has its initial statistics."""
    model = Net()
    model(INPUTS * 2)
    return model


def frozen_net() -> nn.Module:
    """Return that model, frozen, with a new head for three classes."""
    return freeze_and_replace_head(net(), num_classes=3)


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers outside the head."""
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if not name.startswith("head.")
    }


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Return the names outside the head whose values are not bit for bit the same."""
    after = frozen_state(model)
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Take three steps in train mode on all parameters, as an ordinary loop does."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(INPUTS), TARGETS))
        optimizer.step()


def through_pickle(model: nn.Module) -> nn.Module:
    """Return a copy of a model through a pickle."""
    copied = pickle.loads(pickle.dumps(model))
    assert isinstance(copied, nn.Module)
    return copied


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle], ids=["deep", "pickle"])


# Bit for bit


def test_training_leaves_the_frozen_part_bit_for_bit() -> None:
    """Train mode with weight decay and BatchNorm changes neither parameters nor buffers."""
    model = frozen_net()
    before = frozen_state(model)
    train(model)
    assert moved(before, model) == set()


def test_training_moves_the_head() -> None:
    """The part that is not frozen is trained."""
    model = frozen_net()
    before = model.get_parameter("head.weight").detach().clone()
    train(model)
    assert not torch.equal(model.get_parameter("head.weight"), before)


def test_training_gives_frozen_parameters_no_gradient() -> None:
    """After a backward pass only the head has gradients."""
    model = frozen_net()
    train(model)
    assert {name for name, part in model.named_parameters() if part.grad is not None} == {
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
    ],
    ids=["SGD", "AdamW"],
)
def test_freezing_after_a_backward_pass_stops_an_optimizer_with_momentum(
    optimizer_of: Callable[[object], torch.optim.Optimizer],
) -> None:
    """Earlier gradients and momentum do not change a part that was frozen afterwards."""
    model = net()
    optimizer = optimizer_of(list(model.parameters()))
    train(model, optimizer)  # This leaves momentum and gradients.
    freeze_and_replace_head(model, num_classes=3)
    before = frozen_state(model)
    optimizer.step()
    assert moved(before, model) == set()


def test_freezing_drops_the_gradients_of_the_frozen_part() -> None:
    """A remaining gradient would be applied by the next optimizer step."""
    model = net()
    model(INPUTS).sum().backward()
    freeze_and_replace_head(model, num_classes=3)
    assert [name for name, part in model.named_parameters() if part.grad is not None] == []


@COPIES
def test_copy_of_a_frozen_model_is_frozen(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Training does not change the frozen part of a copy."""
    model = copied(frozen_net())
    before = frozen_state(model)
    train(model)
    assert moved(before, model) == set()


@COPIES
def test_second_head_on_a_copy_leaves_it_frozen(copied: Callable[[nn.Module], nn.Module]) -> None:
    """A copy can get another head and stays frozen."""
    model = freeze_and_replace_head(copied(frozen_net()), num_classes=5)
    before = frozen_state(model)
    train(model)
    assert moved(before, model) == set()


def test_second_head_leaves_the_model_frozen() -> None:
    """A model that is frozen twice stays frozen."""
    model = freeze_and_replace_head(frozen_net(), num_classes=5)
    before = frozen_state(model)
    train(model)
    assert moved(before, model) == set()


@pytest.mark.parametrize(
    "normed", [spectral_norm, parametrizations.spectral_norm], ids=["hook", "parametrization"]
)
def test_spectral_norm_is_frozen(normed: Callable[[nn.Linear], nn.Module]) -> None:
    """Its vectors, which a forward in train mode updates, stay bit for bit."""
    model = nn.Sequential()
    model.add_module("body", normed(nn.Linear(4, 6)))
    model.add_module("head", nn.Linear(6, 3))
    freeze_and_replace_head(model, num_classes=3, at="head")
    before = frozen_state(model)
    train(model)
    assert moved(before, model) == set()


def test_hook_registered_before_freezing_runs_in_eval_mode() -> None:
    """The mode is set before any other hook of the module runs."""
    model = net()
    seen: list[bool] = []
    model.norm.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    freeze_and_replace_head(model, num_classes=3)
    seen.clear()
    model.train()
    model(INPUTS)
    assert seen == [False]


# Eval mode in train mode


def test_outputs_in_train_mode_are_those_of_eval_mode() -> None:
    """Dropout is off in all three forms, and BatchNorm uses its running statistics."""
    model = frozen_net()
    expected = model.eval()(INPUTS)
    assert torch.equal(model.train()(INPUTS), expected)


@COPIES
def test_outputs_of_a_copy_in_train_mode_are_those_of_eval_mode(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    """Dropout is off in a copy too."""
    model = copied(frozen_net())
    expected = model.eval()(INPUTS)
    assert torch.equal(model.train()(INPUTS), expected)


def test_dropout_of_the_frozen_part_is_off_before_the_first_training() -> None:
    """No call of `train()` or `eval()` is needed after freezing."""
    model = frozen_net()
    assert torch.equal(model(INPUTS), model(INPUTS))


def test_functional_dropout_of_a_submodule_is_off() -> None:
    """Functional dropout follows the submodule's mode, which stays eval."""
    block = frozen_net().get_submodule("block").train()
    assert not (block(INPUTS) == 0).any()


def test_functional_dropout_of_the_root_is_off() -> None:
    """The root is held in eval mode too, although its head is trained."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 64)
            self.head: nn.Module = nn.Linear(64, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            features = functional.dropout(self.body(inputs), 0.5, training=self.training)
            outputs: Tensor = self.head(features)
            return outputs

    model = Root()
    freeze_and_replace_head(model, head=nn.Identity(), at="head")
    assert not (model.train()(INPUTS) == 0).any()


def test_functional_dropout_of_an_ancestor_is_off() -> None:
    """A module between the root and the head is held in eval mode like the root."""

    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head: nn.Module = nn.Linear(64, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            dropped = functional.dropout(inputs, 0.5, training=self.training)
            outputs: Tensor = self.head(dropped)
            return outputs

    model = nn.Sequential(nn.Linear(4, 64), Top())
    freeze_and_replace_head(model, head=nn.Identity(), at="1.head")
    assert not (model.train()(INPUTS) == 0).any()


def test_dropout_of_the_new_head_is_on() -> None:
    """A dropout in the head is on in train mode and off in eval mode."""
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3))
    model = freeze_and_replace_head(net(), head=head)
    model.train()
    assert not torch.equal(model(INPUTS), model(INPUTS))
    model.eval()
    assert torch.equal(model(INPUTS), model(INPUTS))


def test_batchnorm_of_the_new_head_moves() -> None:
    """BatchNorm in the head updates its statistics in train mode."""
    head = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 3))
    model = freeze_and_replace_head(net(), head=head)
    model.train()
    model(INPUTS)
    assert head.get_buffer("0.num_batches_tracked").item() == 1


def test_frozen_module_that_becomes_a_head_is_released() -> None:
    """A module frozen in one model is trained as the head of another, with its statistics."""
    part = frozen_net().get_submodule("norm")
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    freeze_and_replace_head(model, head=part)
    before = part.get_buffer("num_batches_tracked").item()
    model.train()
    model(INPUTS)
    assert part.get_buffer("num_batches_tracked").item() == before + 1
    assert all(parameter.requires_grad for parameter in part.parameters())


def test_released_module_is_in_train_mode() -> None:
    """A released head is in train mode without a call of `train()`."""
    part = frozen_net().get_submodule("norm")
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    freeze_and_replace_head(model, head=part)
    assert part.training


@COPIES
def test_copy_of_a_frozen_module_that_becomes_a_head_is_released(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    """Releasing a copy does not release the original."""
    original = frozen_net()
    part = copied(original).get_submodule("norm")
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    freeze_and_replace_head(model, head=part)
    model.train()
    model(INPUTS)
    assert part.training
    before = frozen_state(original)
    train(original)
    assert moved(before, original) == set()


# held_in_eval_mode


def test_every_module_outside_the_head_is_held() -> None:
    """The root is held too, and the modules of the head are not."""
    model = freeze_and_replace_head(
        net(), head=nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3))
    ).train()
    free = {name for name, part in model.named_modules() if not held_in_eval_mode(part)}
    assert free == {"head", "head.0", "head.1"}


def test_module_that_was_not_frozen_is_not_held() -> None:
    """Eval mode and `requires_grad=False` alone do not hold a module."""
    assert not held_in_eval_mode(nn.Linear(2, 2).requires_grad_(False).eval())


@COPIES
def test_copy_is_held(copied: Callable[[nn.Module], nn.Module]) -> None:
    """The modules of a copy are held like those of the original."""
    model = copied(frozen_net())
    assert held_in_eval_mode(model.get_submodule("block"))
    assert not held_in_eval_mode(model.get_submodule("head"))


def test_state_dict_of_a_frozen_model_has_the_same_names() -> None:
    """Freezing adds nothing to a state dict."""
    assert frozen_net().state_dict().keys() == Net().state_dict().keys()


# The hook and its path


def test_hook_is_found_under_the_path_of_stored_models() -> None:
    """A pickle from the first release names the hook by its import path, which never changes."""
    stored = Path(__file__).with_name("frozen_hook.pkl").read_bytes()
    assert pickle.loads(stored) is keep_in_eval_mode


def test_hook_sets_eval_mode_and_passes_the_inputs_on() -> None:
    """It changes the mode of the module alone and returns `None`, which keeps the inputs."""
    module = nn.Sequential(nn.Dropout()).train()
    result: object = keep_in_eval_mode(module, (INPUTS,))  # type: ignore[func-returns-value]
    assert result is None
    assert not module.training
    assert module[0].training


@pytest.mark.slow
def test_hooks_of_another_process_do_not_displace_it(tmp_path: Path) -> None:
    """A model frozen in another process stays frozen, however many hooks are registered later.

    PyTorch numbers hooks per process, and would reuse a number that is not reserved.
    """
    model = freeze_and_replace_head(build_mlp(4, [64], 3, dropout=0.5, seed=0), num_classes=3)
    numbers = [number for part in model.modules() for number in part._forward_pre_hooks]
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(model))
    program = f"""
import pickle, sys
import torch
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
for part in model.modules():
    for _ in range({max(numbers) + 50}):
        part.register_forward_pre_hook(lambda module, args: None)
model.train()
inputs = torch.ones(2, 4)
torch.testing.assert_close(model(inputs), model(inputs), rtol=0, atol=0)
print("trained modes:", sorted(name for name, part in model.named_modules() if part.training))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "trained modes: ['head']\n"
