"""Finding the layer that computes a model's outputs, without changing the model."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm
from torchvision.models import resnet50

from finetunelib import build_mlp, freeze_and_replace_head
from finetunelib.errors import AmbiguousHeadError, HeadError, HeadNotFoundError, InvalidTypeError
from finetunelib.finetuning import Head, find_head


def old_weight_norm(layer: nn.Linear) -> nn.Linear:
    """Apply the deprecated weight_norm, which many models still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


class TwoHeads(nn.Module):
    """A model whose outputs come from two parallel layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.coarse = nn.Linear(6, 2)
        self.fine = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = functional.relu(self.body(inputs))
        return torch.cat([self.coarse(features), self.fine(features)], dim=1)


class Residual(nn.Module):
    """A model whose last layer has a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.body(inputs)
        outputs: Tensor = features + self.last(features)
        return outputs


class PreNorm(nn.Module):
    """A residual block, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.last(inputs)
        return outputs


class Recurrent(nn.Module):
    """A model that applies the same layer repeatedly."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.step = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        state: Tensor = self.body(inputs)
        for _ in range(3):
            state = torch.tanh(self.step(state))
        return state


class TiedLayers(nn.Module):
    """A model whose two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.body.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(functional.relu(self.body(inputs)))
        return outputs


class TiedEmbedding(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.last = nn.Linear(4, 7, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.embedding(tokens).mean(1))
        return outputs


class BareHead(nn.Module):
    """A model whose head is a bare parameter instead of a layer.

    It is as wide as the features, so the layer before it has the width of the outputs.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.projection = nn.Parameter(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))
        self.bias = nn.Parameter(torch.zeros(3))
        self.form = form

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.body(inputs)
        outputs: Tensor
        if self.form == "product":
            outputs = features @ self.projection
        elif self.form == "functional":
            outputs = functional.linear(features, self.projection.t(), self.bias)
        elif self.form == "einsum":
            outputs = torch.einsum("bf,fc->bc", features, self.projection)
        else:
            outputs = functional.normalize(features) @ functional.normalize(self.projection)
        return outputs


class Logits(nn.Module):
    """A model that wraps its outputs, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.body(inputs)), states=inputs)


class Scaled(nn.Module):
    """A model that multiplies its outputs by a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.body(inputs)) * self.temperature
        return outputs


class Unused(nn.Module):
    """A model that defines a layer after its head and never uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.classifier = nn.Linear(6, 3)
        self.auxiliary = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.body(inputs))
        return outputs


class Backwards(nn.Module):
    """A model that defines its layers in the reverse order of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(6, 3)
        self.body = nn.Linear(4, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.body(inputs))
        return outputs


class Counting(nn.Module):
    """A model that counts its forward passes in a buffer, whatever its mode."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.layer(inputs)
        return outputs


class Attention(nn.Module):
    """A transformer layer and a head on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.layer(self.embed(inputs))[:, 0])
        return outputs


class Recording(nn.Module):
    """A model that records the device of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        DEVICES.append(inputs.device.type)
        outputs: Tensor = self.layer(inputs)
        return outputs


#: What `Recording` recorded. A list in the model would be restored after a dry run.
DEVICES: list[str] = []


class ValueDependent(nn.Module):
    """A model that reads the values of its inputs, which meta tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        scale = 2.0 if inputs.sum().item() > 0 else 1.0
        outputs: Tensor = self.last(self.body(inputs)) * scale
        return outputs


class Adding(nn.Module):
    """A model with two inputs, which are not guessed, and layers under the given names."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        outputs = left + right
        for layer in self.children():
            outputs = layer(outputs)
        return outputs


class Declaring(Adding):
    """A model that declares its classifier, as those of timm do."""

    def __init__(self, declared: Callable[[Declaring], object], **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.declared = declared

    def get_classifier(self) -> object:
        return self.declared(self)


class Caching(nn.Module):
    """A model that caches what it computed in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.last_outputs: Tensor | None = None
        self.by_device: dict[str, Tensor] = {}
        self.history: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        self.last_outputs = outputs
        self.by_device[str(inputs.device)] = outputs
        self.history.append(outputs)
        self.register_forward_hook(lambda *_: None)
        return outputs


