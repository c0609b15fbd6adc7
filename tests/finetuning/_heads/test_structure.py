"""`at=` is tried: a model that ran must run with the new head, with the same kind of output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, fcn_resnet50

from finetunelib import freeze_and_replace_head
from finetunelib.errors import HeadError
from finetunelib.finetuning import replace_head
from finetunelib.finetuning._heads.structure import structure_of, text_of


class Several(nn.Module):
    """A model that returns its heads' outputs in some form."""

    def __init__(self, form: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.heads = nn.ModuleDict({"age": nn.Linear(6, 2), "kind": nn.Linear(6, 3)})
        self.form = form

    def forward(self, inputs: Tensor) -> object:
        features = self.body(inputs)
        age, kind = (head(features) for head in self.heads.values())
        return self.form(age, kind)


class PooledHead(nn.Module):
    """A head that reads the first of several tokens, as in RoBERTa."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.out(torch.tanh(self.dense(inputs[:, 0])))
        return outputs


class TwoPartHead(nn.Module):
    """A head that returns two tensors, as the box predictor of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(inputs), self.boxes(inputs)


FORMS: list[Callable[[Tensor, Tensor], object]] = [
    lambda age, kind: {"age": age, "kind": kind},
    lambda age, kind: (age, kind),
    lambda age, kind: [age, kind],
    lambda age, kind: (kind, {"extra": [age]}),
    lambda age, kind: SimpleNamespace(logits=kind, age=age),
]


@pytest.mark.parametrize("form", FORMS, ids=["dict", "tuple", "list", "nested", "logits"])
def test_head_of_a_model_with_several_outputs_is_replaced(
    form: Callable[[Tensor, Tensor], object],
) -> None:
    """One of the heads is replaced, and the output keeps its form."""
    model = Several(form)
    before = structure_of(model(torch.ones(2, 4)))
    freeze_and_replace_head(model, num_classes=7, at="heads.kind")
    assert structure_of(model(torch.ones(2, 4))) == before


@pytest.mark.parametrize("example", [None, torch.ones(2, 4)], ids=["guess", "example"])
@pytest.mark.parametrize("head", [None, lambda width: nn.Linear(width, 7)])
def test_container_is_not_replaced_by_a_layer(head: Any, example: Tensor | None) -> None:
    """The error names the parts to choose from, and the model is unchanged."""
    model = Several(FORMS[0])
    old = model.heads
    with pytest.raises(HeadError, match=r"`heads\.age`, `heads\.kind`"):
        freeze_and_replace_head(
            model, None if head else 7, head=head, at="heads", example_input=example
        )
    assert model.heads is old
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_container_is_replaced_by_another_container() -> None:
    """A module that the user passes may replace all heads."""
    model = Several(FORMS[0])
    heads = nn.ModuleDict({"age": nn.Linear(6, 5), "kind": nn.Linear(6, 7)})
    freeze_and_replace_head(model, head=heads, at="heads")
    assert model(torch.ones(2, 4))["kind"].shape == (2, 7)


def test_container_with_other_parts_is_refused() -> None:
    """The keys of the output would change."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"age": nn.Linear(4, 1)})

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {name: head(inputs) for name, head in self.heads.items()}

    with pytest.raises(HeadError, match=r"sex.*age"):
        replace_head(Named(), head=nn.ModuleDict({"sex": nn.Linear(4, 2)}), at="heads")


def test_head_that_pools_is_not_replaced_by_a_layer() -> None:
    """Its outputs would have another number of dimensions; the error shows both shapes."""
    model = nn.Sequential(nn.Linear(4, 6), PooledHead())
    with pytest.raises(HeadError, match=r"\(2, 5, 7\) instead of \(2, 3\)"):
        replace_head(model, num_classes=7, at="1", example_input=torch.ones(2, 5, 4))
    assert isinstance(model[1], PooledHead)
    replace_head(model, num_classes=7, at="1.out", example_input=torch.ones(2, 5, 4))
    assert model(torch.ones(2, 5, 4)).shape == (2, 7)


def test_head_of_the_user_may_change_the_dimensions() -> None:
    """Only a layer that the library creates must keep them."""
    model = nn.Sequential(nn.Linear(4, 6), PooledHead())
    replace_head(model, head=nn.Linear(6, 7), at="1", example_input=torch.ones(2, 5, 4))
    assert model(torch.ones(2, 5, 4)).shape == (2, 5, 7)


@pytest.mark.parametrize("unpacked", [True, False])
def test_head_with_two_outputs_is_not_replaced_by_a_layer(unpacked: bool) -> None:
    """The model fails, or it would return one tensor instead of two."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.predictor = nn.Linear(4, 6), TwoPartHead()

        def forward(self, inputs: Tensor) -> object:
            outputs = self.predictor(self.body(inputs))
            if not unpacked:
                return outputs
            scores, boxes, *_ = outputs
            return {"scores": scores, "boxes": boxes}

    model = Detector()
    old = model.predictor
    with pytest.raises(HeadError, match="predictor"):
        replace_head(model, num_classes=7, at="predictor", example_input=torch.ones(3, 4))
    assert model.predictor is old


def test_layer_whose_outputs_are_reshaped_is_refused() -> None:
    """An axis that had the old width must have the new one."""
    pool = nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), pool, nn.Flatten())
    with pytest.raises(HeadError, match=r"\(2, 180\)"):
        replace_head(model, num_classes=5, at="1", example_input=torch.ones(2, 1, 8, 8))


