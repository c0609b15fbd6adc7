"""Frozen modules and their copies are in eval mode whichever of their methods is called."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.errors import FreezeError
from finetunelib.finetuning import fingerprint, freeze, is_frozen, unfreeze
from finetunelib.finetuning._frozen_hook import keep_in_eval_mode

INPUTS = torch.rand(12, 4, generator=torch.Generator().manual_seed(3)) + 1
TARGETS = torch.arange(12) % 3


class Body(nn.Module):
    """A feature extractor with BatchNorm and two methods that run it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 32)
        self.norm = nn.BatchNorm1d(32)

    def encode(self, inputs: Tensor) -> Tensor:
        features = self.norm.forward(self.layer.forward(inputs))
        return functional.dropout(features, 0.5, self.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encode(inputs)


class Net(nn.Module):
    """A model that calls a method of its body instead of the body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(32, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body.encode(inputs))
        return outputs


class Switching(nn.Module):
    """A layer whose scale depends on the last call of its own `train` method."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.scale = 2.0

    def train(self, mode: bool = True) -> Switching:
        self.scale = 2.0 if mode else 1.0
        return super().train(mode)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight * self.scale


def frozen_net() -> Net:
    """Return a frozen model with a trainable head."""
    torch.manual_seed(0)
    model = Net()
    model(INPUTS)
    freeze(model, except_="head")
    return model


def through_pickle(model: nn.Module) -> nn.Module:
    """Return a copy of a model through a pickle."""
    copied = pickle.loads(pickle.dumps(model))
    assert isinstance(copied, nn.Module)
    return copied


def through_torch_save(model: nn.Module) -> nn.Module:
    """Return a copy of a model through `torch.save`."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied = torch.load(file, weights_only=False)
    assert isinstance(copied, nn.Module)
    return copied


def twice(model: nn.Module) -> nn.Module:
    """Return a copy of a copy."""
    return copy.deepcopy(through_pickle(model))


COPIES = pytest.mark.parametrize(
    "copied",
    [lambda model: model, copy.deepcopy, through_pickle, through_torch_save, twice],
    ids=["itself", "deepcopy", "pickle", "save", "twice"],
)


@COPIES
def test_another_method_enters_a_frozen_module_in_eval_mode(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    """Dropout is off and BatchNorm stays, although no forward hook of the body runs."""
    model = copied(frozen_net())
    before = fingerprint(model)
    model.train()
    assert torch.equal(model(INPUTS), model(INPUTS))
    assert fingerprint(model) == before


@COPIES
def test_train_of_a_frozen_part_itself_has_no_effect(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    """The part stays in eval mode and returns itself."""
    body = copied(frozen_net()).get_submodule("body")
    assert body.train() is body
    assert not any(part.training for part in body.modules())


def test_train_can_be_chained_on_a_frozen_model() -> None:
    """The model is returned although nothing else refers to it."""
    assert isinstance(freeze_and_replace_head(Net(), num_classes=2).train().eval(), Net)


def test_trainer_uses_a_frozen_part_in_eval_mode() -> None:
    """Training steps see the frozen body in eval mode, and its statistics stay."""
    model = frozen_net()
    before = fingerprint(model)
    modes: set[bool] = set()
    model.head.register_forward_pre_hook(lambda *_: modes.add(model.body.training))
    Trainer(model, progress=False).fit((INPUTS, TARGETS), epochs=1)
    assert modes == {False}
    assert fingerprint(model) == before


def test_unfrozen_part_follows_train_again() -> None:
    """`train` is the method of the class again after `unfreeze`."""
    model = frozen_net()
    unfreeze(model)
    assert "train" not in vars(model.body)
    assert model.eval().body.training is False
    assert model.train().body.training is True


def test_part_that_replaces_a_frozen_one_follows_train() -> None:
    """A module added after freezing is not frozen."""
    model = frozen_net()
    model.body.layer = nn.Linear(4, 32).eval()
    model.train()
    assert model.body.layer.training
    assert not model.body.norm.training


def test_train_method_of_an_instance_is_restored() -> None:
    """A `train` that the user set on a module is used again after `unfreeze`."""
    model = Net()
    calls: list[bool] = []

    def own_train(mode: bool = True) -> nn.Module:
        calls.append(mode)
        return model.body

    model.body.train = own_train  # type: ignore[method-assign, assignment]
    freeze(model, "body")
    model.train()
    assert calls == []
    unfreeze(model, "body")
    model.train()
    assert calls == [True]


def test_module_with_its_own_train_method_computes_as_in_eval_mode() -> None:
    """Its `train(False)` runs when it is frozen, and its `train(True)` does not run later."""
    model = nn.Sequential(Switching(), nn.Linear(4, 3))
    freeze(model, "0")
    model.train()
    assert torch.equal(model[0](INPUTS), INPUTS)
    unfreeze(model, "0")
    model.train()
    assert torch.equal(model[0](INPUTS), INPUTS * 2)


def test_trainable_part_keeps_its_mode_in_a_module_with_its_own_train_method() -> None:
    """The root switches to its eval state, and the excepted part stays in train mode."""

    class Root(Switching):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Switching()

    model = Root()
    freeze(model, except_="inner")
    assert (model.scale, model.inner.scale, model.inner.training) == (1.0, 2.0, True)


def test_train_method_that_fails_leaves_the_model_unchanged() -> None:
    """The error names the module, and nothing is frozen."""

    class Failing(nn.Linear):
        def train(self, mode: bool = True) -> Failing:
            raise NotImplementedError("not supported")

    model = nn.Sequential(nn.Linear(4, 4), Failing(4, 4))
    with pytest.raises(FreezeError, match=r"`1`.*not supported"):
        freeze(model)
    assert model[0].training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_feature_extractor_uses_its_graph_of_eval_mode() -> None:
    """Torchvision's extractor has a graph per mode, in which dropout is a constant."""
    source = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5))
    model = create_feature_extractor(source, ["1"]).train()
    freeze(model)
    model.train()
    assert torch.equal(model(INPUTS)["1"], model(INPUTS)["1"])