def compiled(model: nn.Module, backend: Any = "eager") -> nn.Module:
    """Return the compiled form of a model, which wraps it."""
    wrapper: Any = torch.compile(model, backend=backend)
    assert isinstance(wrapper, nn.Module)
    return wrapper


def convolutional() -> nn.Sequential:
    """Return an image classifier whose head is a 1x1 convolution, as in SqueezeNet."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def noisy() -> nn.Sequential:
    """Return a model with modules that change in train mode, mixed modes and gradients."""
    model = nn.Sequential(
        spectral_norm(nn.Linear(4, 6)),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(6, 6),
        nn.Dropout(0.5),
        nn.Linear(6, 3),
    )
    model(torch.ones(2, 4)).sum().backward()
    model[1].eval()
    model[3].eval()
    for parameter in model[4].parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return everything that a dry run must not change, as named tensors."""
    kept = {f"value of {name}": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        kept[f"requires_grad of {name}"] = torch.tensor(parameter.requires_grad)
        kept[f"identity of {name}"] = torch.tensor(id(parameter))
        if parameter.grad is not None:
            kept[f"gradient of {name}"] = parameter.grad.clone()
    for name, module in model.named_modules():
        kept[f"mode of {name}"] = torch.tensor(module.training)
    kept["random state"] = torch.get_rng_state()
    return kept


def changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the entries that differ between two snapshots."""
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    return (before.keys() | after.keys()) - same


# Models with a head


@pytest.mark.parametrize("hidden", [[5], [7, 6], [10]], ids=str)
def test_head_of_an_mlp_is_its_last_layer(hidden: list[int]) -> None:
    """The layer, its name and its widths are found, even if all widths are equal."""
    model = build_mlp(10, hidden, 10)
    head = find_head(model)
    assert head.name == "head"
    assert head.module is model.head
    assert (head.in_features, head.out_features) == (hidden[-1], 10)


def test_head_of_a_linear_model_is_the_model() -> None:
    """A single layer is its own head, with an empty name."""
    model = nn.Linear(4, 3)
    head = find_head(model)
    assert head.name == ""
    assert head.module is model


def test_head_may_be_a_convolution() -> None:
    """A 1x1 convolution before pooling is the head, and its channels are the classes."""
    model = convolutional()
    head = find_head(model)
    assert head.name == "2"
    assert head.module is model[2]
    assert (head.in_features, head.out_features) == (8, 5)


@pytest.mark.parametrize(
    ("convolution", "pool", "example"),
    [
        (nn.Conv1d, nn.AdaptiveAvgPool1d, torch.ones(2, 3, 6)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, torch.ones(2, 3, 4, 4, 4)),
    ],
    ids=["Conv1d", "Conv3d"],
)
def test_head_may_be_a_convolution_of_any_dimension(
    convolution: type[nn.Conv1d | nn.Conv3d],
    pool: type[nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool3d],
    example: Tensor,
) -> None:
    """Signals and volumes have heads too."""
    model = nn.Sequential(convolution(3, 8, 3), convolution(8, 5, 1), pool(1), nn.Flatten())
    assert find_head(model, example).name == "1"


@pytest.mark.parametrize(
    "after",
    [
        nn.Softmax(dim=1),
        nn.LogSoftmax(dim=1),
        nn.Sigmoid(),
        nn.LayerNorm(3),
        nn.BatchNorm1d(3),
        nn.Dropout(),
        nn.Unflatten(1, (3, 1)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_layers_after_the_head_are_skipped(after: nn.Module) -> None:
    """A layer that normalizes or reshapes the outputs is not the head."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), after)
    assert find_head(model).name == "2"


def test_scale_of_the_outputs_is_skipped() -> None:
    """A parameter that scales the outputs is not a head."""
    assert find_head(Scaled()).name == "last"


def test_head_without_a_bias_is_found() -> None:
    """A matrix product without a bias is recognized."""
    assert find_head(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False))).name == "1"


