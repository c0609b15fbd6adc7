"""The model together with its preprocessing and softmax, exported as one module.

Inside a pipeline, the names of the model's modules begin with `model.`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import logits_of
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTypeError
from finetunelib.export._request.arguments import Arguments
from finetunelib.export._request.results import tensors_only

#: One number for all channels, or one per channel.
Statistics: TypeAlias = float | Sequence[float]

#: A module, such as a torchvision preset, or mean and standard deviation.
Preprocessing: TypeAlias = nn.Module | tuple[Statistics, Statistics]

#: The name of the user's model in a pipeline.
MODEL = "model"


class Pipeline(nn.Module):
    """A model with preprocessing and a softmax, called with its tensors by position."""

    def __init__(
        self,
        model: nn.Module,
        before: nn.Module | None,
        arguments: Arguments,
        *,
        softmax: bool,
        clean: bool,
    ) -> None:
        super().__init__()
        self.preprocessing = before
        self.model = model
        self.softmax = softmax
        self._clean = clean
        self._arguments = arguments
        self.training = model.training

    def forward(self, *inputs: Tensor) -> object:
        """Return the model's output, or the probabilities."""
        if self.preprocessing is not None:
            inputs = tuple(self.preprocessing(tensor) for tensor in inputs)
        if self._clean:  # The forward may write to its inputs.
            inputs = tuple(tensor.clone() for tensor in inputs)
        output = self._arguments.call(self.model, inputs)
        if self.softmax:
            return _one_tensor(output).softmax(-1)
        return tensors_only(output) if self._clean else output


class Normalize(nn.Module):
    """Converts uint8 images from 0 to 255 to normalized float32 images."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", _channels(mean, "mean"))
        self.register_buffer("std", _channels(std, "std"))
        if not bool((self.std > 0).all()):
            raise InvalidArgumentError(
                f"The standard deviations in `preprocessing` must be above 0, got {std}."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return `(images / 255 - mean) / std`, float32."""
        if images.dtype != torch.uint8:
            raise InvalidInputError(
                "`preprocessing` takes raw images of dtype uint8 from 0 to 255, got "
                f"{images.dtype}. Pass the images unscaled."
            )
        return (images.to(torch.float32) / 255 - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the statistics."""
        return f"mean={_numbers(self.mean)}, std={_numbers(self.std)}"


class ResizeCropNormalize(nn.Module):
    """Does what a torchvision classification preset does, in operations that can be exported.

    The preset itself branches on values (`(std == 0).any()`), which cannot be exported.
    """

    def __init__(self, preset: Any) -> None:
        super().__init__()
        self.resize_size: list[int] = list(preset.resize_size)
        self.crop_size: list[int] = list(preset.crop_size)
        self.interpolation = preset.interpolation
        self.antialias: bool | None = preset.antialias
        self.normalize = Normalize(preset.mean, preset.std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images resized, cropped, scaled and normalized."""
        from torchvision.transforms import functional

        height, width = images.shape[-2:]
        size = self.resize_size
        if len(size) == 1:
            # torchvision branches on which side is shorter, and a graph would keep one branch.
            shorter: Any = torch.sym_min(height, width)
            size = [size[0] * height // shorter, size[0] * width // shorter]
        images = functional.resize(
            images, size, interpolation=self.interpolation, antialias=self.antialias
        )
        top, left = (
            _half(side - crop) for side, crop in zip(size, self._crop_sides(), strict=True)
        )
        crop_height, crop_width = self._crop_sides()
        # Not a slice: its size would stay open in the graph.
        images = images.index_select(-2, torch.arange(crop_height, device=images.device) + top)
        images = images.index_select(-1, torch.arange(crop_width, device=images.device) + left)
        return cast("Tensor", self.normalize(images))

    def _crop_sides(self) -> tuple[int, int]:
        return self.crop_size[0], self.crop_size[-1]

    def extra_repr(self) -> str:
        """Show the sizes."""
        return (
            f"resize={self.resize_size}, crop={self.crop_size}, "
            f"interpolation={self.interpolation.value}"
        )


def preprocessing_module(
    preprocessing: object, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """Return the module that is exported, and the one that it is compared with.

    They differ only for a torchvision preset, which cannot be exported itself.

    Raises:
        InvalidTypeError: If `preprocessing` is neither a module nor mean and standard deviation.
        InvalidArgumentError: If a standard deviation is not above 0.
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
        "torchvision.transforms.v2) or a pair (mean, std), got "
        f"{type(preprocessing).__name__}."
    )


def pipelines(
    model: nn.Module,
    arguments: Arguments,
    preprocessing: Preprocessing | None,
    *,
    softmax: bool,
    clean: bool,
) -> tuple[nn.Module, nn.Module, Inputs]:
    """Return the module to export, the module to compare it with, and the inputs of both.

    They are the model itself if there is nothing to add. With `clean`, the output has only tensors,
    and the inputs are copied first.

    Raises:
        InvalidArgumentError: If the model takes several inputs and there is preprocessing.
    """
    inputs = arguments.inputs
    if preprocessing is None and not softmax and arguments.plain and not clean:
        return model, model, inputs
    exported = reference = None
    if preprocessing is not None:
        exported, reference = preprocessing_module(preprocessing, inputs.tensors[0].device)
        if len(inputs.tensors) != 1:
            raise InvalidArgumentError(
                f"`preprocessing` needs a model with one input, got {len(inputs.tensors)} inputs. "
                "Export a module that contains the preprocessing."
            )
    return (
        Pipeline(model, exported, arguments, softmax=softmax, clean=clean),
        Pipeline(model, reference, arguments, softmax=softmax, clean=clean),
        inputs.by_position(),
    )


def inner_name(model: nn.Module) -> str:
    """Return the name of the user's model in the exported module, `""` if they are the same."""
    return MODEL if isinstance(model, Pipeline) else ""


def user_name(name: str, inner_name: str) -> str:
    """Return a module's name in the user's model, given its name in the exported module."""
    return "" if name == inner_name else name.removeprefix(f"{inner_name}.") if inner_name else name


def _half(size: int) -> int:
    """Return half of a size, rounded half to even as torchvision does."""
    half = size // 2
    return half + (size % 2) * (half % 2)


def _is_preset(module: nn.Module) -> bool:
    # The class is private to torchvision, but its attributes are documented with all weights.
    return type(module).__name__ == "ImageClassification" and all(
        hasattr(module, name)
        for name in ("resize_size", "crop_size", "mean", "std", "interpolation", "antialias")
    )


def _channels(numbers: object, what: str) -> Tensor:
    try:
        tensor = torch.tensor(numbers, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"The {what} in `preprocessing` must be a number, or one per channel, got {numbers!r}."
        ) from error
    if tensor.dim() > 1 or not tensor.numel():
        raise InvalidArgumentError(
            f"The {what} in `preprocessing` must be a number, or one per channel, got {numbers!r}."
        )
    return tensor.reshape(-1, 1, 1)


def _numbers(tensor: Tensor) -> list[float]:
    return [round(number, 6) for number in tensor.flatten().tolist()]


def _one_tensor(output: object) -> Tensor:
    logits = logits_of(output)
    if logits is None:
        raise InvalidArgumentError(
            "`softmax=True` needs a model whose output is one tensor or has `.logits`, got "
            f"{type(output).__name__}."
        )
    return logits
