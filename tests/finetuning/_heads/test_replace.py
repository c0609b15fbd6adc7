"""Replacing the head of a model, with and without freezing the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from finetunelib import build_mlp, freeze_and_replace_head
from finetunelib.errors import (
    AmbiguousHeadError,
    FinetuneLibError,
    FreezeError,
    HeadError,
    HeadNotFoundError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.finetuning import replace_head


class Classifier(nn.Module):
    """A model whose head is the last of several layers under one name, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(6),
            nn.Linear(6, 8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.features(inputs))
        return outputs


class TwoNames(nn.Module):
    """A model that registers its head under two names and uses one of them."""

    def __init__(self, used: str) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.classifier = nn.Linear(6, 3)
        self.output = self.classifier
        self.used = used

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.get_submodule(self.used)(self.body(inputs))
        return outputs


class TwoHeads(nn.Module):
    """A model whose outputs come from two parallel layers."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Linear(4, 2)
        self.fine = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.coarse(inputs), self.fine(inputs)], dim=1)


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.last = nn.Linear(4, 7, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.embedding(tokens).mean(1))
        return outputs


def convolutional(**options: Any) -> nn.Sequential:
    """Return an image classifier whose head is a convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 5, **options),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def normalized() -> nn.Sequential:
    """Return a model with a BatchNorm in front of its head."""
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def trainable(model: nn.Module) -> set[str]:
    """Return the names of the parameters that need a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return everything that an error must not change, as named tensors."""
    kept = {f"value of {name}": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        kept[f"requires_grad of {name}"] = torch.tensor(parameter.requires_grad)
        if parameter.grad is not None:
            kept[f"gradient of {name}"] = parameter.grad.clone()
    for name, module in model.named_modules():
        kept[f"identity of {name}"] = torch.tensor(id(module))
        kept[f"mode of {name}"] = torch.tensor(module.training)
        kept[f"hooks of {name}"] = torch.tensor(len(module._forward_pre_hooks))
    kept["random state"] = torch.get_rng_state()
    return kept


def changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the entries that differ between two snapshots."""
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    return (before.keys() | after.keys()) - same


# The new head


def test_model_is_changed_in_place_and_returned() -> None:
    """The result is the object that was passed."""
    model = build_mlp(4, [5], 3)
    assert freeze_and_replace_head(model, num_classes=7) is model


def test_num_classes_is_the_width_of_the_new_outputs() -> None:
    """The model has one output for each class."""
    model = freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=7)
    assert model(torch.ones(2, 4)).shape == (2, 7)


@pytest.mark.parametrize("at", [None, "head"])
def test_one_class_is_a_single_output(at: str | None) -> None:
    """A regression model, or one logit, is a head with one output."""
    model = freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=1, at=at)
    assert model(torch.ones(2, 4)).shape == (2, 1)
    assert trainable(model) == {"head.weight", "head.bias"}
    assert freeze_and_replace_head(model, num_classes=2)(torch.ones(2, 4)).shape == (2, 2)


def test_num_classes_may_be_the_second_argument() -> None:
    """The most common call needs no keyword."""
    assert freeze_and_replace_head(build_mlp(4, [5], 3), 7)(torch.ones(2, 4)).shape == (2, 7)


def test_new_head_of_the_same_width_is_a_new_layer() -> None:
    """Three new classes are not the three old ones."""
    model = build_mlp(4, [5], 3)
    old = model.head
    freeze_and_replace_head(model, num_classes=3)
    assert model.head is not old


def test_only_the_new_head_is_trainable() -> None:
    """Every other parameter needs no gradient."""
    model = freeze_and_replace_head(build_mlp(4, [5, 6], 3), num_classes=7)
    assert trainable(model) == {"head.weight", "head.bias"}


def test_everything_but_the_head_keeps_its_values() -> None:
    """Replacing the head changes no parameter or buffer of the rest."""
    model = normalized()
    before = copy.deepcopy(model[:3].state_dict())
    freeze_and_replace_head(model, num_classes=7)
    after = model[:3].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_new_head_is_drawn_from_the_global_generator() -> None:
    """PyTorch initializes the head, and the dry runs draw no random numbers before it."""
    state = torch.get_rng_state()
    model = freeze_and_replace_head(build_mlp(4, [5], 3, dropout=0.5, seed=0), num_classes=7)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    expected = nn.Linear(5, 7)
    assert torch.equal(model.get_parameter("head.weight"), expected.weight)
    assert torch.equal(model.get_parameter("head.bias"), expected.bias)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_new_head_has_the_dtype_of_the_old_one(dtype: torch.dtype) -> None:
    """A model of another precision keeps it."""
    model = freeze_and_replace_head(build_mlp(4, [5], 3).to(dtype), num_classes=7)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_new_head_is_on_the_device_of_the_old_one() -> None:
    """A head is created on the device of the model, not on the CPU."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)).to("meta")
    freeze_and_replace_head(model, num_classes=7, at="2")
    assert model.get_parameter("2.weight").device.type == "meta"


@pytest.mark.parametrize("bias", [True, False])
def test_new_head_has_a_bias_if_the_old_one_has(bias: bool) -> None:
    """A head without a bias is replaced by one without a bias."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=bias))
    freeze_and_replace_head(model, num_classes=7)
    assert ("1.bias" in model.state_dict()) is bias


def test_new_convolution_has_the_geometry_of_the_old_one() -> None:
    """Kernel, stride, padding, dilation and padding mode are those of the old head."""
    options: dict[str, Any] = {
        "kernel_size": (3, 1),
        "stride": (2, 1),
        "padding": (2, 1),
        "dilation": (2, 1),
        "padding_mode": "reflect",
        "bias": False,
    }
    model = convolutional(**options)
    expected = model[2]
    freeze_and_replace_head(model, num_classes=7)
    new = model[2]
    assert isinstance(new, nn.Conv2d)
    for name in options.keys() - {"bias"}:
        assert getattr(new, name) == getattr(expected, name)
    assert new.bias is None
    assert (new.in_channels, new.out_channels) == (8, 7)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(6, 3, 2), nn.Conv3d(6, 3, 2)],
    ids=["Conv1d", "Conv3d"],
)
def test_new_convolution_has_the_dimension_of_the_old_one(
    layer: nn.Conv1d | nn.Conv3d,
) -> None:
    """1D and 3D convolutions are replaced by their own kind."""
    size = [4] * len(layer.kernel_size)
    model = nn.Sequential(type(layer)(2, 6, 1), layer)
    freeze_and_replace_head(model, num_classes=7, example_input=torch.ones(2, 2, *size))
    assert type(model[1]) is type(layer)
    assert model(torch.ones(2, 2, *size)).shape[:2] == (2, 7)


def test_new_convolution_computes_the_outputs() -> None:
    """A classifier with a convolutional head has one output for each class."""
    model = freeze_and_replace_head(convolutional(kernel_size=1), num_classes=7)
    assert model(torch.ones(2, 3, 8, 8)).shape == (2, 7)


def test_head_in_logits_is_replaced() -> None:
    """A model that wraps its outputs still does."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 6)
            self.classifier = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Output:
            return Output(self.classifier(self.body(inputs)))

    model = freeze_and_replace_head(Wrapping(), num_classes=7)
    assert model(torch.ones(2, 4)).logits.shape == (2, 7)


@pytest.mark.parametrize("used", ["classifier", "output"])
def test_head_with_two_names_is_replaced_under_both(used: str) -> None:
    """The new head computes the outputs, whichever name the model uses."""
    model = freeze_and_replace_head(TwoNames(used), num_classes=7)
    assert model(torch.ones(2, 4)).shape == (2, 7)


# Custom heads


def test_module_becomes_the_head() -> None:
    """The module that was passed is the head, with unchanged weights."""
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(5, 7))
    before = copy.deepcopy(head.state_dict())
    model = build_mlp(4, [5], 3)
    freeze_and_replace_head(model, head=head)
    assert model.head is head
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_function_receives_the_width_of_the_heads_input() -> None:
    """A function from a width to a module creates the head."""
    widths: list[int] = []

    def make(width: int) -> nn.Module:
        widths.append(width)
        return nn.Linear(width, 7)

    model = freeze_and_replace_head(build_mlp(4, [5], 3), head=make)
    assert widths == [5]
    assert model(torch.ones(2, 4)).shape == (2, 7)


