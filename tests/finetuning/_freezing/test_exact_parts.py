"""`freeze` affects only the named parts, and `unfreeze` undoes only what `freeze` did."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import detection

from finetunelib import freeze_and_replace_head
from finetunelib.errors import FreezeError
from finetunelib.finetuning import fingerprint, freeze, is_frozen, unfreeze
from finetunelib.finetuning._freezing.hold import held_in_eval_mode

INPUTS = torch.rand(12, 4, generator=torch.Generator().manual_seed(3)) + 1


class Net(nn.Module):
    """A norm, a layer and a head, with functional dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.layer = nn.Linear(4, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = functional.dropout(self.layer(self.norm(inputs)), 0.5, self.training)
        outputs: Tensor = self.head(features)
        return outputs


class Losses(nn.Module):
    """A model that returns a loss in train mode and scores in eval mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.box = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        scores: Tensor = self.box(self.backbone(inputs))
        return self.results(scores)

    def results(self, scores: Tensor) -> Tensor | dict[str, Tensor]:
        if self.training:
            return {"loss": scores.square().mean()}
        return scores


class Branches(nn.Module):
    """A model that assigns its result by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.box = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> object:
        scores = self.box(self.backbone(inputs))
        if self.training:
            result: object = [scores.mean()]
        else:
            result = scores
        return result


class Noisy(nn.Module):
    """A model that returns by mode, but a tensor of the same shape in both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(inputs))
        if self.training:
            return outputs + torch.randn_like(outputs)
        return outputs


class Pair(nn.Module):
    """Two parts with one module in common."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), shared)
        self.decoder = nn.Sequential(nn.Linear(4, 4), shared)


class Fixed(nn.Module):
    """A layer with a weight that its author has fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.token = nn.Parameter(torch.zeros(4))


def trainable(model: nn.Module) -> set[str]:
    """Return the names of the trainable parameters."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# Exactly the named parts


def test_dropout_around_a_frozen_norm_stays_on() -> None:
    """Freezing BatchNorm alone does not switch off the dropout of the root."""
    model = Net()
    before = freeze(model, "*norm*")
    model.train()
    assert not torch.equal(model(INPUTS), model(INPUTS))
    assert fingerprint(model) == before


def test_modules_around_a_frozen_part_follow_train_and_eval() -> None:
    """The modules around a named part are in train mode after `train()`."""
    model = nn.Sequential(Net(), nn.Linear(3, 3))
    freeze(model, "0.norm")
    model.train()
    modes = {name: part.training for name, part in model.named_modules()}
    assert [name for name, mode in modes.items() if not mode] == ["0.norm"]
    assert not any(part.training for part in model.eval().modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn_v2"])
def test_detector_with_a_frozen_backbone_returns_losses(name: str) -> None:
    """Its losses reach the head, and the backbone stays bit for bit."""
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3)
    before = freeze(model, "backbone")
    model.train()
    target = {"boxes": torch.tensor([[4.0, 6, 32, 28]]), "labels": torch.tensor([2])}
    losses = model([torch.rand(3, 64, 64)] * 2, [target] * 2)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert any(p.grad is not None for p in model.head.parameters())
    assert fingerprint(model) == before


# Models whose outputs differ in train mode


@pytest.mark.parametrize("kind", [Losses, Branches])
def test_model_with_losses_is_not_held_around_its_head(kind: type[nn.Module]) -> None:
    """It is refused, and freezing the backbone by name, as the message says, is not."""
    model = kind()
    with pytest.raises(FreezeError, match=r'freeze\(model, "backbone"\)'):
        freeze(model, except_="box")
    assert len(trainable(model)) == 4
    freeze(model, "backbone")
    assert isinstance(model.train()(INPUTS), dict | list)


def test_model_with_losses_is_frozen_as_a_whole() -> None:
    """Nothing in it is trained, so it need not return losses."""
    model = Losses()
    freeze(model)
    assert is_frozen(model)


def test_model_with_losses_is_not_unfrozen_inside_a_held_root() -> None:
    """Freezing everything and then unfreezing a part is refused in the same way."""
    model = Losses()
    freeze(model)
    with pytest.raises(FreezeError, match="backbone"):
        unfreeze(model, "box")
    assert is_frozen(model)


@pytest.mark.parametrize("steps", ["except", "unfreeze"])
def test_model_with_equal_outputs_in_both_modes_is_held(steps: str) -> None:
    """A return that depends on the mode is accepted if the outputs are alike."""
    model = Noisy()
    if steps == "except":
        freeze(model, except_="head")
    else:
        freeze(model)
        unfreeze(model, "head")
    model.train()
    assert torch.equal(model(INPUTS), model(INPUTS))


def test_named_head_of_a_model_with_losses_is_replaced_and_trained() -> None:
    """The modules around the head follow `train()`, which a warning says."""
    model = Losses()
    with pytest.warns(UserWarning, match="the model itself"):
        freeze_and_replace_head(model, num_classes=3, at="box")
    assert is_frozen(model, "backbone")
    outputs = model.train()(INPUTS)
    assert isinstance(outputs, dict)
    torch.autograd.backward(outputs["loss"])
    assert model.box.weight.grad is not None


# Shared modules and tensors


@pytest.mark.parametrize("shared", [nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.5)])
def test_shared_module_is_not_frozen_in_one_part(shared: nn.Module) -> None:
    """The message names the module in both parts, and the model is unchanged."""
    model = Pair(shared)
    with pytest.raises(FreezeError, match=r"`encoder\.1`.*`decoder\.1`"):
        freeze(model, "encoder")
    assert not held_in_eval_mode(model.encoder)
    freeze(model, ["encoder", "decoder"])
    with pytest.raises(FreezeError, match=r"`encoder\.1`.*`decoder\.1`|`decoder\.1`.*`encoder\.1`"):
        unfreeze(model, "decoder")


