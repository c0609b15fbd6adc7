"""What each node of an exported graph says about where it comes from."""

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
    """A model of which the exporter folds the BatchNorm into the Conv."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(images).mean((2, 3)))
        return outputs


Notes = dict[str, dict[str, str]]


def notes_of(path: Path) -> Notes:
    """Return what the nodes of a file say, by their operator (the last of each kind)."""
    nodes = onnx.load(path).graph.node
    return {n.op_type: {entry.key: entry.value for entry in n.metadata_props} for n in nodes}


def exported(model: nn.Module, path: Path) -> Notes:
    """Export a model of images without a comparison, and return what its nodes say."""
    return notes_of(export_onnx(model, path, samples(2, 3, 8, 8), verify=False).path)


@pytest.fixture(scope="module")
def folding(tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """A folded model whose Conv is frozen and whose BatchNorm is not."""
    model = seeded(Folding)
    model.get_submodule("features.0").requires_grad_(requires_grad=False)
    return exported(model, tmp_path_factory.mktemp("folding") / "m.onnx")


def test_a_node_names_its_module_and_class(folding: Notes) -> None:
    """By the dotted name in the user's model."""
    assert (folding["Relu"]["module"], folding["Relu"]["class"]) == ("features.2", "ReLU")
    assert (folding["Gemm"]["module"], folding["Gemm"]["class"]) == ("head", "Linear")


def test_a_node_names_its_parameters_and_their_shapes(folding: Notes) -> None:
    """With the names that they have in the state dict."""
    assert folding["Gemm"]["parameters"] == "head.weight [2, 4], head.bias [2]"
    assert "parameters" not in folding["Relu"]


def test_a_folded_node_takes_all_its_parameters_into_account(folding: Notes) -> None:
    """A Conv with a BatchNorm in it is partly frozen where one of both is."""
    assert folding["Conv"]["module"] == "features.0, features.1"
    assert folding["Conv"]["class"] == "Conv2d, BatchNorm2d"
    assert folding["Conv"]["parameters"] == (
        "features.0.weight [4, 3, 3, 3], features.1.weight [4], features.1.bias [4]"
    )
    assert folding["Conv"]["state"] == "partly frozen"
    assert folding["Gemm"]["state"] == "trainable"


def test_a_frozen_node_says_so(tmp_path: Path) -> None:
    """After `freeze`, all that is in the frozen part is frozen."""
    model = seeded(Folding)
    freeze(model, "features")
    notes = exported(model, tmp_path / "m.onnx")
    assert notes["Conv"]["state"] == "frozen"
    assert notes["Gemm"]["state"] == "trainable"


def test_a_node_says_the_shape_of_its_output(folding: Notes) -> None:
    """With the dynamic axes by their names."""
    assert folding["Gemm"]["output"] == "batch x 2"
    assert folding["Conv"]["output"] == "batch x 4 x 6 x 6"


def test_the_exporters_notes_about_itself_are_gone(folding: Notes) -> None:
    """What is left is the path of modules, which other tools read."""
    keys = {key for notes in folding.values() for key in notes}
    assert keys == {"module", "class", "parameters", "state", "output", "namespace"}


def test_the_model_as_a_whole_has_a_name_too(folding: Notes) -> None:
    """What its own forward does is said to be its own."""
    assert folding["ReduceMean"]["module"] == "(the model)"
    assert folding["ReduceMean"]["class"] == "Folding"


def test_an_output_with_a_name_of_its_own_is_annotated(tmp_path: Path) -> None:
    """Giving the output a name hides nothing of the node that makes it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / "m.onnx"
    export_onnx(model, path, samples(2, 3, 8, 8), output_names=["features"], verify=False)
    assert notes_of(path)["Conv"]["module"] == "0, 1"


@pytest.mark.slow
def test_a_pipeline_does_not_show_in_the_names(tmp_path: Path) -> None:
    """With normalisation and softmax around it, the model's own names stay."""
    path = tmp_path / "m.onnx"
    raw = torch.randint(0, 256, (2, 1, 2, 2), dtype=torch.uint8)
    export_onnx(build_mlp(4, [8], 3, seed=0), path, raw, preprocessing=(0.5, 0.5), softmax=True)
    notes = notes_of(path)
    assert notes["Gemm"]["module"] == "head"
    assert notes["Gemm"]["parameters"] == "head.weight [3, 8], head.bias [3]"
    assert notes["Sub"]["module"] == "preprocessing"
    assert "module" not in notes["Softmax"]
