"""From the inputs of a model to pictures that can be drawn: shapes, and what the values mean."""

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
from finetunelib.data._tensors import as_tensor, is_tensor_like
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTypeError

#: Makes an image of one sample's inputs: `(height, width)`, `(channels, height, width)` or
#: `(height, width, channels)`, bytes or floats.
ToImage: TypeAlias = Callable[[Tensor], TensorLike]

Pixels: TypeAlias = npt.NDArray[np.float32]

_COLORS = (1, 3)


@dataclass(frozen=True, slots=True)
class Imaging:
    """How samples become images.

    Attributes:
        to_image: The user's own way, if any.
        mean: What was taken off each channel, if known.
        std: What each channel was divided by, if known.
    """

    to_image: ToImage | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, to_image: ToImage | None, mean: object, std: object) -> Imaging:
        """Check what a user passed.

        Raises:
            InvalidTypeError: `to_image` is no function, or a mean holds something else than
                numbers.
            InvalidArgumentError: One of `mean` and `std` is missing, or a number makes no sense.
        """
        if to_image is not None and not callable(to_image):
            raise InvalidTypeError(
                "`to_image` must be a function from one sample to its image, but is "
                f"{to_image!r} ({type(to_image).__name__})."
            )
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if (means is None) != (stds is None):
            given, lacking = ("mean", "std") if stds is None else ("std", "mean")
            raise InvalidArgumentError(
                f"`{given}` is given without `{lacking}`. Pass both, as the data was normalized."
            )
        if to_image is not None and means is not None:
            raise InvalidArgumentError(
                "`mean` and `std` are given beside `to_image`, which decides on its own what a "
                "value means. Pass one of the two."
            )
        if stds is not None and min(stds) <= 0:
            raise InvalidArgumentError(f"`std` must be above 0, but is {std!r}.")
        return cls(to_image, means, stds)

    def image(self, sample: Tensor) -> Tensor:
        """Return one sample as `(height, width)` or `(height, width, 3)`, its values as they are.

        Raises:
            InvalidInputError: It has no shape of an image, or `mean` does not fit it.
            InvalidTypeError: `to_image` returned no tensor or array.
        """
        source = "a sample"
        if self.to_image is not None:
            made = self.to_image(sample)
            if not is_tensor_like(made):
                raise InvalidTypeError(
                    f"`to_image` must return a tensor or an array, but returned {describe(made)}."
                )
            sample, source = as_tensor(made).cpu(), "the image that `to_image` returned"
        image = _channels_last(sample, source)
        if self.mean is None or self.std is None:
            return image
        if not image.is_floating_point():
            raise InvalidInputError(
                f"`mean` and `std` are given, but the inputs are {image.dtype}, which nothing was "
                "normalized of. Leave them out."
            )
        channels = 1 if image.dim() == 2 else 3
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise InvalidInputError(
                    f"`{name}` must hold a number for each channel of the images, which is "
                    f"{channels}, but holds {len(numbers)}."
                )
        return (image.float() * torch.tensor(self.std) + torch.tensor(self.mean)).clamp(0, 1)


def image_inputs(inputs: Any) -> Tensor:
    """Return which of a batch's inputs are the images.

    Raises:
        InvalidTypeError: They are no tensor, or several of which none is named `pixel_values`.
    """
    if isinstance(inputs, Mapping):
        tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
        inputs = inputs.get("pixel_values", tensors[0] if len(tensors) == 1 else inputs)
    if not isinstance(inputs, Tensor):
        raise InvalidTypeError(
            "The inputs of `data` must be one tensor of images, or a mapping with one under "
            f"`pixel_values`, but are {describe(inputs)}."
        )
    return inputs


def pixels_of(images: Sequence[Tensor]) -> list[Pixels]:
    """Return images with values in [0, 1], all read in the same way.

    Bytes go from 0 to 255. Floats are taken as they are where all of them lie in [0, 1]; else
    each image is stretched from its darkest value to its brightest.
    """
    if all(image.dtype == torch.uint8 for image in images):
        return [(image.float() / 255).numpy() for image in images]
    if all(image.dtype == torch.bool for image in images):
        return [image.float().numpy() for image in images]
    floats = [image.float().nan_to_num(0.0, 0.0, 0.0) for image in images]
    # A little beyond, for what a resize with overshoot leaves.
    if all(image.min() >= -1e-3 and image.max() <= 1 + 1e-3 for image in floats):
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
        if image.dim() == 3 and image.shape[0] in _COLORS:
            return image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
        if image.dim() == 3 and image.shape[2] in _COLORS:
            return image[:, :, 0] if image.shape[2] == 1 else image
    raise InvalidInputError(
        f"An image has the shape (height, width), or with 1 or 3 channels before or after these, "
        f"but {source} has {tuple(image.shape)}. {_advice(image)}"
    )


def _advice(image: Tensor) -> str:
    if image.dim() != 1:
        return "Pass `to_image=`, a function from one sample to its image."
    values = len(image)
    for channels in _COLORS:
        side = math.isqrt(values // channels)
        if side > 1 and channels * side * side == values:
            shape = f"{side}, {side}" if channels == 1 else f"{channels}, {side}, {side}"
            return (
                "If it is a flattened image, say which: "
                f"`to_image=lambda sample: sample.reshape({shape})`."
            )
    return (
        "If it is a flattened image, say which: "
        "`to_image=lambda sample: sample.reshape(height, width)`."
    )


def _numbers(name: str, value: object) -> tuple[float, ...] | None:
    """Return one number, or one for each channel, as a tuple."""
    if value is None:
        return None
    parts: list[Any] = [value]  # Any: what a user passed, which the loop checks
    if isinstance(value, Tensor | np.ndarray):
        parts = value.flatten().tolist()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = list(value)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | float):
            raise InvalidTypeError(
                f"`{name}` must be a number, or one for each channel, but is {value!r}."
            )
    if not parts or not all(map(math.isfinite, parts)):
        raise InvalidArgumentError(
            f"`{name}` must hold finite numbers, one for each channel, but is {value!r}."
        )
    return tuple(float(part) for part in parts)
