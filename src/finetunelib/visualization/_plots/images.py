"""Converts the inputs of a model to images that can be drawn: shapes, channels and brightness."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetunelib._forward.batch import describe
from finetunelib._typing import TensorLike
from finetunelib.data._parts import as_tensor, is_tensor_like
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTypeError

#: Converts the inputs of one sample to an image: `(height, width)`, `(channels, height, width)` or
#: `(height, width, channels)`, uint8 or floating-point.
ToImage: TypeAlias = Callable[[Tensor], TensorLike]

Pixels: TypeAlias = npt.NDArray[np.float32]

_CHANNELS = (1, 3)

#: How far floats may leave [0, 1], as after a resize that overshoots.
_OVERSHOOT = 1e-3


@dataclass(frozen=True, slots=True)
class ImageConverter:
    """Converts samples to images.

    Attributes:
        to_image: The user's conversion, or `None`.
        mean: The mean that was subtracted from each channel, or `None`.
        std: The standard deviation that each channel was divided by, or `None`.
    """

    to_image: ToImage | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, to_image: ToImage | None, mean: object, std: object) -> ImageConverter:
        """Check the arguments of a plot, and return the converter.

        Raises:
            InvalidTypeError: If `to_image` is not callable, or `mean` or `std` are not numbers.
            InvalidArgumentError: If one of `mean` and `std` is missing or out of range.
        """
        if to_image is not None and not callable(to_image):
            raise InvalidTypeError(
                "`to_image` must be a function from one sample to its image, got "
                f"{to_image!r} ({type(to_image).__name__})."
            )
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if (means is None) != (stds is None):
            given, missing = ("mean", "std") if stds is None else ("std", "mean")
            raise InvalidArgumentError(
                f"`{given}` is given without `{missing}`. Pass both, as used to normalize the data."
            )
        if to_image is not None and means is not None:
            raise InvalidArgumentError(
                "`mean` and `std` cannot be combined with `to_image`. Undo the normalization in "
                "`to_image`, or leave `to_image` out."
            )
        if stds is not None and min(stds) <= 0:
            raise InvalidArgumentError(f"`std` must be above 0, got {std!r}.")
        return cls(to_image, means, stds)

    def convert(self, sample: Tensor) -> Tensor:
        """Return one sample as an image, `(height, width)` or `(height, width, 3)`.

        With `mean` and `std`, the normalization is undone and values are clipped to [0, 1].

        Raises:
            InvalidInputError: If the shape is not that of an image, or `mean` does not match it.
            InvalidTypeError: If `to_image` does not return a tensor or an array.
        """
        source = "a sample"
        if self.to_image is not None:
            returned = self.to_image(sample)
            if not is_tensor_like(returned):
                raise InvalidTypeError(
                    f"`to_image` must return a tensor or an array, got {describe(returned)}."
                )
            sample, source = as_tensor(returned).cpu(), "the image that `to_image` returned"
        image = _channels_last(sample, source)
        if self.mean is None or self.std is None:
            return image
        if not image.is_floating_point():
            raise InvalidInputError(
                f"`mean` and `std` are given, but the inputs are {image.dtype} and not normalized. "
                "Leave them out."
            )
        channels = 1 if image.dim() == 2 else 3
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise InvalidInputError(
                    f"`{name}` must contain one number per channel of the images ({channels}), got "
                    f"{len(numbers)}."
                )
        return (image.float() * torch.tensor(self.std) + torch.tensor(self.mean)).clamp(0, 1)


def image_inputs(inputs: Any) -> Tensor:
    """Return the images among a batch's inputs.

    Raises:
        InvalidTypeError: If the inputs are not one tensor, or a mapping with `pixel_values`.
    """
    if isinstance(inputs, Mapping):
        tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
        inputs = inputs.get("pixel_values", tensors[0] if len(tensors) == 1 else inputs)
    if not isinstance(inputs, Tensor):
        raise InvalidTypeError(
            "The inputs of `data` must be one tensor of images, or a mapping with one under "
            f"`pixel_values`, got {describe(inputs)}."
        )
    return inputs


def pixels_of(images: Sequence[Tensor]) -> list[Pixels]:
    """Return images with values in [0, 1], all converted by the same rule.

    Bytes are divided by 255. Floats are unchanged if those of all images are in [0, 1]; otherwise
    the range of each image is stretched to [0, 1].
    """
    if all(image.dtype == torch.uint8 for image in images):
        return [(image.float() / 255).numpy() for image in images]
    if all(image.dtype == torch.bool for image in images):
        return [image.float().numpy() for image in images]
    floats = [image.float().nan_to_num(0.0, 0.0, 0.0) for image in images]
    if all(image.min() >= -_OVERSHOOT and image.max() <= 1 + _OVERSHOOT for image in floats):
        return [image.clamp(0, 1).numpy() for image in floats]
    return [_stretched(image) for image in floats]


def _stretched(image: Tensor) -> Pixels:
    low, high = image.min(), image.max()
    if high == low:
        return np.full(tuple(image.shape), 0.5, dtype=np.float32)
    stretched: Pixels = ((image - low) / (high - low)).numpy()
    return stretched


def _channels_last(image: Tensor, source: str) -> Tensor:
    if 0 not in image.shape:
        if image.dim() == 2:
            return image
        if image.dim() == 3 and image.shape[0] in _CHANNELS:
            return image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
        if image.dim() == 3 and image.shape[2] in _CHANNELS:
            return image[:, :, 0] if image.shape[2] == 1 else image
    raise InvalidInputError(
        "An image must have the shape (height, width), with 1 or 3 channels first, last or not at "
        f"all, but {source} has the shape {tuple(image.shape)}. {_advice(image)}"
    )


def _advice(image: Tensor) -> str:
    if image.dim() != 1:
        return "Pass `to_image=`, a function from one sample to its image."
    values = len(image)
    for channels in _CHANNELS:
        side = math.isqrt(values // channels)
        if side > 1 and channels * side * side == values:
            shape = f"{side}, {side}" if channels == 1 else f"{channels}, {side}, {side}"
            return (
                "If it is a flattened image, pass "
                f"`to_image=lambda sample: sample.reshape({shape})`."
            )
    return (
        "If it is a flattened image, pass `to_image=lambda sample: sample.reshape(height, width)`."
    )


def _numbers(name: str, value: object) -> tuple[float, ...] | None:
    """Return one number, or one for each channel, as a tuple."""
    if value is None:
        return None
    parts: list[Any] = [value]  # Any: the user's argument, checked below
    if isinstance(value, Tensor | np.ndarray):
        parts = value.flatten().tolist()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = list(value)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | float):
            raise InvalidTypeError(
                f"`{name}` must be a number, or one number per channel, got {value!r}."
            )
    if not parts or not all(map(math.isfinite, parts)):
        raise InvalidArgumentError(
            f"`{name}` must contain finite numbers, one per channel, got {value!r}."
        )
    return tuple(float(part) for part in parts)
