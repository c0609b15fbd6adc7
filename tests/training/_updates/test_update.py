"""The update of the weights: the bits of `optimizer.step()`, and when it is called itself."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from finetunelib.training._updates import direct
from finetunelib.training._updates.direct import collect_for
from finetunelib.training._updates.update import (
    DirectUpdate,
    OptimizerUpdate,
    Update,
    choose_update,
)
from training.tiny import WIDTH, plain_network, points, quiet_trainer

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

STEPS = 4


def sgd(**options: Any) -> Build:
    """Return a function that builds SGD."""
    return lambda groups: SGD(groups, **options)


def adam(**options: Any) -> Build:
    """Return a function that builds Adam."""
    return lambda groups: Adam(groups, **options)


def adamw(**options: Any) -> Build:
    """Return a function that builds AdamW."""
    return lambda groups: AdamW(groups, **options)


#: Options for which the functions of PyTorch are called.
DIRECT: dict[str, Build] = {
    "sgd": sgd(),
    "momentum": sgd(momentum=0.9),
    "nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampening": sgd(momentum=0.9, dampening=0.5, maximize=True),
    "tensors": sgd(lr=torch.tensor(0.1), weight_decay=torch.tensor(0.1), momentum=0.5),
    "foreach=False": sgd(foreach=False, fused=False),
    "adam": adam(),
    "amsgrad": adam(amsgrad=True, weight_decay=0.1, maximize=True),
    "tensor betas": adam(lr=torch.tensor([0.1]), betas=(torch.tensor(0.9), torch.tensor(0.99))),
    "decoupled": adam(decoupled_weight_decay=True, weight_decay=0.1),
    "adamw": adamw(lr=0.1, betas=(0.8, 0.9), eps=1e-3),
}

#: Options for which only `optimizer.step()` itself is called.
OWN: dict[str, Build] = {
    "foreach": sgd(foreach=True, momentum=0.9),
    "fused": sgd(fused=True),
    "fused adam": adam(fused=True),
    "foreach adam": adamw(foreach=True),
    "another class": lambda groups: torch.optim.RMSprop(groups, lr=0.1),
}


class Model(nn.Module):
    """Three layers, the last of which an input decides to use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])

    def forward(self, inputs: Tensor, *, used: int) -> Tensor:
        """Return the outputs of the first `used` layers."""
        for layer in list(self.layers)[:used]:
            inputs = layer(inputs).tanh()
        return inputs.square().mean()


def optimizer_of(model: Model, build: Build) -> torch.optim.Optimizer:
    """Return an optimizer with two groups, one with options of its own."""
    first, *others = model.layers
    rest = [parameter for layer in others for parameter in layer.parameters()]
    return build([{"params": list(first.parameters()), "lr": 0.02}, {"params": rest}])


def train(model: Model, update: Update, change: Callable[[int, Any], None]) -> None:
    """Take steps: the last layer is used late, the first is frozen for a while, lr changes."""
    optimizer = update.optimizer
    for step in range(STEPS):
        model.layers[0].requires_grad_(step != 2)
        update.clear()
        assert all(p.grad is None for p in model.parameters())
        inputs = torch.full((2, 3), 1.0 + step)
        model(inputs, used=3 if step > 1 else 2).backward()
        optimizer.param_groups[1]["lr"] = optimizer.param_groups[1]["lr"] * 0.5
        change(step, optimizer)
        update.step()