@pytest.mark.parametrize("bias", [True, False])
def test_head_of_sequences_is_found(bias: bool) -> None:
    """Outputs of shape `(batch, time, classes)` have a head too."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=bias))
    assert find_head(model, torch.ones(2, 5, 4)).name == "1"


def test_head_after_attention_is_found() -> None:
    """The layer on top of a transformer is distinguished from those inside."""
    assert find_head(Attention(), torch.ones(2, 5, 4)).name == "classifier"


def test_head_is_found_in_logits() -> None:
    """Outputs in `.logits` are followed back from there."""
    assert find_head(Logits()).name == "classifier"


def test_unused_layer_is_not_a_head() -> None:
    """The data decides, not the order of definition."""
    assert find_head(Unused()).name == "classifier"
    assert find_head(Backwards(), torch.ones(2, 4)).name == "classifier"


def test_head_deep_in_the_model_has_a_dotted_name() -> None:
    """The name includes the submodules around the head."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Dropout(), nn.Linear(6, 3)))
    assert find_head(model).name == "1.1"


def test_head_of_a_frozen_model_is_found() -> None:
    """The head is found in a model without trainable parameters."""
    model = build_mlp(4, [5], 3).requires_grad_(False)
    assert find_head(model).name == "head"


def test_head_is_found_again_after_it_was_replaced() -> None:
    """The new head is found in a model whose other parts are frozen."""
    model = freeze_and_replace_head(build_mlp(4, [5], 3), num_classes=7)
    assert find_head(model).out_features == 7


def test_head_is_found_while_gradients_are_switched_off() -> None:
    """The dry run enables gradients and disables them again."""
    with torch.no_grad():
        assert find_head(build_mlp(4, [5], 3)).name == "head"
        assert not torch.is_grad_enabled()


def test_head_of_a_model_in_double_precision_is_found() -> None:
    """The guessed input has the dtype of the model."""
    assert find_head(build_mlp(4, [5], 3).double()).name == "head"


