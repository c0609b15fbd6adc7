"""Changes to the exported files of small models are found and located."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from finetunelib import build_mlp
from support_models import samples, seeded
from support_mutations import (
    Exported,
    Mutation,
    attributes,
    check_found,
    exported,
    inserted,
    one_weight,
    operator,
    removed,
    rewired,
    swapped_weights,
    trace_once,
    weights,
)

pytestmark = pytest.mark.slow

_programs: dict[str, Any] = {}


class Attention(nn.Module):
    """A small causal transformer whose mask contains infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(hidden)).chunk(3, -1)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / 4).masked_fill(mask, float("-inf"))
        hidden = hidden + self.out(scores.softmax(-1) @ v)
        logits: Tensor = self.head(hidden.mean(1))
        return logits


class Gate(nn.Module):
    """A model with values that hardly vary, as in an untrained squeeze-and-excitation block."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(inputs * torch.sigmoid(1e-6 * self.gate(inputs)))
        return outputs


def _pixels(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """The models, each exported once."""
    folder = tmp_path_factory.mktemp("exported")
    rows = [samples(n, 4, seed=n) for n in (1, 2, 7)]
    tokens = [torch.arange(n * 6).reshape(n, 6) * 7 % 50 for n in (2, 5)]
    pixels = [_pixels(n, n) for n in (2, 5)]
    convolution = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    )
    scaled = {"preprocessing": ([0.5, 0.4, 0.3], [0.2, 0.2, 0.2]), "softmax": True}
    return {
        "mlp": exported(folder, build_mlp(4, [8, 6], 3, seed=0), *rows),
        "attention": exported(folder, seeded(Attention).eval(), *tokens),
        "pipeline": exported(folder, convolution, *pixels, **scaled),
    }


def _by(factor: float) -> Any:
    return lambda values: values * np.float32(factor)


#: For each change, the model, the function that makes it, the node found, and its modules.
CHANGES: dict[str, tuple[str, Mutation, str, str]] = {
    "a bias of the MLP": (
        "mlp",
        one_weight("backbone.1.bias", 0.1),
        "node_linear",
        "backbone.1",
    ),
    "a Relu of the MLP": ("mlp", removed("relu"), "node_linear_1", "backbone.2, backbone.3"),
    "the weights not transposed": (
        "mlp",
        attributes("linear_1", transB=0),
        "node_linear_1",
        "backbone.3",
    ),
    "the head without its bias": ("mlp", attributes("output", beta=0.0), "node_linear_2", "head"),
    "an embedding": (
        "attention",
        weights("embedding.weight", _by(1.05)),
        "node_embedding",
        "embedding",
    ),
    "another row of the embedding": (
        "attention",
        weights("embedding.weight", lambda table: np.roll(table, 1, axis=0)),
        "node_embedding",
        "embedding",
    ),
    "LayerNorm's epsilon": (
        "attention",
        attributes("layer_norm", epsilon=0.5),
        "node_layer_norm",
        "norm",
    ),
    "LayerNorm taken out": (
        "attention",
        removed("layer_norm"),
        "node_linear",
        "norm, qkv",
    ),
    "query and key swapped": (
        "attention",
        rewired("transpose", 0, "split_split_0"),
        "node_transpose",
        "(the model)",
    ),
    "the axis of the softmax": (
        "attention",
        attributes("softmax", axis=1),
        "node_softmax",
        "(the model)",
    ),
    "the scale of the attention": (
        "attention",
        weights("scalar_tensor_default", _by(1.1)),
        "node_div",
        "(the model)",
    ),
    "the mask removed": (
        "attention",
        removed("masked_fill", source=2),
        "node_softmax",
        "(the model)",
    ),
    "the projection's weights": ("attention", weights("val_15", _by(1.1)), "node_linear_1", "out"),
    "the residual connection removed": (
        "attention",
        removed("add_52", source=1),
        "node_mean",
        "(the model)",
    ),
    "the mean for the normalization": (
        "pipeline",
        weights("preprocessing.mean", lambda mean: mean + np.float32(0.1)),
        "node_sub_2",
        "preprocessing",
    ),
    "the scaling": (
        "pipeline",
        weights("scalar_tensor_default", _by(256 / 255)),
        "node_div",
        "preprocessing",
    ),
    "a convolution in a pipeline": (
        "pipeline",
        weights("0.weight", _by(1.1)),
        "node_conv2d",
        "0",
    ),
    "the softmax over the batch": (
        "pipeline",
        attributes("probabilities", axis=0),
        "node_softmax",
        "postprocessing",
    ),
    "the softmax replaced by a sigmoid": (
        "pipeline",
        operator("probabilities", "Sigmoid"),
        "node_softmax",
        "postprocessing",
    ),
    "an active Dropout": (
        "pipeline",
        inserted("relu", ("Mul", {}, [0.9])),
        "inserted_Mul",
        "1",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_located(
    made: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The error names the changed node, or the one that replaces it, and its modules."""
    trace_once(monkeypatch, _programs)
    model, mutation, found, module = CHANGES[change]
    check_found(made[model], mutation, tmp_path / "changed.onnx", found, module)


def test_a_change_is_located_in_a_model_with_external_weights(
    made: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values are computed with the weights of the second file."""
    trace_once(monkeypatch, _programs)

    def mutate(model: ModelProto) -> None:
        swapped_weights("norm.weight", "norm.bias")(model)
        onnx.save(
            model,
            tmp_path / "large.onnx",
            save_as_external_data=True,
            location="large.bin",
            size_threshold=0,
        )

    path = tmp_path / "large.onnx"
    check_found(made["attention"], mutate, path, "node_layer_norm", "norm")
    assert "large.bin" in {entry.name for entry in tmp_path.iterdir()}


def test_values_that_hardly_vary_are_not_reported(tmp_path: Path) -> None:
    """Their rounding errors are large relative to their range, but a later change is found."""
    gate = exported(tmp_path, seeded(Gate), samples(7, 4))
    change = one_weight("head.bias", 0.1)
    check_found(gate, change, tmp_path / "changed.onnx", "node_linear_1", "head")


def test_a_failing_run_prints_nothing(
    made: dict[str, Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The error of ONNX Runtime is part of the exception and is not printed."""
    trace_once(monkeypatch, _programs)
    fixed = weights("val_6", lambda shape: np.array([2, 144], shape.dtype))
    check_found(made["pipeline"], fixed, tmp_path / "changed.onnx", "node_Reshape_8", "2")
    assert capfd.readouterr() == ("", "")
