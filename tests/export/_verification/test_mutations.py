"""Changes to the exported file of a ResNet are found and located."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

from support_models import samples, seeded
from support_mutations import (
    Exported,
    Mutation,
    attributes,
    both,
    check_found,
    exported,
    fixed_input,
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


def _resnet() -> nn.Module:
    """Return a ResNet-18 with calibrated statistics and a head whose outputs vary."""
    model: nn.Module = torchvision.models.resnet18(num_classes=10).train()
    with torch.no_grad():
        for seed in range(10):
            model(samples(8, 3, 64, 64, seed=seed))
    nn.init.normal_(model.get_parameter("fc.weight"))
    return model.eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A ResNet-18 and its file."""
    images = [samples(n, 3, 64, 64, seed=n) for n in (1, 2, 3)]
    return exported(tmp_path_factory.mktemp("exported"), seeded(_resnet), *images)


def _reversed(values: Any) -> Any:
    return values[::-1]


#: For each change, the function that makes it, the node found, and the modules it computes.
RESNET: dict[str, tuple[Mutation, str | None, str]] = {
    "the first weights 1% larger": (
        weights("conv1.weight", lambda w: w * 1.01),
        "node_Conv_292",
        "conv1, bn1",
    ),
    "one weight in the middle": (
        one_weight("layer2.1.conv1.weight", 1.0),
        "node_Conv_308",
        "layer2.1.conv1, layer2.1.bn1",
    ),
    "the last convolution 2% larger": (
        weights("layer4.1.conv2.weight", lambda w: w * 1.02),
        "node_Conv_330",
        "layer4.1.conv2, layer4.1.bn2",
    ),
    "one output channel set to zero": (
        weights("layer1.1.conv2.weight", lambda w: w * (np.arange(64) != 7).reshape(-1, 1, 1, 1)),
        "node_Conv_300",
        "layer1.1.conv2, layer1.1.bn2",
    ),
    "the weights of two layers swapped": (
        swapped_weights("layer3.0.conv2.weight", "layer3.1.conv1.weight"),
        "node_Conv_314",
        "layer3.0.conv2, layer3.0.bn2",
    ),
    "a folded bias shifted": (
        weights("layer3.0.downsample.0.weight_bias", lambda b: b + 0.05),
        "node_Conv_316",
        "layer3.0.downsample.0, layer3.0.downsample.1",
    ),
    "a folded bias set to zero": (
        weights("layer2.0.conv1.weight_bias", lambda b: b * 0),
        "node_Conv_302",
        "layer2.0.conv1, layer2.0.bn1",
    ),
    "half of the input channels removed": (
        weights("layer1.0.conv1.weight", lambda w: w[:, :32]),
        "node_Conv_294",
        "layer1.0.conv1, layer1.0.bn1",
    ),
    "one bias of the head": (one_weight("fc.bias", 0.2), "node_linear", "fc"),
    "the classes in another order": (
        both(weights("fc.weight", _reversed), weights("fc.bias", _reversed)),
        "node_linear",
        "fc",
    ),
    "a Relu removed before a Conv": (
        removed("relu_1"),
        "node_Conv_296",
        "layer1.0.relu, layer1.0.conv2, layer1.0.bn2",
    ),
    "a Relu removed before Conv and Add": (
        removed("relu_2"),
        "node_Conv_298",
        "layer1.0.relu, layer1.1.conv1, layer1.1.bn1",
    ),
    "the last Relu removed": (removed("relu_16"), "node_mean", "layer4.1.relu, avgpool"),
    "the first Relu removed": (removed("relu"), "node_max_pool2d", "relu, maxpool"),
    "a Relu replaced by Identity": (operator("relu_7", "Identity"), "node_relu_7", "layer2.1.relu"),
    "a Relu replaced by LeakyRelu": (
        operator("relu_5", "LeakyRelu", alpha=0.01),
        "node_relu_5",
        "layer2.0.relu",
    ),
    "a Relu replaced by Sigmoid": (operator("relu", "Sigmoid"), "node_relu", "relu"),
    "strides that change a shape": (
        attributes("getitem_3", strides=[2, 2]),
        "node_Conv_294",
        "layer1.0.conv1, layer1.0.bn1",
    ),
    "strides that change two shapes alike": (
        both(attributes("getitem_48", strides=[2, 2]), attributes("getitem_51", strides=[4, 4])),
        "node_Conv_324",
        "layer4.0.conv2, layer4.0.bn2",
    ),
    "strides that the whole file follows": (
        attributes("getitem", strides=[1, 1]),
        "node_Conv_292",
        "conv1, bn1",
    ),
    "padding on one side": (
        attributes("getitem_6", pads=[0, 0, 2, 2]),
        "node_Conv_296",
        "layer1.0.conv2, layer1.0.bn2",
    ),
    "no padding, which the runtime refuses to load": (
        attributes("getitem_6", pads=[0, 0, 0, 0]),
        "node_Conv_296",
        "layer1.0.conv2, layer1.0.bn2",
    ),
    "dilations": (
        attributes("getitem_45", dilations=[2, 2], pads=[2, 2, 2, 2]),
        "node_Conv_322",
        "layer4.0.conv1, layer4.0.bn1",
    ),
    "groups, which raise an error in the runtime": (
        attributes("getitem_9", group=2),
        "node_Conv_298",
        "layer1.1.conv1, layer1.1.bn1",
    ),
    "a larger kernel of MaxPool": (
        attributes("max_pool2d", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        "node_max_pool2d",
        "maxpool",
    ),
    "MaxPool made AveragePool": (
        operator(
            "max_pool2d",
            "AveragePool",
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[2, 2],
        ),
        "node_max_pool2d",
        "maxpool",
    ),
    "another operand of an Add": (rewired("add_121", 1, "max_pool2d"), "node_add_121", "layer1.1"),
    "a residual connection removed": (removed("add_243"), "node_relu_8", "layer2.1, layer2.1.relu"),
    "Gemm's alpha": (attributes("output", alpha=1.05), "node_linear", "fc"),
    "the axes of the mean": (
        weights("val_227", lambda axes: np.array([1, 2], axes.dtype)),
        "node_mean",
        "avgpool",
    ),
    "the batch fixed in a Reshape": (
        weights("val_232", lambda shape: np.array([2, 512], shape.dtype)),
        "node_Reshape_333",
        "(the model)",
    ),
    "the batch fixed at the input": (fixed_input(2), None, "conv1"),
    "a factor of 1.01 inserted": (
        inserted("relu_3", ("Mul", {}, [1.01])),
        "inserted_Mul",
        "layer1.1.relu",
    ),
    "values rounded to bfloat16": (
        inserted(
            "getitem_12", ("Cast", {"to": onnx.TensorProto.BFLOAT16}, []), ("Cast", {"to": 1}, [])
        ),
        "inserted_Cast",
        "layer1.1.conv2, layer1.1.bn2",
    ),
    "values clipped": (
        inserted("relu_12", ("Clip", {}, [0.0, 1.0])),
        "inserted_Clip",
        "layer3.1.relu",
    ),
}


@pytest.mark.parametrize("change", RESNET)
def test_a_change_of_a_resnet_is_found_and_located(
    resnet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The error names the changed node, or the one that replaces it, and its modules."""
    trace_once(monkeypatch, _programs)
    check_found(resnet, RESNET[change][0], tmp_path / "changed.onnx", *RESNET[change][1:])


def test_a_change_is_located_without_the_exported_program(resnet: Exported, tmp_path: Path) -> None:
    """If the program of the export is not available, the model is traced again."""
    check_found(
        resnet, operator("relu_7", "Abs"), tmp_path / "changed.onnx", "node_relu_7", "layer2.1.relu"
    )