@pytest.mark.parametrize(
    "reparametrized",
    [old_weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=["old weight_norm", "old spectral_norm", "weight_norm", "spectral_norm"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_head_whose_weight_is_computed_is_found(
    reparametrized: Callable[[nn.Linear], nn.Module], bias: bool
) -> None:
    """The parameters that a weight is computed from lead to its layer, not to an earlier one."""
    model = nn.Sequential(nn.Linear(4, 3), reparametrized(nn.Linear(3, 3, bias=bias)))
    head = find_head(model)
    assert head.name == "1"
    assert "Parametrized" not in str(head)


@pytest.mark.parametrize(
    "reparametrized",
    [old_weight_norm, spectral_norm, parametrizations.weight_norm],
    ids=["old weight_norm", "old spectral_norm", "weight_norm"],
)
def test_single_layer_whose_weight_is_computed_is_its_own_head(
    reparametrized: Callable[[nn.Linear], nn.Module],
) -> None:
    """The names of its parameters have no prefix."""
    assert find_head(reparametrized(nn.Linear(4, 3))).name == ""


# Meta tensors


def test_dry_run_has_no_data() -> None:
    """The model receives only meta tensors, on which nothing is computed."""
    DEVICES.clear()
    assert find_head(Recording()).name == "layer"
    assert DEVICES == ["meta"]


def test_dry_run_on_the_users_example_has_no_data() -> None:
    """Only the shape and dtype of the example are used."""
    DEVICES.clear()
    find_head(Recording(), torch.ones(2, 4))
    assert DEVICES == ["meta"]


def test_head_of_a_meta_model_is_found() -> None:
    """The head of a 360 GB model on the meta device is found."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(300_000, 300_000), nn.Linear(300_000, 3))
    assert find_head(model).name == "1"


def test_model_that_reads_values_is_run_on_real_tensors() -> None:
    """If the run on meta tensors fails, a run on real tensors finds the head."""
    head = find_head(ValueDependent())
    assert head.name == "last"
    assert head.found_by == "following the data"
    assert find_head(ValueDependent(), torch.ones(2, 4)).name == "last"


def test_recurrent_model_is_run_on_real_tensors() -> None:
    """On meta tensors, torch unrolls a recurrent layer step by step, which takes longer."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LSTM(4, 6, batch_first=True)
            self.last = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.body(inputs)[0][:, -1])
            return outputs

    head = find_head(Recurrent(), torch.ones(2, 5, 4))
    assert head.name == "last"
    assert head.found_by == "following the data"


@pytest.mark.slow
def test_head_of_a_small_model_is_found_without_loading_the_compiler() -> None:
    """A small model does not need the modules that torch imports for its first meta run."""
    code = (
        "import sys; from finetunelib import build_mlp; "
        "from finetunelib.finetuning import find_head; find_head(build_mlp(4, [8], 2)); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_head_of_a_resnet_is_found_in_half_a_second() -> None:
    """The search in a ResNet-50 takes under half a second of CPU time."""
    with torch.device("meta"):
        model = resnet50()
    find_head(model)  # The first run imports what torch needs for meta tensors.
    start = time.process_time()
    assert find_head(model).name == "fc"
    assert time.process_time() - start < 0.5


# Example inputs


def test_example_may_be_a_tuple() -> None:
    """The tensors are passed by position."""
    model = Adding(body=nn.Linear(4, 6), last=nn.Linear(6, 3))
    assert find_head(model, (torch.ones(2, 4), torch.ones(2, 4))).found_by == "following the data"


def test_example_may_be_a_mapping() -> None:
    """The tensors are passed by name."""
    model = Adding(body=nn.Linear(4, 6), last=nn.Linear(6, 3))
    example = {"right": torch.ones(2, 4), "left": torch.ones(2, 4)}
    assert find_head(model, example).name == "last"


def test_error_names_the_wrong_type_of_the_example() -> None:
    """An array is refused."""
    with pytest.raises(InvalidTypeError, match="ndarray"):
        find_head(nn.Linear(4, 3), np.ones((2, 4)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_texts_are_guessed_for_a_model_of_tokens() -> None:
    """A model that begins with an embedding receives integers."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8 * 4, 3))
    assert find_head(model).name == "2"


# Wrapped models


@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        nn.DataParallel,
        lambda model: compiled(nn.DataParallel(model)),
    ],
    ids=["compile", "DataParallel", "both"],
)
def test_head_of_a_wrapped_model_has_the_users_name(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    """The name does not contain the prefix of the wrapper."""
    model = build_mlp(4, [5], 3)
    head = find_head(wrap(model))
    assert head.name == "head"
    assert head.module is model.head


def test_head_in_a_compiled_part_has_the_users_name() -> None:
    """A wrapper inside the model does not change the name."""
    part = compiled(build_mlp(4, [5], 3))
    assert find_head(nn.Sequential(nn.Flatten(), part)).name == "1.head"


def test_dry_run_compiles_nothing() -> None:
    """The backend is not called."""
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        calls.append(1)
        return graph.forward

    find_head(compiled(build_mlp(4, [5], 3), backend))
    assert calls == []


# Models that do not run


@pytest.mark.parametrize(
    "name",
    ["fc", "classifier", "head", "heads", "score", "logits", "classification_head", "last_linear"],
)
def test_head_of_a_model_that_does_not_run_is_found_by_its_name(name: str) -> None:
    """The usual names are known, and the result says that the name decided."""
    model = Adding(**{"body": nn.Linear(4, 6), name: nn.Linear(6, 3), "other": nn.Linear(3, 4)})
    head = find_head(model)
    assert head.name == name
    assert "name" in head.found_by


def test_last_layer_under_the_usual_name_is_the_head() -> None:
    """A block of layers under the name ends with the head, as in VGG."""
    block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Dropout())
    assert find_head(Adding(body=nn.Linear(4, 6), classifier=block)).name == "classifier.2"


def test_last_layer_of_a_model_that_does_not_run_is_its_head() -> None:
    """If no name is known, the order of definition decides."""
    head = find_head(Adding(body=nn.Linear(4, 6), output=nn.Linear(6, 3)))
    assert head.name == "output"
    assert "last" in head.found_by


def test_another_layer_of_the_same_width_is_ambiguous_without_a_run() -> None:
    """Names and order could be wrong, so the user has to choose."""
    model = Adding(body=nn.Linear(4, 3), classifier=nn.Linear(3, 3))
    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(model)
    assert "`body`" in str(caught.value)
    assert "`classifier`" in str(caught.value)
    assert "example_input=" in str(caught.value)


def test_classifier_that_the_model_declares_is_the_head() -> None:
    """The declaration has priority over names and other layers of the same width."""
    model = Declaring(
        lambda own: own.get_submodule("output"), output=nn.Linear(4, 3), fc=nn.Linear(3, 3)
    )
    head = find_head(model)
    assert head.name == "output"
    assert "get_classifier" in head.found_by


@pytest.mark.parametrize("kind", [tuple, nn.ModuleList])
def test_classifiers_that_the_model_declares_are_listed(
    kind: Callable[[list[nn.Module]], object],
) -> None:
    """Several declared heads are ambiguous."""
    model = Declaring(
        lambda own: kind([own.get_submodule("one"), own.get_submodule("two")]),
        one=nn.Linear(4, 3),
        two=nn.Linear(3, 3),
    )
    with pytest.raises(AmbiguousHeadError, match=r"`one`.*`two`"):
        find_head(model)


def test_model_that_declares_no_classifier_has_no_head() -> None:
    """A model built without classes has no head, and the error lists its layers."""
    model = Declaring(lambda own: nn.Identity(), body=nn.Linear(4, 3))
    with pytest.raises(HeadNotFoundError, match=r"Identity.*`body`"):
        find_head(model)


def test_failing_get_classifier_is_a_library_error() -> None:
    """The message contains that of the model."""

    def failing(_: Declaring) -> object:
        raise KeyError("mine")

    with pytest.raises(HeadNotFoundError, match="mine"):
        find_head(Declaring(failing, body=nn.Linear(4, 3)))


def test_wrong_example_is_an_error_instead_of_a_search_by_names() -> None:
    """The user passed an example, so the error says that it does not fit."""
    model = Adding(body=nn.Linear(4, 6), classifier=nn.Linear(6, 3))
    with pytest.raises(HeadNotFoundError, match="example_input"):
        find_head(model, (torch.ones(2, 5), torch.ones(2, 5)))


def test_example_is_used() -> None:
    """A model for which no guess works is run on the example."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    assert find_head(model, torch.zeros(2, 2, dtype=torch.int64)).name == "2"


def test_images_are_guessed_for_a_convolutional_model() -> None:
    """The guesses include the size of a model that accepts only 28x28 images."""
    model = nn.Sequential(nn.Conv2d(1, 2, 5, stride=5), nn.Flatten(), nn.Linear(2 * 5 * 5, 3))
    assert find_head(model).name == "2"


# Models without a head


def test_two_heads_are_an_error_that_lists_both() -> None:
    """The error lists the two layers and none before them."""
    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(TwoHeads())
    assert "`coarse`" in str(caught.value)
    assert "`fine`" in str(caught.value)
    assert "`body`" not in str(caught.value)


def test_residual_around_the_last_layer_is_ambiguous() -> None:
    """A sum comes from both of its terms."""
    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(Residual())
    assert "`last`" in str(caught.value)
    assert "`body`" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "name", "uses"), [(Recurrent(), "step", 3), (TiedLayers(), "body", 2)]
)
def test_layer_that_is_used_more_than_once_is_not_a_head(
    model: nn.Module, name: str, uses: int
) -> None:
    """Replacing it would change more than the outputs; the error has its name and uses."""
    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(model)
    assert f"`{name}`" in str(caught.value)
    assert f"{uses} times" in str(caught.value)


def test_head_that_is_tied_to_an_embedding_is_refused() -> None:
    """The error names both places of the weight and the argument to pass."""
    with pytest.raises(AmbiguousHeadError, match=r"`embedding\.weight`.*`last\.weight`.*at='last'"):
        find_head(TiedEmbedding(), torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    "reparametrized", [lambda layer: layer, old_weight_norm], ids=["plain", "weight_norm"]
)
def test_tied_head_is_identified_by_its_bias(
    reparametrized: Callable[[nn.Linear], nn.Linear],
) -> None:
    """The error suggests the layer that computes the outputs, not the one defined first."""
    body, last = reparametrized(nn.Linear(4, 4)), reparametrized(nn.Linear(4, 4))
    shared = "weight_v" if hasattr(body, "weight_v") else "weight"
    setattr(last, shared, getattr(body, shared))
    with pytest.raises(AmbiguousHeadError, match=rf"`0` \(`0\.{shared}`\).*pass `at='1'`\."):
        find_head(nn.Sequential(body, last))


def test_tied_layers_without_biases_are_both_suggested() -> None:
    """Nothing shows which of them computes the outputs."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(AmbiguousHeadError, match=r"`at='0'` or `at='1'`"):
        find_head(model)


def test_many_layers_are_not_all_listed() -> None:
    """The error for a deep residual model without a head is short."""
    model = nn.Sequential(nn.Linear(4, 4), *[PreNorm() for _ in range(8)])
    with pytest.raises(AmbiguousHeadError, match=r"come from 9 layers.*and 3 more.*`head=`"):
        find_head(model)


def test_scripted_model_is_refused_with_the_names_of_its_layers() -> None:
    """The parts of a compiled program cannot be replaced."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated.
        scripted = torch.jit.script(model)
    with pytest.raises(HeadNotFoundError, match=r"torch\.jit.*`0`, `2`"):
        find_head(scripted)


@pytest.mark.parametrize("form", ["product", "functional", "einsum", "cosine"])
def test_head_that_is_a_bare_parameter_is_not_found(form: str) -> None:
    """It cannot be replaced, and the layer before it is not the head."""
    with pytest.raises(HeadNotFoundError):
        find_head(BareHead(form))


@pytest.mark.parametrize("form", ["product", "functional"])
def test_head_that_is_a_bare_parameter_is_named(form: str) -> None:
    """The error names the parameter."""
    with pytest.raises(HeadNotFoundError, match=r"`projection`|`bias`"):
        find_head(BareHead(form))


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Flatten(), nn.ReLU()), nn.Sequential(nn.BatchNorm1d(4), nn.PReLU())],
    ids=["no parameters", "no layer"],
)
def test_model_without_a_layer_has_no_head(model: nn.Module) -> None:
    """A head is a Linear or a convolution."""
    with pytest.raises(HeadNotFoundError, match="Linear"):
        find_head(model, torch.ones(2, 4))