def states(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a copy of the state dict of an optimizer."""
    return copy.deepcopy(optimizer.state_dict())


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal bit for bit, with the same types."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and type(one) is type(other)


def check_same(
    build: Build, change: Callable[[int, Any], None] = lambda step, optimizer: None
) -> Update:
    """Assert that an update has the bits of the optimizer's own methods, and return it."""
    expected, model = Model(), Model()
    plain = OptimizerUpdate(optimizer_of(expected, build))
    chosen = choose_update(optimizer_of(model, build))
    train(expected, plain, change)
    train(model, chosen, change)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert same(states(chosen.optimizer), states(plain.optimizer))
    return chosen


@pytest.mark.parametrize("name", DIRECT)
def test_update_has_the_bits_of_the_optimizer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With frozen and unused parameters, two groups and a learning rate that changes."""
    called: list[object] = []
    for function in ("sgd", "adam"):
        original = getattr(direct, function)

        def spy(*args: Any, original: Any = original, **options: Any) -> None:
            called.append(original)
            original(*args, **options)

        monkeypatch.setattr(direct, function, spy)
    assert isinstance(check_same(DIRECT[name]), DirectUpdate)
    # Not the first step, and not the first one of the last layer, if they create a state.
    assert len(called) in (2 * STEPS, 2 * (STEPS - 2))


@pytest.mark.parametrize("name", OWN)
def test_other_optimizers_take_their_own_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that chooses another implementation, or another class, is left to PyTorch."""
    for function in ("sgd", "adam"):
        monkeypatch.setattr(direct, function, None)
    check_same(OWN[name])


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("option", ["foreach", "differentiable"])
def test_option_that_is_set_between_two_steps_is_followed(name: str, option: str) -> None:
    """A callback may change a parameter group."""

    def change(step: int, optimizer: Any) -> None:
        if step == 2:
            optimizer.param_groups[0][option] = True

    check_same(DIRECT[name], change)


@pytest.mark.parametrize("name", ["momentum", "amsgrad"])
def test_state_that_is_replaced_between_two_steps_is_used(name: str) -> None:
    """Loading a state, clearing it and changing it all take effect in the next step."""

    def change(step: int, optimizer: Any) -> None:
        if step == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif step == 2:
            optimizer.state.clear()
        for state in optimizer.state.values():
            for key, value in state.items():
                state[key] = value * 2

    check_same(DIRECT[name], change)


def test_momentum_that_is_set_later_begins_there() -> None:
    """The buffers are created by the step that needs them first."""

    def change(step: int, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["momentum"] = 0.9 * (step == 2)

    check_same(DIRECT["sgd"], change)


def counting(method: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    """Return a method that also counts its calls. It looks like the original to `inspect`."""

    @functools.wraps(method)
    def counted(*args: Any) -> Any:
        seen.append(1)
        return method(*args)

    return counted


def observed(watch: Callable[[torch.optim.Optimizer, list[int]], Any]) -> int:
    """Return how many of four steps were seen by a watcher that is added after the second."""
    model = Model()
    seen: list[int] = []
    update = choose_update(optimizer_of(model, sgd(momentum=0.9)))
    assert isinstance(update, DirectUpdate)

    def change(step: int, optimizer: Any) -> None:
        if step == 2:
            watch(optimizer, seen)

    train(model, update, change)
    return len(seen)


def test_hook_sees_every_step_after_it_was_added() -> None:
    """Hooks of an optimizer, and those of all optimizers."""
    handles = []

    def own(optimizer: torch.optim.Optimizer, seen: list[int]) -> None:
        optimizer.register_step_post_hook(lambda *_: seen.append(1))

    def everyones(_: torch.optim.Optimizer, seen: list[int]) -> None:
        hook = torch_optimizer.register_optimizer_step_pre_hook(lambda *_: seen.append(1))
        handles.append(hook)

    try:
        assert (observed(own), observed(everyones)) == (2, 2)
    finally:
        handles[0].remove()


def test_method_that_is_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the optimizer, or on its class as libraries that log do, with or without `wraps`."""

    def on_optimizer(optimizer: Any, seen: list[int]) -> None:
        optimizer.step = counting(optimizer.step, seen)

    def on_class(_: torch.optim.Optimizer, seen: list[int]) -> None:
        monkeypatch.setattr(SGD, "step", counting(SGD.step, seen))

    assert (observed(on_optimizer), observed(on_class)) == (2, 2)
    # The class is still replaced, so a new update calls it from the beginning.
    assert isinstance(choose_update(optimizer_of(Model(), sgd())), OptimizerUpdate)


def test_zero_grad_that_is_replaced_is_called() -> None:
    """An optimizer may count its calls, or keep the gradients as zeros."""
    model = Model()
    seen: list[int] = []
    update = choose_update(optimizer_of(model, sgd()))
    optimizer: Any = update.optimizer
    optimizer.zero_grad = counting(optimizer.zero_grad, seen)
    train(model, update, lambda step, optimizer: None)
    assert len(seen) == STEPS
    assert isinstance(choose_update(optimizer), OptimizerUpdate)


def test_profiler_sees_the_steps() -> None:
    """A profile has the entries of `optimizer.step()` and `optimizer.zero_grad()`."""
    model = Model()
    update = choose_update(optimizer_of(model, sgd(momentum=0.9)))
    train(model, update, lambda step, optimizer: None)
    with torch.autograd.profiler.profile() as profile:
        train(model, update, lambda step, optimizer: None)
    assert profile is not None
    names = [event.name for event in profile.function_events or []]
    assert names.count("Optimizer.step#SGD.step") == STEPS
    assert names.count("Optimizer.zero_grad#SGD.zero_grad") == STEPS


def test_step_that_fails_raises_what_the_optimizer_raises() -> None:
    """Adam refuses a sparse gradient, also after other steps."""
    weight = nn.Parameter(torch.zeros(3, 2))
    update = choose_update(Adam([weight]))
    weight.grad = torch.ones(3, 2)
    update.step()
    weight.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        update.step()


def test_sparse_gradients_have_the_bits_of_the_optimizer() -> None:
    """SGD takes the sparse gradients of an embedding."""
    weights = []
    for choose in (OptimizerUpdate, choose_update):
        weight = nn.Parameter(torch.ones(4, 2))
        update: Update = choose(SGD([weight], lr=0.1))
        for row in (1, 1, 2):
            update.clear()
            chosen = nn.functional.embedding(torch.tensor([row]), weight, sparse=True)
            chosen.sum().backward()  # type: ignore[no-untyped-call]
            update.step()
        weights.append(weight)
    assert torch.equal(*weights)


def test_version_without_a_private_name_uses_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be known of a later version of PyTorch is not guessed."""
    optimizer = optimizer_of(Model(), sgd())
    assert isinstance(choose_update(optimizer), DirectUpdate)
    with monkeypatch.context() as patch:
        patch.delattr(torch_optimizer, "_global_optimizer_pre_hooks")
        assert isinstance(choose_update(optimizer), OptimizerUpdate)
    with monkeypatch.context() as patch:
        patch.delattr(torch_optimizer, "_default_to_fused_or_foreach")
        assert collect_for(optimizer)(optimizer) is None
    seen: list[int] = []
    monkeypatch.delattr(torch.autograd, "_profiler_enabled")
    update: Any = choose_update(optimizer)
    update.optimizer = SimpleNamespace(step=lambda: seen.append(1))
    update.step()
    assert seen == [1]


def test_unknown_option_and_derived_class_use_the_optimizer() -> None:
    """Either may change the arithmetic."""

    class Own(SGD):
        """A class of the user."""

    optimizer = optimizer_of(Model(), sgd())
    assert collect_for(optimizer)(optimizer) is not None
    optimizer.defaults["later"] = True
    assert collect_for(optimizer)(optimizer) is None
    own = Own([nn.Parameter(torch.ones(1))], lr=0.1)
    assert isinstance(choose_update(own), OptimizerUpdate)


@pytest.mark.parametrize(
    "parameter",
    [
        nn.Parameter(torch.ones(1, dtype=torch.complex64)),
        nn.Parameter(torch.ones(1, device="meta")),
        torch.ones(1, requires_grad=True),
    ],
    ids=["complex", "another device", "no parameter"],
)
def test_other_parameters_use_the_optimizer(parameter: Tensor) -> None:
    """Only parameters on the CPU are known to be updated one after the other."""
    optimizer = SGD([parameter], lr=0.1)
    assert collect_for(optimizer)(optimizer) is None


@pytest.mark.parametrize("build", [sgd(momentum=0.9), adamw()], ids=["sgd", "adamw"])
@pytest.mark.filterwarnings("error")
def test_scheduler_follows_the_steps_of_a_fit(build: Build) -> None:
    """The learning rates are those of a hand-written loop, and the scheduler does not warn."""

    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

    expected, model = plain_network(), plain_network()
    optimizer = build([{"params": list(expected.parameters())}])
    schedule = scheduler(optimizer)
    inputs, targets = points(WIDTH)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    trainer = quiet_trainer(
        model, optimizer=build, lr_scheduler=scheduler, lr_scheduler_interval="step"
    )
    trainer.fit([(inputs, targets)] * 3, epochs=1)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert trainer.optimizer is not None
    assert same(states(trainer.optimizer)["state"], states(optimizer)["state"])
