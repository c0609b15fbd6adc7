"""Models for tests of exports, with weights whose outputs vary from sample to sample.

With the default initialization of torchvision, a model may return almost the same for every image,
because its head is zero or its running statistics are those of no data. Many files would agree with
it. Therefore BatchNorm layers have the statistics of images, and heads have random weights. All
models are seeded, and nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from finetunelib.finetuning import find_head

#: The inputs of a model.
Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

#: The number of images for the export, and of all images. The rest is used for `verify_onnx`.
ROWS = 3
IMAGES = 8

#: Image sizes other than 64, for models whose layers or attention windows need them.
_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}


@dataclass(frozen=True, slots=True)
class ExportModel:
    """A model to export.

    Attributes:
        library: The library that defines it.
        name: Its name in the library.
        family: The architecture it belongs to.
        inputs: A description of the shapes of its inputs, without the batch.
        build: Returns the model in eval mode, and all its samples.
        dynamic_shapes: The dynamic axes other than the batch.
    """

    library: str
    name: str
    family: str
    inputs: str
    build: Callable[[], tuple[nn.Module, Example]]
    dynamic_shapes: Mapping[str, Mapping[int, str]] | None = None


def rows(example: Example, start: int, stop: int) -> Example:
    """Return the samples from `start` to `stop`."""
    if isinstance(example, Tensor):
        return example[start:stop]
    if isinstance(example, dict):
        return {name: tensor[start:stop] for name, tensor in example.items()}
    return tuple(tensor[start:stop] for tensor in example)


def torchvision_models() -> list[ExportModel]:
    """Return all torchvision classification models."""
    models = torchvision.models
    return [
        ExportModel(
            "torchvision",
            name,
            models.get_model_builder(name).__module__.rpartition(".")[2],
            f"3 x {size} x {size}",
            partial(_torchvision, name, size),
        )
        for name in models.list_models(module=models)
        for size in [_SIZES.get(name, 64)]
    ]


def transformers_models() -> list[ExportModel]:
    """Return image and text classifiers of transformers, with small configurations."""
    text = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}
    return [
        *(
            ExportModel("transformers", name, family, "texts of any length", build, text)
            for name, family, build in (
                ("BertForSequenceClassification", "bert", partial(_text_model, "Bert")),
                ("DistilBertForSequenceClassification", "distilbert", _distilbert),
            )
        ),
        *(
            ExportModel(
                "transformers",
                f"{family}ForImageClassification",
                family.lower(),
                "3 x 32 x 32",
                partial(_image_model, family),
            )
            for family in _IMAGE_CONFIGS
        ),
    ]


def own_models() -> list[ExportModel]:
    """Return two models defined here: a recurrent one, and one with several inputs and outputs."""
    return [
        ExportModel(
            "torch",
            "LSTM",
            "lstm",
            "texts of any length",
            _lstm,
            {"tokens": {1: "length"}},
        ),
        ExportModel(
            "torch",
            "two inputs and two outputs",
            "several",
            "3 x 32 x 32, and 5",
            _two_and_two,
        ),
    ]


def wide(width: int) -> tuple[nn.Module, Tensor]:
    """Return a model with a square layer, and samples. It exceeds 2 GB from a width of 22,400."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        model.append(nn.Linear(width, 5))
    model.to_empty(device="cpu")
    for layer in model:
        if isinstance(layer, nn.Linear):
            normal(layer)
    return model.eval(), torch.randn(IMAGES, 8, generator=generator)


def images(size: int, count: int = IMAGES, *, seed: int = 0) -> Tensor:
    """Return images `(count, 3, size, size)` that differ in color, shapes and noise.

    For images of noise alone, a deep model returns almost the same outputs, because their means are
    equal.
    """
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    shapes = torch.randn(count, 3, 4, 4, generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return colours + functional.interpolate(shapes, size, mode="bilinear") + 0.3 * noise


def _torchvision(name: str, size: int) -> tuple[nn.Module, Tensor]:
    # A vision transformer is built for one image size.
    own: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        # The default initialization takes minutes and shows a warning.
        own["init_weights"] = False
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **own)
    fill_statistics(model, size)
    samples = images(size)
    _redraw_head(model.eval(), samples)
    return model, samples


def fill_statistics(model: nn.Module, size: int) -> None:
    """Give every BatchNorm the statistics of images, and weights like those of trained models.

    Half of the images are as noisy as the samples that an export generates from its example. For
    images that the statistics do not cover, and with weights near 1, the activations of a deep
    model with random weights grow from block to block until rounding errors dominate its outputs.
    The outputs of EfficientNet-B7 in float64 then differ by two thirds of their spread.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    half = 16 if size < 128 else 4  # A large image has as many positions as several small ones.
    seen = images(size, 2 * half, seed=1)
    seen[half:] += seen.std() * torch.randn(seen[half:].shape)
    momentum = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.1, 0.4)
        nn.init.normal_(norm.bias, std=0.2)
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(seen)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value


def _redraw_head(model: nn.Module, samples: Any) -> None:
    """Give a model a random head, and scale up the residual branches of ConvNeXt."""
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.ones_(parameter)  # The initial 1e-6 would hide the branches.
    head = find_head(model, samples)
    assert isinstance(head.module, nn.Linear | nn.Conv2d)
    normal(head.module)


def normal(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=0.1)


def texts(vocabulary: int) -> dict[str, Tensor]:
    """Return texts of several lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocabulary, (IMAGES, 12), generator=generator)
    lengths = torch.randint(4, 13, (IMAGES, 1), generator=generator)
    mask = (torch.arange(12) < lengths).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def _text_model(family: str, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    return _from_config(family, "SequenceClassification", options or TEXT, texts(40))


def _distilbert() -> tuple[nn.Module, dict[str, Tensor]]:
    return _text_model("DistilBert", vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=64)


def _image_model(family: str) -> tuple[nn.Module, dict[str, Tensor]]:
    example = {"pixel_values": images(32)}
    return _from_config(family, "ImageClassification", _IMAGE_CONFIGS[family], example)


def _from_config(
    family: str, task: str, options: Mapping[str, Any], example: dict[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(num_labels=5, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns about weights that were not loaded.
        model: nn.Module = getattr(transformers, f"{family}For{task}")(config)
    _redraw_head(model.eval(), example)
    return model, example


def _lstm() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return _Recurrent().eval(), texts(40)["input_ids"]


def _two_and_two() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = _TwoAndTwo()
    fill_statistics(model.backbone, 32)
    return model.eval(), (images(32), torch.randn(IMAGES, 5))


class _Recurrent(nn.Module):
    """A bidirectional recurrent classifier of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `(batch, 5)` of tokens `(batch, length)`."""
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(states.mean(dim=1))
        return logits


class _Outputs(NamedTuple):
    logits: Tensor
    embedding: Tensor


class _TwoAndTwo(nn.Module):
    """A classifier of an image and a vector, which also returns an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.about = nn.Linear(5, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, numbers: Tensor) -> _Outputs:
        """Return logits `(batch, 4)` and an embedding `(batch, 16)`."""
        seen = self.backbone(image).flatten(1)
        embedding = torch.cat([seen, torch.relu(self.about(numbers))], dim=1)
        return _Outputs(self.head(embedding), embedding)


TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}

_IMAGE_CONFIGS: dict[str, dict[str, Any]] = {
    "ViT": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    },
    "ConvNext": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "Swin": {
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "image_size": 32,
        "patch_size": 2,
    },
}