def test_graph_module_can_be_copied_and_pickled() -> None:
    """A frozen fx graph does not break copying, and its layers stay frozen."""
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    freeze(model)
    for copied in (copy.deepcopy(model), through_pickle(model)):
        copied.train()
        assert is_frozen(copied, ["0", "1"])
        assert not copied.get_submodule("1").training


def test_model_frozen_by_the_first_version_stays_in_eval_mode() -> None:
    """Its pickle contains the hook alone, which covers other entries as well."""
    model = Net()
    model(INPUTS)
    model.requires_grad_(False)
    for part in model.modules():
        part.register_forward_pre_hook(keep_in_eval_mode, prepend=True)
    old = through_pickle(model).train()
    before = fingerprint(old)
    assert is_frozen(old)
    assert torch.equal(old(INPUTS), old(INPUTS))
    assert fingerprint(old) == before
    old.train()
    assert not old.get_submodule("body").training
    unfreeze(old)
    assert all(parameter.requires_grad for parameter in old.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_model_enters_a_frozen_part_in_eval_mode(fullgraph: bool) -> None:
    """`torch.compile` traces the model as in eval mode."""
    model = frozen_net()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=fullgraph)
    before = fingerprint(model)
    compiled.train()
    assert torch.equal(compiled(INPUTS), compiled(INPUTS))
    assert fingerprint(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_exported_program_of_a_frozen_model_computes_as_in_eval_mode(strict: bool) -> None:
    """`torch.export` in train mode records no dropout and no update of statistics."""
    model = frozen_net()
    expected = model.eval()(INPUTS)
    model.train()
    before = fingerprint(model)
    program = torch.export.export(model, (INPUTS,), strict=strict)
    torch.testing.assert_close(program.module()(INPUTS), expected)
    assert fingerprint(model) == before


def test_scripting_a_frozen_model_is_refused_with_the_way_that_works() -> None:
    """An unfrozen copy can be scripted, as the message says."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), nn.Linear(4, 3))
    freeze(model, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated.
        with pytest.raises(FreezeError, match="unfreeze"):
            torch.jit.script(model)
        plain = copy.deepcopy(model)
        unfreeze(plain)
        scripted = torch.jit.script(plain.eval())
    assert torch.equal(scripted(INPUTS), model.eval()(INPUTS))
    assert is_frozen(model, "0")


def test_traced_frozen_model_computes_as_in_eval_mode() -> None:
    """`torch.jit.trace` records the operations of eval mode."""
    model = frozen_net().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated.
        traced: Any = torch.jit.trace(model, INPUTS)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(INPUTS), model.eval()(INPUTS))


def test_replicas_of_data_parallel_are_in_eval_mode() -> None:
    """A replica is a shallow copy of the module."""
    model = frozen_net().train()
    replica = model.body._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    assert not replica.training