def test_shared_activation_does_not_matter() -> None:
    """A module without tensors that ignores its mode may be shared."""
    model = Pair(nn.ReLU())
    freeze(model, "encoder")
    assert is_frozen(model, "encoder")


def test_shared_module_that_is_named_itself_is_frozen() -> None:
    """Naming it names all of its uses."""
    model = Pair(nn.BatchNorm1d(4))
    freeze(model, "encoder.1")
    assert is_frozen(model, "decoder.1")


def test_all_names_of_a_tied_tensor_are_reported_at_once() -> None:
    """One error contains the frozen name and all others."""
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "abcd"})
    for name in "bcd":
        model[name].weight = model["a"].weight
    with pytest.raises(FreezeError) as caught:
        freeze(model, "a")
    assert all(f"`{name}.weight`" in str(caught.value) for name in "abcd")


# What unfreeze makes trainable


def test_fixed_parameter_stays_fixed() -> None:
    """`unfreeze` makes only those parameters trainable that `freeze` fixed."""
    model = nn.Sequential(Fixed(), nn.Linear(4, 3))
    before = trainable(model)
    freeze(model)
    unfreeze(model)
    assert trainable(model) == before
    freeze(model)
    unfreeze(model, "0")
    assert trainable(model) == {"0.token"}


def test_fixed_parameter_that_is_named_becomes_trainable() -> None:
    """Naming the parameter itself makes it trainable."""
    model = nn.Sequential(Fixed(), nn.Linear(4, 3))
    freeze(model)
    unfreeze(model, "0.position")
    assert trainable(model) == {"0.position"}


@pytest.mark.parametrize(
    ("pattern", "expected"), [("0*", {"0.token"}), ("*.position", {"0.position"})]
)
def test_pattern_names_parameters_only_outside_matched_modules(
    pattern: str, expected: set[str]
) -> None:
    """A pattern that matches a module does not name its fixed parameters."""
    model = nn.Sequential(Fixed(), nn.Linear(4, 3))
    freeze(model)
    unfreeze(model, pattern)
    assert trainable(model) == expected


def test_parameter_frozen_by_itself_is_unfrozen_with_its_module() -> None:
    """`freeze(model, "*.bias")` is undone by `unfreeze(model)`."""
    model = Net()
    freeze(model, "*.bias")
    unfreeze(model)
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_freezing_twice_remembers_what_was_trainable_first() -> None:
    """The second call does not mistake frozen parameters for fixed ones."""
    model = Net()
    freeze(model, "layer")
    freeze(model)
    unfreeze(model)
    assert trainable(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("call", ["freeze", "unfreeze"])
def test_part_that_stays_fixed_is_reported(call: str) -> None:
    """A warning names a part without trainable parameters after `unfreeze`."""
    model = Net().requires_grad_(False)
    calls: dict[str, Callable[[], object]] = {
        "freeze": lambda: freeze(model, except_="head"),
        "unfreeze": lambda: unfreeze(model, "head"),
    }
    with pytest.warns(UserWarning, match=r"head\.weight"):
        calls[call]()
    unfreeze(model, "head.*")
    assert trainable(model) == {"head.weight", "head.bias"}


def test_part_that_is_trained_again_gives_no_warning() -> None:
    """Ordinary use of `freeze` and `unfreeze` is silent."""
    model = nn.Sequential(Fixed(), nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze(model, except_="1")
        unfreeze(model, "0")
        unfreeze(model)