def test_model_without_a_layer_needs_an_example() -> None:
    """If no input can be guessed, the error asks for one."""
    with pytest.raises(HeadNotFoundError, match="example_input="):
        find_head(nn.ReLU())


def test_layers_that_the_outputs_do_not_come_from_are_listed() -> None:
    """The graph of a model that detaches its outputs leads to no head."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.layer(inputs)
            return outputs.detach()

    with pytest.raises(HeadNotFoundError) as caught:
        find_head(Cut())
    assert "`layer`" in str(caught.value)
    assert "at=" in str(caught.value)


def test_layer_of_another_width_than_the_outputs_is_not_a_head() -> None:
    """The error names the last layer, its width and the shape of the outputs."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 20), nn.Unflatten(1, (10, 2)))
    with pytest.raises(HeadNotFoundError) as caught:
        find_head(model)
    assert "`1`" in str(caught.value)
    assert "20" in str(caught.value)
    assert "(2, 10, 2)" in str(caught.value)


def test_wrong_example_is_an_error_that_names_the_argument() -> None:
    """The error contains the reason that torch gives."""
    with pytest.raises(HeadNotFoundError) as caught:
        find_head(build_mlp(4, [5], 3), torch.ones(2, 7))
    assert "`example_input`" in str(caught.value)
    assert "(2, 7)" in str(caught.value)