def test_head_from_a_function_has_the_dtype_of_the_model() -> None:
    """A module in the default dtype is cast to that of the model."""
    model = build_mlp(4, [5], 3).double()
    freeze_and_replace_head(model, head=lambda width: nn.Linear(width, 1))
    assert model.get_parameter("head.weight").dtype == torch.float64


def test_function_may_create_a_single_output() -> None:
    """A classifier becomes a regression model."""
    model = freeze_and_replace_head(build_mlp(4, [5], 3), head=lambda width: nn.Linear(width, 1))
    assert model(torch.ones(2, 4)).shape == (2, 1)


def test_head_that_was_passed_frozen_is_trainable() -> None:
    """The parameters of the new head require gradients."""
    head = nn.Linear(5, 7).requires_grad_(False)
    model = freeze_and_replace_head(build_mlp(4, [5], 3), head=head)
    assert trainable(model) == {"head.weight", "head.bias"}


def test_dry_run_does_not_change_buffers_of_the_new_head() -> None:
    """A BatchNorm in the new head keeps its statistics."""
    head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7))
    freeze_and_replace_head(build_mlp(4, [5], 3), head=head)
    assert head.get_buffer("0.num_batches_tracked").item() == 0


def test_dry_run_does_not_change_the_mode_of_the_new_head() -> None:
    """The new head is in train mode, including its dropout."""
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(5, 7))
    freeze_and_replace_head(build_mlp(4, [5], 3), head=head)
    assert all(module.training for module in head.modules())


