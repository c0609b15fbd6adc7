"""The annotations of the nodes of an exported graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp, export_onnx
from finetunelib.finetuning import freeze
from support_models import samples, seeded


class Folding(nn.Module):
    """A model whose BatchNorm is folded into the Conv by the exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(images).mean((2, 3)))
        return outputs


Notes = dict[str, dict[str, str]]


def notes_of(path: Path) -> Notes:
    """Return the annotations of the nodes of a file, by operator (the last node of each type)."""
    nodes = onnx.load(path).graph.node
    return {n.op_type: {entry.key: entry.value for entry in n.metadata_props} for n in nodes}


def exported(model: nn.Module, path: Path) -> Notes:
    """Export a model of images without verification, and return the annotations."""
    return notes_of(export_onnx(model, path, samples(2, 3, 8, 8), verify=False).path)


@pytest.fixture(scope="module")
def folding(tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """The annotations of a model whose Conv is frozen and whose BatchNorm is not."""
    model = seeded(Folding)
    model.get_submodule("features.0").requires_grad_(requires_grad=False)
    return exported(model, tmp_path_factory.mktemp("folding") / "m.onnx")


def test_a_node_names_its_module_and_class(folding: Notes) -> None:
    """The module has its qualified name in the model."""
    assert (folding["Relu"]["module"], folding["Relu"]["class"]) == ("features.2", "ReLU")
    assert (folding["Gemm"]["module"], folding["Gemm"]["class"]) == ("head", "Linear")


def test_a_node_names_its_parameters_and_their_shapes(folding: Notes) -> None:
    """Parameters have their names in the state dict."""
    assert folding["Gemm"]["parameters"] == "head.weight [2, 4], head.bias [2]"
    assert "parameters" not in folding["Relu"]


def test_a_folded_node_takes_all_its_parameters_into_account(folding: Notes) -> None:
    """If only the Conv or only the BatchNorm is frozen, the node is partly frozen."""
    assert folding["Conv"]["module"] == "features.0, features.1"
    assert folding["Conv"]["class"] == "Conv2d, BatchNorm2d"
    assert folding["Conv"]["parameters"] == (
        "features.0.weight [4, 3, 3, 3], features.1.weight [4], features.1.bias [4]"
    )
    assert folding["Conv"]["state"] == "partly frozen"
    assert folding["Gemm"]["state"] == "trainable"


def test_a_node_of_a_frozen_module_is_annotated_as_frozen(tmp_path: Path) -> None:
    """After `freeze`, the nodes of the frozen part are annotated as frozen."""
    model = seeded(Folding)
    freeze(model, "features")
    notes = exported(model, tmp_path / "m.onnx")
    assert notes["Conv"]["state"] == "frozen"
    assert notes["Gemm"]["state"] == "trainable"


def test_a_node_is_annotated_with_its_output_shape(folding: Notes) -> None:
    """Dynamic axes are shown by name."""
    assert folding["Gemm"]["output"] == "batch x 2"
    assert folding["Conv"]["output"] == "batch x 4 x 6 x 6"


def test_internal_annotations_of_the_exporter_are_removed(folding: Notes) -> None:
    """Only the path of modules remains, because other tools read it."""
    keys = {key for notes in folding.values() for key in notes}
    assert keys == {"module", "class", "parameters", "state", "output", "namespace"}


def test_nodes_of_the_models_own_forward_name_the_model(folding: Notes) -> None:
    """They are annotated with "(the model)" and its class."""
    assert folding["ReduceMean"]["module"] == "(the model)"
    assert folding["ReduceMean"]["class"] == "Folding"


def test_a_renamed_output_keeps_its_annotations(tmp_path: Path) -> None:
    """`output_names` does not change the annotations of the node that computes the output."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / "m.onnx"
    export_onnx(model, path, samples(2, 3, 8, 8), output_names=["features"], verify=False)
    assert notes_of(path)["Conv"]["module"] == "0, 1"


@pytest.mark.slow
def test_preprocessing_and_softmax_do_not_change_the_names(tmp_path: Path) -> None:
    """The names of the modules and parameters are those of the model alone."""
    path = tmp_path / "m.onnx"
    raw = torch.randint(0, 256, (2, 1, 2, 2), dtype=torch.uint8)
    export_onnx(build_mlp(4, [8], 3, seed=0), path, raw, preprocessing=(0.5, 0.5), softmax=True)
    notes = notes_of(path)
    assert notes["Gemm"]["module"] == "head"
    assert notes["Gemm"]["parameters"] == "head.weight [3, 8], head.bias [3]"
    assert notes["Sub"]["module"] == "preprocessing"
    assert "module" not in notes["Softmax"]
