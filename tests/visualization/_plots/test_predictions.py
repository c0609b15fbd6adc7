"""`plot_predictions`: the selected samples, their images and texts, and rejected arguments."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.errors import (
    EmptyDataError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.visualization import plot_predictions
from finetunelib.visualization._plots.style import LIGHT
from support_models import Function
from visualization._plots.plotting import Oracle, data_predicting, texts


def cells(figure: Figure) -> list[tuple[str, str]]:
    """Return the two lines above each image."""
    return [(axes.get_title("left"), axes.texts[0].get_text()) for axes in figure.axes]


def image(figure: Figure, number: int = 0) -> Any:
    """Return the values of an image as drawn."""
    return np.asarray(figure.axes[number].get_images()[0].get_array())


def always(classes: int = 2) -> nn.Module:
    """Return a model that always predicts class 0."""
    return Function(lambda inputs: torch.eye(classes)[:1].expand(len(inputs), -1) * 3)


def labelled(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images with labels for which the predictions of `always` are wrong."""
    return images, torch.ones(len(images), dtype=torch.int64)


def test_most_confident_mistakes_come_first() -> None:
    """Texts contain prediction, confidence, label and index; correct predictions are left out."""
    data = data_predicting([1, 2, 0, 1], [0, 2, 1, 2], [0.6, 0.99, 0.9, 0.7])
    figure = plot_predictions(Oracle(3), data, count=3)
    assert cells(figure) == [
        ("✗ 0  90%", "label 1  #2"),
        ("✗ 1  70%", "label 2  #3"),
        ("✗ 1  60%", "label 0  #0"),
    ]


def test_least_confident_correct_predictions_follow() -> None:
    """If there are few mistakes, correct predictions follow, with a tick and another color."""
    data = data_predicting([1, 2, 0, 1], [0, 2, 0, 1], [0.6, 0.99, 0.7, 0.8])
    figure = plot_predictions(Oracle(3), data, count=3)
    assert cells(figure) == [
        ("✗ 1  60%", "label 0  #0"),
        ("✓ 0  70%", "label 0  #2"),
        ("✓ 1  80%", "label 1  #3"),
    ]
    frames = [to_hex(axes.spines["top"].get_edgecolor()) for axes in figure.axes]
    assert frames == [LIGHT.series[1], LIGHT.series[0], LIGHT.series[0]]


def test_title_shows_error_rate_and_order() -> None:
    """The numbers are those of all samples, not only of those drawn."""
    wrong = plot_predictions(Oracle(3), data_predicting([1, 1, 1, 0], [0, 0, 0, 0]), count=2)
    assert "3 of 4 samples; most confident mistakes first" in texts(wrong)
    assert "75% wrong" in [text.strip() for text in texts(wrong)]
    some = plot_predictions(Oracle(3), data_predicting([1, 0], [0, 0]))
    assert "1 of 2 samples; all of them, then the least confident" in texts(some)
    none = plot_predictions(Oracle(3), data_predicting([0, 0], [0, 0]))
    assert "0 of 2 samples; least confident first" in texts(none)


def test_number_of_images_is_limited_by_the_data() -> None:
    """If there are fewer samples than `count`, there are no empty axes."""
    assert len(plot_predictions(Oracle(3), data_predicting([0, 1], [0, 1]), count=9).axes) == 2