def test_dry_run_of_the_new_head_does_not_change_the_random_state() -> None:
    """A head that draws random numbers in its forward draws the same ones afterwards."""

    class Drawing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            return super().forward(input) + torch.rand(7)

    head = Drawing(5, 7)
    model = build_mlp(4, [5], 3)
    before = torch.get_rng_state()
    freeze_and_replace_head(model, head=head)
    assert torch.equal(torch.get_rng_state(), before)


# `at`


@pytest.mark.parametrize("at", ["classifier.6", "classifier"])
def test_head_may_be_given_by_its_dotted_name(at: str) -> None:
    """A nested layer or a block is replaced by a layer with the same input width."""
    model = freeze_and_replace_head(Classifier(), num_classes=7, at=at)
    new = model.get_submodule(at)
    assert isinstance(new, nn.Linear)
    assert new.in_features == (8 if at == "classifier.6" else 6)
    assert trainable(model) == {f"{at}.weight", f"{at}.bias"}


def test_named_head_needs_no_example() -> None:
    """The model does not have to run."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    freeze_and_replace_head(model, num_classes=7, at="2")
    assert model(torch.zeros(2, 2, dtype=torch.int64)).shape == (2, 7)


def test_replacing_one_of_two_heads_freezes_the_other() -> None:
    """The name resolves the ambiguity."""
    model = freeze_and_replace_head(TwoHeads(), num_classes=7, at="fine")
    assert model(torch.ones(2, 4)).shape == (2, 2 + 7)
    assert trainable(model) == {"fine.weight", "fine.bias"}


def test_tied_head_is_replaced_by_an_untied_one() -> None:
    """The embedding keeps its weight and is frozen; the new head has another."""
    model = Tied()
    before = model.embedding.weight.detach().clone()
    freeze_and_replace_head(
        model, num_classes=3, at="last", example_input=torch.zeros(2, 3, dtype=torch.int64)
    )
    assert trainable(model) == {"last.weight"}
    assert torch.equal(model.embedding.weight, before)


def test_place_without_a_layer_accepts_a_module() -> None:
    """A headless model gets a head in place of its Identity."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Identity())
    freeze_and_replace_head(model, head=nn.Linear(6, 7), at="1")
    assert model(torch.ones(2, 4)).shape == (2, 7)
    assert trainable(model) == {"1.weight", "1.bias"}