def test_head_that_is_called_by_keyword_is_tried() -> None:
    """The new head receives the arguments that the model passes."""

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(input=self.body(inputs))
            return outputs

    model = ByKeyword()
    replace_head(model, head=nn.Linear(6, 7))
    assert model(torch.ones(2, 4)).shape == (2, 7)
    with pytest.raises(HeadError):
        replace_head(model, head=nn.Linear(6, 7, dtype=torch.float64))


# Structures


def test_sizes_and_numbers_of_boxes_are_not_structure() -> None:
    """A detector returns a list with as many boxes as it finds."""
    one = [{"boxes": torch.ones(3, 4), "labels": torch.ones(3)}]
    other = [{"boxes": torch.ones(0, 4), "labels": torch.ones(0)}] * 2
    assert structure_of(one) == structure_of(other)


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(2, 3),
        (torch.ones(2),),
        [torch.ones(2)],
        {"b": torch.ones(2)},
        OrderedDict(a=torch.ones(2)),
        {"a": torch.ones(2, 1)},
        {"a": None},
        {"a": torch.ones(2), "b": 3},
    ],
    ids=text_of,
)
def test_containers_keys_and_dimensions_are_structure(other: object) -> None:
    """Each of these is told from a dict with one vector."""
    assert structure_of({"a": torch.ones(2)}) != structure_of(other)


# torchvision


@pytest.mark.slow
def test_box_predictor_is_not_replaced_by_a_layer() -> None:
    """A detector runs before and after, and has its old predictor again."""
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=32, max_size=32
    )
    old = model.roi_heads.box_predictor
    with pytest.raises(HeadError, match="box_predictor"):
        freeze_and_replace_head(model, num_classes=3, at="roi_heads.box_predictor")
    assert model.roi_heads.box_predictor is old
    new = detection.faster_rcnn.FastRCNNPredictor(1024, 3)
    replace_head(model, head=new, at="roi_heads.box_predictor")
    assert model.roi_heads.box_predictor is new


@pytest.mark.slow
@pytest.mark.parametrize("at", ["head", "head.classification_head.cls_logits"])
def test_heads_of_a_retinanet_are_not_replaced_by_a_layer(at: str) -> None:
    """The number of classes is also the size of a view."""
    model = detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=32, max_size=32
    )
    old = model.get_submodule(at)
    with pytest.raises(HeadError, match="head"):
        freeze_and_replace_head(model, num_classes=3, at=at)
    assert model.get_submodule(at) is old


@pytest.mark.slow
@pytest.mark.parametrize("build", [deeplabv3_mobilenet_v3_large, fcn_resnet50])
def test_auxiliary_classifier_of_a_segmenter_is_removed(build: Callable[..., nn.Module]) -> None:
    """The warning names it, and all outputs have the new number of classes."""
    with torch.device("meta"):
        model = build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    with pytest.warns(UserWarning, match="`aux_classifier`"):
        freeze_and_replace_head(model, num_classes=3, at="classifier.4")
    assert model.aux_classifier is None
    outputs = model.eval()(torch.empty(2, 3, 64, 64, device="meta"))
    assert {name: output.shape[1] for name, output in outputs.items()} == {"out": 3}


@pytest.mark.slow
def test_refused_segmenter_keeps_its_auxiliary_classifier() -> None:
    """An error restores it, without a warning."""
    with torch.device("meta"):
        model = deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=21, aux_loss=True
        )
    with pytest.raises(HeadError):
        replace_head(model, head=nn.Conv2d(7, 3, 1, device="meta"), at="classifier.4")
    assert isinstance(model.aux_classifier, nn.Module)


def test_attribute_with_the_name_of_an_auxiliary_head_stays_in_other_models() -> None:
    """Only torchvision's models are known to work without it."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier, self.aux_classifier = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"out": self.classifier(inputs), "aux": self.aux_classifier(inputs)}

    model = Own()
    replace_head(model, num_classes=5, at="classifier")
    assert model(torch.ones(2, 4))["aux"].shape == (2, 3)