def test_model_whose_output_is_not_a_tensor_has_no_head() -> None:
    """The error names the type of the output."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(inputs), inputs

    with pytest.raises(HeadNotFoundError, match="tuple"):
        find_head(Pair())


def test_lazy_model_that_was_never_run_is_a_library_error() -> None:
    """A layer without weights cannot be followed."""
    with pytest.raises(HeadError):
        find_head(nn.Sequential(nn.Linear(4, 6), nn.LazyLinear(3)))


# Side effects


def test_model_is_not_changed() -> None:
    """Values, buffers, gradients, `requires_grad`, modes and the random state stay bit for bit."""
    model = noisy()
    before = snapshot(model)
    assert find_head(model).name == "6"
    assert changes(before, snapshot(model)) == set()


def test_model_is_not_changed_when_no_head_is_found() -> None:
    """An error restores the model as well."""
    model = noisy()
    before = snapshot(model)
    with pytest.raises(HeadNotFoundError):
        find_head(model, torch.ones(2, 7))
    assert changes(before, snapshot(model)) == set()


def test_buffer_that_every_forward_changes_is_restored() -> None:
    """This includes a buffer that changes in eval mode."""
    model = Counting()
    find_head(model)
    assert model.calls.item() == 0


def test_caches_of_the_model_are_restored() -> None:
    """Attributes, containers and hooks that a forward sets are restored."""
    model = Caching()
    model(torch.ones(2, 4))
    kept, hooks = model.last_outputs, len(model._forward_hooks)
    find_head(model)
    assert model.last_outputs is kept
    assert list(model.by_device) == ["cpu"]
    assert len(model.history) == 1
    assert len(model._forward_hooks) == hooks


@pytest.mark.parametrize("old", [old_weight_norm, spectral_norm], ids=["weight", "spectral"])
def test_weight_that_a_forward_computes_is_not_changed(
    old: Callable[[nn.Linear], nn.Linear],
) -> None:
    """The deprecated normalizations set the weight of the layer in each forward."""
    model = nn.Sequential(old(nn.Linear(4, 6)), nn.Linear(6, 3))
    weight = model[0].weight
    find_head(model)
    assert model[0].weight is weight


def test_warnings_of_the_model_are_not_repeated() -> None:
    """A dry run does not show the warnings of the model."""

    class Warned(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            warnings.warn("mine", UserWarning, stacklevel=2)
            return super().forward(input)

    assert find_head(Warned(4, 3)).name == ""


def test_random_states_of_numpy_and_python_are_not_changed() -> None:
    """A model that draws random numbers in its forward draws the same ones afterwards."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            noise = random.random() + np.random.rand()  # noqa: NPY002
            outputs: Tensor = self.layer(inputs + noise)
            return outputs

    python_state = random.getstate()
    numpy_state = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    find_head(Drawing())
    assert random.getstate() == python_state
    assert np.random.get_state(legacy=False)["state"]["pos"] == numpy_state  # noqa: NPY002