# The model itself is the head


def test_result_is_a_new_object_if_the_model_is_its_own_head() -> None:
    """A single layer cannot be replaced inside itself."""
    model = nn.Linear(4, 3)
    new = freeze_and_replace_head(model, num_classes=7)
    assert new is not model
    assert new(torch.ones(2, 4)).shape == (2, 7)
    assert trainable(new) == {"weight", "bias"}


def test_model_that_is_its_own_head_is_not_changed() -> None:
    """The old layer is not frozen, and its values stay the same."""
    model = nn.Linear(4, 3)
    before = snapshot(model)
    freeze_and_replace_head(model, head=nn.Linear(4, 7))
    after = snapshot(model)
    assert changes(before, after) <= {"random state"}


def test_wrong_head_of_a_model_that_is_its_own_head_is_an_error() -> None:
    """A layer of another width does not accept the input."""
    with pytest.raises(HeadError):
        freeze_and_replace_head(nn.Linear(4, 3), head=nn.Linear(5, 7))


# Without freezing


def test_replacing_alone_freezes_nothing() -> None:
    """`requires_grad` and modes stay the same."""
    model = normalized()
    model.get_parameter("0.bias").requires_grad_(False)
    assert replace_head(model, num_classes=7) is model
    assert model(torch.ones(2, 4)).shape == (2, 7)
    assert trainable(model) == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert all(module.training for module in model.modules())


def test_replacing_alone_creates_the_same_head() -> None:
    """Both functions initialize the new layer in the same way."""
    models = []
    for function in (replace_head, freeze_and_replace_head):
        torch.manual_seed(3)
        models.append(function(build_mlp(4, [5], 3, seed=0), num_classes=7))
    one, other = (model.get_parameter("head.weight") for model in models)
    assert torch.equal(one, other)


def test_replacing_alone_keeps_a_frozen_model_frozen() -> None:
    """The new head is trainable, and the rest is not."""
    model = freeze_and_replace_head(normalized(), num_classes=7)
    replace_head(model, num_classes=2)
    assert trainable(model) == {"3.weight", "3.bias"}
    statistics = model.get_buffer("1.running_mean").clone()
    model.train()(torch.rand(8, 4))
    assert torch.equal(model.get_buffer("1.running_mean"), statistics)


# Wrapped models


@pytest.mark.parametrize("wrapper", ["compile", "DataParallel"])
@pytest.mark.parametrize("at", [None, "head", "prefixed"])
def test_head_of_a_wrapped_model_is_replaced(wrapper: str, at: str | None) -> None:
    """The wrapper is returned, and `at` may contain its prefix."""
    model = build_mlp(4, [5], 3)
    wrapped: Any = (
        nn.DataParallel(model)
        if wrapper == "DataParallel"
        else torch.compile(model, backend="eager")
    )
    prefix = "module" if wrapper == "DataParallel" else "_orig_mod"
    name = f"{prefix}.head" if at == "prefixed" else at
    assert freeze_and_replace_head(wrapped, num_classes=7, at=name) is wrapped
    assert model.head.out_features == 7
    assert wrapped(torch.ones(2, 4)).shape == (2, 7)
    assert trainable(wrapped) == {f"{prefix}.head.weight", f"{prefix}.head.bias"}


def test_head_in_a_compiled_part_is_replaced() -> None:
    """A wrapper inside the model is not part of the name."""
    part: Any = torch.compile(build_mlp(4, [5], 3), backend="eager")
    model = nn.Sequential(nn.Flatten(), part)
    freeze_and_replace_head(model, num_classes=7)
    replace_head(model, num_classes=6, at="1.head")
    assert model(torch.ones(2, 4)).shape == (2, 6)


def test_wrapped_layer_that_is_its_own_head_is_an_error_that_names_both() -> None:
    """The wrapper cannot wrap another layer."""
    with pytest.raises(HeadError, match=r"Linear.*DataParallel"):
        replace_head(nn.DataParallel(nn.Linear(4, 3)), num_classes=7)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv1d(6, 5, 1)], ids=["Linear", "Conv1d"])
