"""Models whose last layer is not a head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import build_mlp, freeze_and_replace_head
from finetunelib.errors import HeadNotFoundError
from finetunelib.finetuning import find_head, freeze


class Ending(nn.Module):
    """A model that applies a function to the outputs of its last layer."""

    def __init__(self, end: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.last = nn.Linear(6, width)
        self.end = end

    def forward(self, inputs: Tensor) -> Tensor:
        return self.end(self.last(self.body(inputs)))


class SwishFunction(torch.autograd.Function):
    """An activation with its own backward, as in timm."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, inputs: Tensor) -> Tensor:
        return inputs * inputs.sigmoid()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        return gradients[0]


def swish(inputs: Tensor) -> Tensor:
    """Return the result of `SwishFunction`."""
    outputs = SwishFunction.apply(inputs)
    assert isinstance(outputs, Tensor)
    return outputs


def gelu_by_hand(inputs: Tensor) -> Tensor:
    """Return the approximation of GELU that older language models compute."""
    return 0.5 * inputs * (1 + torch.tanh(0.8 * (inputs + 0.045 * inputs**3)))


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.PReLU(),
    nn.RReLU(),
    nn.ELU(),
    nn.SELU(),
    nn.CELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Tanh(),
    nn.Hardtanh(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.LogSigmoid(),
    nn.Softplus(),
    nn.Softsign(),
    nn.Softshrink(),
    nn.Hardshrink(),
    nn.Tanhshrink(),
    nn.Threshold(0.1, 0.0),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_last_layer_before_an_activation_is_not_a_head(activation: nn.Module) -> None:
    """The error names the layer and the argument to pass if it is the head after all."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), activation)
    with pytest.raises(HeadNotFoundError, match=r"`2`.*`at='2'`.*`0`, `2`"):
        find_head(model)


@pytest.mark.parametrize(
    "end",
    [
        swish,
        gelu_by_hand,
        torch.sin,
        lambda outputs: outputs.clamp(min=0),
        lambda outputs: torch.maximum(outputs, torch.zeros(())),
        lambda outputs: outputs * torch.sigmoid(1.7 * outputs),
        lambda outputs: functional.gelu(outputs).mean(1, keepdim=True).expand(-1, 6),
    ],
    ids=["function", "gelu", "sin", "clamp", "maximum", "gate", "pooled"],
)
def test_activation_without_a_module_is_recognized(end: Callable[[Tensor], Tensor]) -> None:
    """The operations count, not the modules."""
    with pytest.raises(HeadNotFoundError, match="`last`"):
        find_head(Ending(end))


@pytest.mark.parametrize(
    "end",
    [
        lambda outputs: outputs.softmax(-1),
        lambda outputs: outputs.log_softmax(-1),
        torch.sigmoid,
        lambda outputs: torch.sigmoid(outputs).clamp(min=0.0, max=0.9),
        lambda outputs: outputs.softmax(-1) * 2,
        lambda outputs: functional.relu(outputs.softmax(-1)),
        lambda outputs: outputs.clamp(min=-10, max=10),
        functional.normalize,
    ],
    ids=["softmax", "log_softmax", "sigmoid", "clamped", "scaled", "relu", "limited", "normalized"],
)
def test_probabilities_and_limits_may_follow_a_head(end: Callable[[Tensor], Tensor]) -> None:
    """Softmax and sigmoid, and whatever is computed from probabilities, are accepted."""
    assert find_head(Ending(end)).name == "last"


def test_activation_of_another_input_does_not_count() -> None:
    """Only the operations between the last layer and the outputs matter."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.body(inputs))
            return outputs * functional.relu(mask)

    assert find_head(Masked(), (torch.ones(2, 4), torch.ones(2, 3))).name == "last"


def test_named_layer_before_an_activation_is_replaced() -> None:
    """`at=` states that the layer is the head."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Tanh())
    assert freeze_and_replace_head(model, num_classes=1, at="1")(torch.ones(2, 4)).shape == (2, 1)


@pytest.mark.parametrize("stated", [3, 2])
def test_activation_is_accepted_if_the_model_states_the_width(stated: int) -> None:
    """A model with as many classes as the layer has outputs, as SqueezeNet, has a head."""
    model = Ending(functional.relu, width=3)
    model.num_classes = stated  # type: ignore[assignment]
    if stated == 3:
        assert freeze_and_replace_head(model, num_classes=5)(torch.ones(2, 4)).shape == (2, 5)
        assert model.num_classes == 5
    else:
        with pytest.raises(HeadNotFoundError):
            freeze_and_replace_head(model, num_classes=5)


def test_backbone_of_an_mlp_has_no_head() -> None:
    """Following the advice of the error solves the problem."""
    backbone = nn.Sequential(*list(build_mlp(4, [8], 3, seed=0).children())[:-1])
    with pytest.raises(HeadNotFoundError, match=r"nn\.Sequential\(model, nn\.Linear\(8, "):
        freeze_and_replace_head(backbone, num_classes=5)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    model = nn.Sequential(backbone, nn.Linear(8, 5))
    freeze(model, "0")
    assert find_head(model).name == "1"


def test_model_without_classes_has_no_head() -> None:
    """`num_classes=0` is how timm builds a model without a head."""
    model = Ending(nn.Identity())
    model.num_classes = 0  # type: ignore[assignment]
    with pytest.raises(HeadNotFoundError, match="num_classes=0"):
        find_head(model)
    assert find_head(nn.Sequential(model, nn.Linear(6, 3))).name == "1"


def test_new_classifier_of_a_model_without_classes_is_a_head() -> None:
    """The layer that the model declares as its classifier counts more than the number."""

    class Declaring(Ending):
        def get_classifier(self) -> nn.Module:
            return self.last

    model = Declaring(nn.Identity())
    model.num_classes = 0  # type: ignore[assignment]
    assert find_head(model).name == "last"


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Softmax(-1)], ids=repr)
def test_activation_is_recognized_in_a_model_that_does_not_run(activation: nn.Module) -> None:
    """The modules after the layer in its Sequential decide."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), activation)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            outputs: Tensor = self.head(left + right)
            return outputs

    if isinstance(activation, nn.Softmax):
        assert find_head(Two()).name == "head.1"
    else:
        with pytest.raises(HeadNotFoundError, match=r"`head\.1`"):
            find_head(Two())