def test_selection_does_not_depend_on_batch_size() -> None:
    """The candidates of all batches are compared with each other."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 3, (50,), generator=generator).tolist()
    labels = torch.randint(0, 3, (50,), generator=generator).tolist()
    confidence = (0.4 + 0.5 * torch.rand(50, generator=generator)).tolist()
    data = data_predicting(predicted, labels, confidence)
    one = plot_predictions(Oracle(3), data, count=45, batch_size=50)
    many = plot_predictions(Oracle(3), data, count=45, batch_size=7)
    assert cells(one) == cells(many)
    expected = sorted(
        (n for n in range(50) if predicted[n] != labels[n]), key=lambda n: -confidence[n]
    )
    shown = [int(text.split("#")[1]) for _, text in cells(many)]
    assert shown[: len(expected)] == expected


def test_only_drawn_images_are_kept_in_memory() -> None:
    """Memory does not grow with the number of batches."""
    memory: list[weakref.ref[Any]] = []
    most = 0

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal most
        for _ in range(20):
            # One sample of each batch will be drawn.
            images, labels = data_predicting([1] * 8, [0] * 8, [0.9] + [0.5] * 7)
            # The array lives as long as any tensor that shares its memory.
            array = images.numpy().copy()
            memory.append(weakref.ref(array))
            yield torch.from_numpy(array), labels
            del array
            gc.collect()
            most = max(most, sum(array() is not None for array in memory))

    plot_predictions(Oracle(3), stream(), count=20)
    assert len(memory) == 20
    # The first batch is kept for checks, and the current and next ones may be in memory.
    assert most <= 3


def test_ignored_targets_are_not_drawn_but_counted_in_indices() -> None:
    """Samples without a label are not drawn, and do not change the indices of others."""
    figure = plot_predictions(Oracle(3), data_predicting([0, 1, 2], [-100, 0, 2]))
    assert [text for _, text in cells(figure)] == ["label 0  #1", "label 2  #2"]


def test_texts_contain_class_names() -> None:
    """Names are shown literally, and long names are shortened."""
    figure = plot_predictions(
        Oracle(2), data_predicting([1], [0]), class_names=["$cat$", "a dog of a very rare kind"]
    )
    assert cells(figure) == [("✗ a dog of a very r…  90%", "label $cat$  #0")]


def test_softmax_is_not_applied_twice() -> None:
    """If a model returns probabilities, these are shown unchanged."""
    model = Function(lambda inputs: Oracle(3)(inputs).exp())
    figure = plot_predictions(model, data_predicting([1], [0], [0.97]))
    assert cells(figure)[0][0] == "✗ 1  97%"


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((5, 4), (5, 4)),
        ((1, 5, 4), (5, 4)),
        ((3, 5, 4), (5, 4, 3)),
        ((5, 4, 3), (5, 4, 3)),
        ((5, 4, 1), (5, 4)),
    ],
)
def test_channels_may_be_first_last_or_missing(
    shape: tuple[int, ...], drawn: tuple[int, ...]
) -> None:
    """Gray and color images are drawn with all of their values."""
    values = torch.rand(1, *shape)
    shown = image(plot_predictions(always(), labelled(values)))
    assert shown.shape == drawn
    assert sorted(shown.flatten().tolist()) == sorted(values.flatten().tolist())


def test_order_of_color_channels_is_kept() -> None:
    """An image with only a red channel is drawn in red."""
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert image(plot_predictions(always(), labelled(red)))[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        (torch.tensor([0, 51, 255], dtype=torch.uint8), [0, 0.2, 1]),
        (torch.tensor([0.25, 0.5, 0.75]), [0.25, 0.5, 0.75]),
        (torch.tensor([-2.0, 0.0, 2.0]), [0, 0.5, 1]),
        (torch.tensor([0.0, 51.0, 255.0]), [0, 0.2, 1]),
        (torch.tensor([7.0, 7.0, 7.0]), [0.5, 0.5, 0.5]),
        (torch.tensor([0.5, float("nan"), 1.0]), [0.5, 0, 1]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float16), [0, 0.5, 1]),
    ],
    ids=["bytes", "unit", "normalized", "large", "constant", "nan", "bool", "half"],
)
def test_values_are_converted_to_brightness(values: Tensor, drawn: list[float]) -> None:
    """Bytes, floats in [0, 1] and normalized floats are all drawn from black to white."""
    shown = image(plot_predictions(always(), labelled(values.reshape(1, 1, 1, 3))))
    np.testing.assert_allclose(shown[0], drawn, atol=1e-6)  # one division in float32


def test_all_images_are_converted_by_the_same_rule() -> None:
    """If one image is outside of [0, 1], all images are stretched."""
    images = torch.tensor([[0.0, 0.5], [-1.0, 1.0]]).reshape(2, 1, 1, 2)
    figure = plot_predictions(always(), labelled(images))
    assert [image(figure, number)[0].tolist() for number in (0, 1)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, np.array])
def test_mean_and_std_undo_a_normalization(make: Callable[[list[float]], Any]) -> None:
    """The image drawn is the original image."""
    original = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    channels = (1, 3, 1, 1)
    normalized = (original - torch.tensor(mean).view(channels)) / torch.tensor(std).view(channels)
    figure = plot_predictions(always(), labelled(normalized), mean=make(mean), std=make(std))
    # Two operations in float32 are rounded.
    np.testing.assert_allclose(image(figure), original[0].permute(1, 2, 0), atol=1e-6)


def test_one_mean_applies_to_all_channels() -> None:
    """Values outside of [0, 1] are clipped."""
    figure = plot_predictions(
        always(), labelled(torch.tensor([[[[-1.0, 0.0, 4.0]]]])), mean=0.5, std=0.5
    )
    assert image(figure)[0].tolist() == [0, 0.5, 1]


def test_to_image_converts_flat_inputs() -> None:
    """The function receives one sample, and may return an array."""
    model = build_mlp(12, [], 2)
    inputs = torch.rand(5, 12)
    figure = plot_predictions(
        model,
        (inputs, torch.zeros(5, dtype=torch.int64)),
        to_image=lambda sample: sample.reshape(3, 4).numpy(),
    )
    index = int(figure.axes[0].texts[0].get_text().split("#")[1])
    np.testing.assert_array_equal(image(figure), inputs[index].reshape(3, 4))


@pytest.mark.parametrize(
    ("features", "advice"),
    [
        (784, r"to_image=lambda sample: sample.reshape\(28, 28\)"),
        (3072, r"to_image=lambda sample: sample.reshape\(3, 32, 32\)"),
        (10, r"to_image=lambda sample: sample.reshape\(height, width\)"),
    ],
)
def test_flat_inputs_are_rejected_with_a_hint(features: int, advice: str) -> None:
    """The message contains the likely `to_image` argument."""
    with pytest.raises(InvalidInputError, match=rf"\({features},\).*{advice}"):
        plot_predictions(always(), labelled(torch.rand(2, features)))


@pytest.mark.parametrize("shape", [(4, 5, 5), (2, 3, 4, 4), (3, 0, 4)])
def test_inputs_that_are_not_images_are_rejected(shape: tuple[int, ...]) -> None:
    """The message contains the shape and suggests `to_image`."""
    with pytest.raises(InvalidInputError, match="to_image=") as caught:
        plot_predictions(always(), labelled(torch.rand(2, *shape)))
    assert str(shape) in str(caught.value)


def test_inputs_are_checked_before_all_data_is_read() -> None:
    """If the inputs are not images, only the first batch is read."""
    read: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(5):
            read.append(number)
            yield labelled(torch.rand(2, 7))

    with pytest.raises(InvalidInputError, match=r"\(7,\)"):
        plot_predictions(always(), stream())
    assert read == [0]


def test_images_of_a_mapping_are_its_pixel_values() -> None:
    """Batches may contain other tensors, as those of transformers do."""

    class TakesMask(nn.Module):
        def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
            return torch.eye(2)[:1].expand(len(pixel_values), -1)

    batch = {
        "pixel_values": torch.rand(2, 3, 4, 4),
        "mask": torch.ones(2),
        "labels": torch.tensor([1, 1]),
    }
    assert image(plot_predictions(TakesMask(), [batch])).shape == (4, 4, 3)
    del batch["pixel_values"]
    batch["other"] = torch.ones(2)

    class TakesOther(nn.Module):
        def forward(self, other: Tensor, mask: Tensor) -> Tensor:
            return torch.eye(2)[:1].expand(len(other), -1)

    with pytest.raises(InvalidTypeError, match=r"`pixel_values`.*'mask', 'other'"):
        plot_predictions(TakesOther(), [batch])


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"count": 0}, InvalidArgumentError, "`count`.*0"),
        ({"count": 2.5}, InvalidTypeError, "`count`.*2.5"),
        ({"to_image": 3}, InvalidTypeError, "`to_image`.*3"),
        ({"to_image": lambda sample: "cat"}, InvalidTypeError, "`to_image`.*str"),
        ({"to_image": lambda sample: sample[0, 0]}, InvalidInputError, r"`to_image`.*\(3,\)"),
        ({"mean": 0.5}, InvalidArgumentError, "`mean` is given without `std`"),
        ({"std": 0.5}, InvalidArgumentError, "`std` is given without `mean`"),
        ({"mean": 0.5, "std": 0}, InvalidArgumentError, "`std`.*0"),
        ({"mean": "a", "std": 1}, InvalidTypeError, "`mean`.*'a'"),
        ({"mean": [], "std": 1}, InvalidArgumentError, "`mean`"),
        ({"mean": float("nan"), "std": 1}, InvalidArgumentError, "`mean`.*nan"),
        ({"mean": [0, 0], "std": 1}, InvalidInputError, "`mean`.*1.*got 2"),
        (
            {"mean": 0, "std": 1, "to_image": lambda sample: sample},
            InvalidArgumentError,
            "`to_image`",
        ),
        ({"class_names": ["a"]}, InvalidArgumentError, "3 names.*got 1"),
    ],
)
def test_invalid_option_is_rejected(
    options: dict[str, Any], error: type[Exception], named: str
) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(error, match=named):
        plot_predictions(Oracle(3), data_predicting([1], [0]), **options)


def test_mean_for_bytes_is_rejected() -> None:
    """Images of bytes are not normalized."""
    data = labelled(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(InvalidInputError, match=r"torch\.uint8"):
        plot_predictions(always(), data, mean=0.5, std=0.5)


def test_data_without_labelled_samples_is_rejected() -> None:
    """If all targets are ignored, there is nothing to draw."""
    with pytest.raises(EmptyDataError, match="-100"):
        plot_predictions(Oracle(3), data_predicting([1], [-100]))


def test_samples_of_the_data_are_not_changed() -> None:
    """The plot does not modify the data, even if `to_image` modifies its argument."""
    images, labels = data_predicting([1, 2], [0, 0])
    before = images.clone()
    plot_predictions(Oracle(3), (images, labels), to_image=lambda sample: sample.mul_(0))
    assert torch.equal(images, before)