def test_reparametrized_head_is_replaced_by_a_plain_layer(layer: nn.Module) -> None:
    """The new layer has no weight_norm."""
    first = type(layer)(4, 6, *([1] if isinstance(layer, nn.Conv1d) else []))
    model = nn.Sequential(first, parametrizations.weight_norm(layer))
    example = torch.ones(2, 4, 3) if isinstance(layer, nn.Conv1d) else torch.ones(2, 4)
    replace_head(model, num_classes=7, example_input=example)
    assert type(model[1]) in (nn.Linear, nn.Conv1d)
    assert model(example).shape[1] == 7


# Copies of the number of classes


class Counting(nn.Module):
    """A model that stores its number of classes and uses it in its forward."""

    def __init__(self, auxiliary: int = 3) -> None:
        super().__init__()
        self.num_classes = 3
        self.num_labels = 5  # Another number, with another meaning.
        self.config = SimpleNamespace(num_labels=3, num_classes=9)
        self.aux_logits = True
        self.body = nn.Linear(4, 6)
        self.AuxHead = nn.Linear(6, auxiliary)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(6, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        outputs: Tensor = self.classifier(features).view(len(inputs), self.num_classes)
        return outputs


@pytest.mark.parametrize(
    "request_",
    [{"num_classes": 7}, {"head": lambda width: nn.Linear(width, 7)}],
    ids=["num_classes", "function"],
)
@pytest.mark.filterwarnings("ignore:The auxiliary")
def test_attributes_that_store_the_number_of_classes_are_updated(request_: dict[str, Any]) -> None:
    """Attributes with the old number are updated; others stay the same."""
    model = Counting()
    replace_head(model, **request_)
    assert (model.num_classes, model.config.num_labels) == (7, 7)
    assert (model.num_labels, model.config.num_classes) == (5, 9)
    assert model(torch.ones(2, 4)).shape == (2, 7)


def test_width_of_a_head_without_layers_is_read_from_the_outputs() -> None:
    """The number of classes of a custom head with a bare weight is that of its outputs."""

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(7, 5))

        def forward(self, inputs: Tensor) -> Tensor:
            return functional.linear(
                functional.normalize(inputs), functional.normalize(self.weight)
            )

    model = build_mlp(4, [5], 3)
    model.num_classes = 3  # type: ignore[assignment]
    replace_head(model, head=Cosine())
    assert model.num_classes == 7


def test_auxiliary_heads_are_removed_with_a_warning_that_names_them() -> None:
    """In train mode they would return outputs for the old classes."""
    model = Counting()
    with pytest.warns(UserWarning, match=r"`AuxHead`"):
        replace_head(model, num_classes=7)
    assert model.AuxHead is None
    assert model.aux_logits is False


def test_part_of_another_width_is_not_an_auxiliary_head() -> None:
    """A part with another number of features stays, without a warning."""
    model = Counting(auxiliary=2)
    replace_head(model, num_classes=7)
    assert isinstance(model.AuxHead, nn.Linear)
    assert model.aux_logits is True


@pytest.mark.filterwarnings("ignore:The auxiliary")
def test_model_is_restored_if_the_new_head_does_not_fit() -> None:
    """The head, attributes and auxiliary heads are the same as before."""
    model = Counting()
    parts = dict(model.named_modules())
    with pytest.raises(HeadError):
        replace_head(model, head=nn.Linear(9, 7))
    assert dict(model.named_modules()) == parts
    assert list(model.state_dict()) == list(Counting().state_dict())
    assert (model.num_classes, model.config.num_labels, model.aux_logits) == (3, 3, True)


def test_model_is_restored_if_the_warning_is_an_error() -> None:
    """A warning that is raised leaves the model unchanged."""
    model = Counting()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="AuxHead"):
            replace_head(model, num_classes=7)
    assert model.aux_logits is True
    assert isinstance(model.AuxHead, nn.Linear)
    assert model(torch.ones(2, 4)).shape == (2, 3)


