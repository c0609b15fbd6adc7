"""What comes before and after the model in the graph: from raw images to probabilities.

A module has two names then: one in the pipeline, and the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import logits_of
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTypeError

#: One number for all channels, or one a channel.
Statistics: TypeAlias = float | Sequence[float]

#: A module, such as a preset of torchvision's weights, or mean and standard deviation.
Preprocessing: TypeAlias = nn.Module | tuple[Statistics, Statistics]

#: What the user's model is called in a pipeline; its own names begin after it.
MODEL = "model"


class Pipeline(nn.Module):
    """A model with what comes before it and after it, called with tensors in their order."""

    def __init__(
        self,
        model: nn.Module,
        before: nn.Module | None,
        keywords: Sequence[str],
        *,
        softmax: bool,
    ) -> None:
        super().__init__()
        self.preprocessing = before
        self.model = model
        self.softmax = softmax
        self._keywords = tuple(keywords)
        self.training = model.training

    def forward(self, *inputs: Tensor) -> object:
        """Return the model's output, or the probabilities."""
        if self.preprocessing is not None:
            inputs = tuple(self.preprocessing(tensor) for tensor in inputs)
        count = len(inputs) - len(self._keywords)
        output = self.model(
            *inputs[:count], **dict(zip(self._keywords, inputs[count:], strict=True))
        )
        if not self.softmax:
            return output
        return _one_tensor(output).softmax(-1)


class Normalize(nn.Module):
    """Turn images of whole numbers from 0 to 255 into normalised floats."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", _channels(mean, "mean"))
        self.register_buffer("std", _channels(std, "std"))
        if not bool((self.std > 0).all()):
            raise InvalidArgumentError(
                f"The standard deviations in `preprocessing` must be above 0, but are {std}."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return `(images / 255 - mean) / std`, float32."""
        if images.dtype != torch.uint8:
            raise InvalidInputError(
                "`preprocessing` takes raw images of dtype uint8 from 0 to 255, but these are "
                f"{images.dtype}. Pass them as they are in the file, not yet scaled."
            )
        return (images.to(torch.float32) / 255 - self.mean) / self.std

    def extra_repr(self) -> str:
        """Name the numbers."""
        return f"mean={_numbers(self.mean)}, std={_numbers(self.std)}"


class ResizeCropNormalize(nn.Module):
    """Do what a classification preset of torchvision does, in operations that export.

    The preset itself looks at values on the way (`(std == 0).any()`), which no exporter takes.
    """

    def __init__(self, preset: Any) -> None:
        super().__init__()
        self.resize_size: list[int] = list(preset.resize_size)
        self.crop_size: list[int] = list(preset.crop_size)
        self.interpolation = preset.interpolation
        self.antialias: bool | None = preset.antialias
        self.normalize = Normalize(preset.mean, preset.std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images resized, cropped, scaled and normalised."""
        from torchvision.transforms import functional

        height, width = images.shape[-2:]
        size = self.resize_size
        if len(size) == 1:
            # torchvision asks which side is the shorter one, and a graph would keep the answer.
            shorter: Any = torch.sym_min(height, width)
            size = [size[0] * height // shorter, size[0] * width // shorter]
        images = functional.resize(
            images, size, interpolation=self.interpolation, antialias=self.antialias
        )
        top, left = (
            _half(side - crop) for side, crop in zip(size, self._crop_sides(), strict=True)
        )
        crop_height, crop_width = self._crop_sides()
        images = images[..., top : top + crop_height, left : left + crop_width]
        return cast("Tensor", self.normalize(images))

    def _crop_sides(self) -> tuple[int, int]:
        return self.crop_size[0], self.crop_size[-1]

    def extra_repr(self) -> str:
        """Name the sizes."""
        return (
            f"resize={self.resize_size}, crop={self.crop_size}, "
            f"interpolation={self.interpolation.value}"
        )


def preprocessing_module(
    preprocessing: object, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """Return the module that is exported, and the user's own that it is compared with.

    They are the same but for a preset of torchvision, which does not export as it is.

    Raises:
        InvalidTypeError: It is neither a module nor mean and standard deviation.
        InvalidArgumentError: A standard deviation is not above 0.
    """
    if isinstance(preprocessing, nn.Module):
        return (
            ResizeCropNormalize(preprocessing).to(device)
            if _is_preset(preprocessing)
            else preprocessing
        ), preprocessing
    if isinstance(preprocessing, tuple | list) and len(preprocessing) == 2:
        normalize = Normalize(*preprocessing).to(device)
        return normalize, normalize
    raise InvalidTypeError(
        "`preprocessing` must be a torch.nn.Module (such as `weights.transforms()` or a Compose of "
        "torchvision.transforms.v2) or a pair (mean, std), but is of type "
        f"{type(preprocessing).__name__}."
    )


def pipelines(
    model: nn.Module, inputs: Inputs, preprocessing: Preprocessing | None, *, softmax: bool
) -> tuple[nn.Module, nn.Module, Inputs]:
    """Return what is exported, what it is compared with, and how both are called.

    Raises:
        InvalidArgumentError: There are several inputs to preprocess.
    """
    if preprocessing is None and not softmax:
        return model, model, inputs
    exported = reference = None
    if preprocessing is not None:
        exported, reference = preprocessing_module(preprocessing, inputs.tensors[0].device)
        if len(inputs.tensors) != 1:
            raise InvalidArgumentError(
                f"`preprocessing` takes one input, but the model takes {len(inputs.tensors)}. "
                "Export a module that prepares them itself."
            )
    keywords = tuple(inputs.kwargs)
    return (
        Pipeline(model, exported, keywords, softmax=softmax),
        Pipeline(model, reference, keywords, softmax=softmax),
        inputs.by_position(),
    )


def inner_name(model: nn.Module) -> str:
    """Return what the user's model is called in what is exported, `""` where it is that itself."""
    return MODEL if isinstance(model, Pipeline) else ""


def user_name(name: str, inner_name: str) -> str:
    """Return a module's name in the user's model, of which a pipeline may be made."""
    return "" if name == inner_name else name.removeprefix(f"{inner_name}.") if inner_name else name


def _half(size: int) -> int:
    """Return half of a size, as torchvision rounds it: to the even one of two neighbours."""
    half = size // 2
    return half + (size % 2) * (half % 2)


def _is_preset(module: nn.Module) -> bool:
    # The class is private to torchvision; what it is made of is documented with each weights.
    return type(module).__name__ == "ImageClassification" and all(
        hasattr(module, name)
        for name in ("resize_size", "crop_size", "mean", "std", "interpolation", "antialias")
    )


def _channels(numbers: object, what: str) -> Tensor:
    try:
        tensor = torch.tensor(numbers, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"The {what} in `preprocessing` must be a number or one a channel, but is {numbers!r}."
        ) from error
    if tensor.dim() > 1 or not tensor.numel():
        raise InvalidArgumentError(
            f"The {what} in `preprocessing` must be a number or one a channel, but is {numbers!r}."
        )
    return tensor.reshape(-1, 1, 1)


def _numbers(tensor: Tensor) -> list[float]:
    return [round(number, 6) for number in tensor.flatten().tolist()]


def _one_tensor(output: object) -> Tensor:
    logits = logits_of(output)
    if logits is None:
        raise InvalidArgumentError(
            "`softmax=True` takes a model whose output is one tensor or has `.logits`, got "
            f"{type(output).__name__}."
        )
    return logits