def test_hooks_of_the_user_run_and_stay() -> None:
    """A forward hook is neither lost nor duplicated."""
    model = build_mlp(4, [5], 3)
    calls: list[int] = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    find_head(model)
    calls.clear()
    model(torch.ones(2, 4))
    assert calls == [1]


# Head


def test_text_of_a_head_describes_it() -> None:
    """It contains the name, kind and widths."""
    text = str(find_head(build_mlp(784, [500], 10)))
    assert all(part in text for part in ("`head`", "Linear", "500", "10"))


def test_text_of_a_head_that_is_the_model_describes_it() -> None:
    """It does not contain an empty name."""
    text = str(find_head(nn.Linear(4, 3)))
    assert "``" not in text
    assert "model itself" in text


def test_head_cannot_be_changed() -> None:
    """A result is immutable."""
    head = find_head(nn.Linear(4, 3))
    with pytest.raises(AttributeError):
        head.name = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_head_shows_its_public_path() -> None:
    """Users import it from `finetunelib.finetuning`."""
    assert Head.__module__ == "finetunelib.finetuning"
    assert find_head.__module__ == "finetunelib.finetuning"


def test_error_for_two_outputs_names_the_layers() -> None:
    """The model runs, so the error does not ask for another input."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.age, self.kind = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.age(inputs), self.kind(inputs)

    for example in (None, torch.zeros(2, 4)):
        with pytest.raises(HeadNotFoundError, match="`age`, `kind`") as caught:
            find_head(Two(), example)
        assert "Pass `example_input=`" not in str(caught.value)
    model = freeze_and_replace_head(Two(), 5, at="age", example_input=torch.zeros(2, 4))
    assert model.get_submodule("age").out_features == 5


def test_forward_that_writes_into_its_weights_does_not_change_them() -> None:
    """A dry run works on copies."""

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            self.body.weight.data.clamp_(-0.01, 0.01)
            outputs: Tensor = self.last(self.body(inputs))
            return outputs

    model = Clamped()
    before = model.body.weight.clone()
    assert find_head(model, torch.zeros(2, 4)).name == "last"
    assert torch.equal(model.body.weight, before)


@pytest.mark.filterwarnings("ignore")  # torch deprecated this kind of quantization
def test_quantized_model_is_refused_with_its_layers() -> None:
    """Its packed weights cannot be followed."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    quantize: Any = torch.ao.quantization.quantize_dynamic
    quantized = quantize(model, {nn.Linear})
    with pytest.raises(HeadNotFoundError, match="quantized: `0`, `1`"):
        find_head(quantized)


@pytest.mark.parametrize("wrong", ["model.onnx", nn.Linear, 3])
def test_value_that_is_not_a_model_is_refused(wrong: Any) -> None:
    """The error names the argument."""
    with pytest.raises(InvalidTypeError, match="`model` must be"):
        find_head(wrong)