def test_number_of_classes_stored_elsewhere_is_an_error() -> None:
    """If the outputs do not have the new width, the error contains the shape."""

    class Cutting(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            outputs: Tensor = self[1](self[0](input))
            return outputs[:, :3]

    model = Cutting(nn.Linear(4, 6), nn.Linear(6, 3))
    with pytest.raises(HeadError, match=r"\(2, 3\)"):
        replace_head(model, num_classes=7)
    assert model(torch.ones(2, 4)).shape == (2, 3)


# Meta tensors


def test_new_head_of_a_meta_model_is_on_meta() -> None:
    """The head of a model on the meta device can be replaced."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(300_000, 300_000), nn.Linear(300_000, 3))
    freeze_and_replace_head(model, num_classes=7)
    assert model.get_parameter("1.weight").is_meta
    assert trainable(model) == {"1.weight", "1.bias"}


def test_rest_of_the_model_is_run_on_meta_tensors() -> None:
    """The backbone receives only meta tensors, even with a custom head."""
    devices: list[str] = []

    class Body(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            devices.append(input.device.type)
            return super().forward(input)

    replace_head(nn.Sequential(Body(4, 5), nn.Linear(5, 3)), head=nn.Linear(5, 7))
    assert set(devices) == {"meta"}


def test_head_that_reads_values_is_tried_on_real_tensors() -> None:
    """A custom head may read the values of its input."""

    class ValueDependent(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            return super().forward(input) * (2.0 if input.sum().item() > 0 else 1.0)

    model = replace_head(build_mlp(4, [5], 3), head=ValueDependent(5, 7))
    assert model(torch.ones(2, 4)).shape == (2, 7)


@pytest.mark.parametrize(
    "example",
    [(torch.ones(2, 4), torch.ones(2, 4)), {"right": torch.ones(2, 4), "left": torch.ones(2, 4)}],
    ids=["tuple", "mapping"],
)
def test_example_may_contain_several_inputs(example: Any) -> None:
    """They are passed by position or by name."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.body(left + right))
            return outputs

    model = freeze_and_replace_head(Two(), num_classes=7, example_input=example)
    assert model(torch.ones(2, 4), torch.ones(2, 4)).shape == (2, 7)


# Repeated calls


def test_second_call_replaces_the_head_again() -> None:
    """The head of the first call is replaced by that of the second."""
    model = build_mlp(4, [5], 3)
    freeze_and_replace_head(model, num_classes=7)
    first = model.head
    freeze_and_replace_head(model, num_classes=2)
    assert model.head is not first
    assert model(torch.ones(2, 4)).shape == (2, 2)
    assert trainable(model) == {"head.weight", "head.bias"}


def test_second_call_adds_no_second_hook() -> None:
    """The frozen modules keep their number of hooks."""
    model = freeze_and_replace_head(normalized(), num_classes=7)
    before = {name: len(part._forward_pre_hooks) for name, part in model.named_modules()}
    freeze_and_replace_head(model, num_classes=2)
    assert {name: len(part._forward_pre_hooks) for name, part in model.named_modules()} == before


# Errors


def test_neither_head_nor_num_classes_is_an_error() -> None:
    """The error names both arguments."""
    with pytest.raises(InvalidArgumentError, match=r"`num_classes`.*`head`"):
        freeze_and_replace_head(build_mlp(4, [5], 3))


def test_both_head_and_num_classes_are_an_error() -> None:
    """The error names both arguments."""
    with pytest.raises(InvalidArgumentError, match=r"`num_classes`.*`head`"):
        freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=7, head=nn.Linear(5, 7))


@pytest.mark.parametrize("classes", [0, -2])
def test_less_than_one_class_is_an_error(classes: int) -> None:
    """The error names the argument and its value."""
    with pytest.raises(InvalidArgumentError) as caught:
        freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=classes)
    assert "`num_classes`" in str(caught.value)
    assert str(classes) in str(caught.value)


@pytest.mark.parametrize("classes", [2.5, "10", [10]], ids=repr)
def test_num_classes_that_is_not_an_integer_is_an_error(classes: Any) -> None:
    """The error names the argument and its value."""
    with pytest.raises((InvalidTypeError, InvalidArgumentError)) as caught:
        freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=classes)
    assert "`num_classes`" in str(caught.value)
    assert repr(classes) in str(caught.value)


@pytest.mark.parametrize("head", [10, "linear", [nn.Identity()]], ids=["10", "text", "list"])
def test_head_of_another_type_is_an_error(head: Any) -> None:
    """The error names the argument and its type."""
    with pytest.raises(InvalidTypeError) as caught:
        freeze_and_replace_head(build_mlp(4, [5], 3), head=head)
    assert "`head`" in str(caught.value)
    assert type(head).__name__ in str(caught.value)


def test_function_that_does_not_return_a_module_is_an_error() -> None:
    """The error names the type that it returned."""

    def forgetful(width: int) -> Any:
        nn.Linear(width, 7)

    with pytest.raises(InvalidTypeError) as caught:
        freeze_and_replace_head(build_mlp(4, [5], 3), head=forgetful)
    assert "`head`" in str(caught.value)
    assert "NoneType" in str(caught.value)


@pytest.mark.parametrize("at", ["fc", "backbone.17", ""])
def test_unknown_name_is_an_error_that_lists_others(at: str) -> None:
    """The error contains the name and the layers of the model."""
    with pytest.raises(HeadNotFoundError) as caught:
        freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=7, at=at)
    assert f"`{at}`" in str(caught.value)
    assert "`head`" in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [{"num_classes": 7}, {"head": lambda width: nn.Linear(width, 7)}],
    ids=["classes", "callable"],
)
def test_part_of_unknown_width_needs_a_module(request_: dict[str, Any]) -> None:
    """The error contains the name and the class of the part."""
    with pytest.raises(HeadNotFoundError) as caught:
        freeze_and_replace_head(nn.Sequential(nn.Linear(4, 6), nn.Tanh()), at="1", **request_)
    assert "`1`" in str(caught.value)
    assert "Tanh" in str(caught.value)


def test_two_heads_are_an_error_that_lists_both() -> None:
    """The error contains the names to choose from."""
    with pytest.raises(AmbiguousHeadError) as caught:
        freeze_and_replace_head(TwoHeads(), num_classes=7)
    assert "`coarse`" in str(caught.value)
    assert "`fine`" in str(caught.value)


def test_head_that_does_not_fit_is_an_error() -> None:
    """The error contains the name of the head and the width of its input."""
    with pytest.raises(HeadError) as caught:
        freeze_and_replace_head(build_mlp(4, [5], 3), head=nn.Linear(6, 7))
    assert "`head`" in str(caught.value)
    assert "5" in str(caught.value)


def test_head_of_another_dtype_is_an_error() -> None:
    """A module is not cast, so it must have the dtype of the model."""
    with pytest.raises(HeadError):
        freeze_and_replace_head(build_mlp(4, [5], 3), head=nn.Linear(5, 7).double())


def test_wrong_example_with_a_name_is_an_error() -> None:
    """A wrong example is distinguished from a wrong head."""
    with pytest.raises(InvalidInputError, match="`example_input`"):
        freeze_and_replace_head(
            build_mlp(4, [5], 3), num_classes=7, at="head", example_input=torch.ones(2, 9)
        )


@pytest.mark.parametrize("batch", [1, 2])
def test_example_may_be_one_sample(batch: int) -> None:
    """The dry runs are in eval mode, in which BatchNorm accepts a single sample."""
    model = freeze_and_replace_head(
        Classifier(), num_classes=7, at="classifier", example_input=torch.ones(batch, 4)
    )
    assert model(torch.ones(2, 4)).shape == (2, 7)


def test_frozen_batchnorm_without_statistics_is_an_error_that_names_it() -> None:
    """A layer that always normalizes by the batch statistics cannot be frozen."""
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)),
        nn.Linear(6, 3),
    )
    with pytest.raises(FreezeError) as caught:
        freeze_and_replace_head(model, num_classes=7)
    assert "`1.0`" in str(caught.value)
    assert "BatchNorm1d" in str(caught.value)


def test_batchnorm_without_statistics_is_accepted_in_the_head() -> None:
    """A trained layer may normalize by the batch statistics."""
    head = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 7))
    model = freeze_and_replace_head(build_mlp(4, [5], 3), head=head)
    assert model(torch.rand(2, 4)).shape == (2, 7)


def test_head_that_shares_a_parameter_with_the_frozen_part_is_an_error() -> None:
    """The error names the parameter."""
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    head = nn.Linear(5, 5)
    head.weight = nn.Parameter(torch.zeros(5, 5))
    model.get_submodule("0").register_parameter("weight", head.weight)
    with pytest.raises(FreezeError, match=r"`0\.weight`"):
        freeze_and_replace_head(model, head=head)


def without_statistics() -> nn.Module:
    """Return a model that cannot be frozen."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)
    )


def raising(width: int) -> nn.Module:
    """Raise an arbitrary error, as a user's function may."""
    raise KeyError(width)


@pytest.mark.parametrize(
    ("model", "request_", "error"),
    [
        (normalized, {}, FinetuneLibError),
        (normalized, {"num_classes": 0}, FinetuneLibError),
        (normalized, {"num_classes": 7, "at": "nowhere"}, FinetuneLibError),
        (normalized, {"num_classes": 7, "example_input": torch.ones(2, 9)}, FinetuneLibError),
        (normalized, {"head": lambda width: None}, FinetuneLibError),
        (normalized, {"head": raising}, KeyError),
        (normalized, {"head": nn.Linear(9, 7)}, FinetuneLibError),
        (normalized, {"head": nn.Linear(9, 7), "at": "3"}, FinetuneLibError),
        (Classifier, {"head": nn.Linear(9, 7), "at": "classifier"}, FinetuneLibError),
        (TwoHeads, {"num_classes": 7}, FinetuneLibError),
        (without_statistics, {"num_classes": 7}, FinetuneLibError),
    ],
    ids=[
        "no request",
        "no class",
        "no such name",
        "wrong example",
        "function without a module",
        "function that raises",
        "head of a wrong width",
        "named head of a wrong width",
        "named block of a wrong width",
        "two heads",
        "no statistics",
    ],
)
def test_refused_model_is_not_changed(
    model: Callable[[], nn.Module], request_: dict[str, Any], error: type[Exception]
) -> None:
    """Its head, values, modes, gradients and `requires_grad` stay the same.

    The random state may differ: a new layer may have been initialized before the error.
    """
    subject = model()
    subject(torch.rand(3, 4, generator=torch.Generator().manual_seed(0))).sum().backward()
    before = snapshot(subject)
    with pytest.raises(error):
        freeze_and_replace_head(subject, **request_)
    assert changes(before, snapshot(subject)) <= {"random state"}


def test_function_shows_its_public_path() -> None:
    """Users import it from the package itself."""
    assert freeze_and_replace_head.__module__ == "finetunelib"
    assert replace_head.__module__ == "finetunelib.finetuning"


def test_at_that_is_not_a_string_is_refused() -> None:
    """`at` is a dotted name, not a number."""
    at: Any = 5
    with pytest.raises(InvalidTypeError, match="`at`"):
        replace_head(build_mlp(4, [8], 3), 2, at=at)


def test_head_that_is_a_class_is_refused() -> None:
    """The error shows how to pass it as a function."""
    head: Any = nn.Linear
    with pytest.raises(InvalidTypeError, match=r"lambda features: Linear\(features"):
        replace_head(build_mlp(4, [8], 3), head=head)


def test_head_that_contains_the_model_is_refused() -> None:
    """A model cannot be a part of its own head."""
    model = build_mlp(4, [8], 3)
    with pytest.raises(HeadError, match="itself"):
        replace_head(model, head=nn.Sequential(model, nn.Linear(3, 2)))
